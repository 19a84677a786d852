"""Are the stored winners still what they were? After a driver, a compiler or the machine changed.

The winner and the family's default are timed in one lap, and both are compared with what was
stored. What moved both is the machine; what moved the winner against the default is the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from fagen import winner
from fagen.errors import FagenError
from fagen.families.base import Family
from fagen.model import Candidate, Entry, Failure
from fagen.store import candidate
from fagen.tunable import Pool
from fagen.winner import MARGIN, Gap

MOVED = 0.03  # against the default: a larger shift is news
DRIFT = 0.05  # of winner and default alike
_LEAST_CALM = 0.5  # of the rounds, or the lap says nothing
_WIDE = 0.2  # nor where an interval is wider

STEADY, MACHINE, MOVED_WORD, LOST, FAILED, UNSURE = (
    "steady", "machine", "moved", "lost", "failed", "disturbed"
)
NEWS = (MOVED_WORD, LOST, FAILED)


@dataclass(frozen=True)
class Finding:
    """One entry, looked at again. Changes are shares: 0.1 is 10% slower than it was stored."""

    entry: Entry
    verdict: str
    says: str
    median_us: float = 0.0
    change: float = 0.0  # of the winner
    machine: float = 0.0  # of the default, where its time was stored
    against_default: Gap | None = None  # how much slower the default is today
    updated: tuple[str, ...] = ()  # what is not what it was: compiler, driver

    @property
    def is_news(self) -> bool:
        return self.verdict in NEWS


def recheck(
    entry: Entry, families: Sequence[Family], pool: Pool, rounds: int, driver: str = ""
) -> Finding:
    """Build, verify and time again what the entry names."""
    try:
        kernel = candidate(entry, families)
        default = _default(entry, kernel, families)
    except FagenError as error:
        return Finding(entry, FAILED, error.message)
    outcomes = pool.lap(list(dict.fromkeys((kernel, default))), entry.workload, rounds)
    failed = next((o for o in outcomes if isinstance(o, Failure)), None)
    if failed:
        return Finding(entry, FAILED, f"{failed.stage}: {failed.reason}; {failed.reproduce}",
                       updated=_updated(entry, kernel, pool, driver))
    samples = {c: pool.lap_samples[c] for c in (kernel, default)}
    calm = winner.calm(samples)
    loud = _loud(entry, len(calm), rounds, winner.gap(samples[kernel], samples[default]))
    if loud:
        return Finding(entry, UNSURE, loud)
    quiet = {c: [times[r] for r in calm] for c, times in samples.items()}
    return _judge(entry, quiet[kernel], quiet[default], kernel == default,
                  _updated(entry, kernel, pool, driver))


def _default(entry: Entry, kernel: Candidate, families: Sequence[Family]) -> Candidate:
    """The one whose time was stored, with the config it had then. The winner, if it was that."""
    name = entry.provenance.get("search", {}).get("default_family", entry.family)
    for runner in entry.runners_up:
        if runner.get("default") and runner["family"] == name:
            return candidate(replace(entry, family=name, config=runner["config"]), families)
    return kernel


def _loud(entry: Entry, calm: int, rounds: int, gap: Gap) -> str:
    """Why nothing can be said, then or now; empty when it can."""
    stored = entry.measurement
    if stored.high_us > stored.low_us * (1 + _WIDE):
        return (f"it was timed under load: quartiles {stored.low_us:.1f} to {stored.high_us:.1f} "
                "us; tune again")
    if calm < _LEAST_CALM * rounds:
        return (f"{rounds - calm} of {rounds} rounds were disturbed by something else; close other "
                "programs and check again")
    if 1 + gap.high > (1 + gap.low) * (1 + _WIDE):
        return (f"the default is {gap.low:+.1%} to {gap.high:+.1%} slower, too wide to judge; "
                "close other programs and check again")
    return ""


def _judge(
    entry: Entry, times: Sequence[float], default: Sequence[float], alone: bool,
    updated: tuple[str, ...],
) -> Finding:
    now = median(times)
    change = now / entry.measurement.median_us - 1
    stored = entry.provenance.get("search", {}).get("default_us", 0.0)
    if alone or not stored:
        word = STEADY if abs(change) <= DRIFT else MACHINE
        says = f"{change:+.1%}" + ("" if word == STEADY else
                                   "; whether the machine or the kernel cannot be told apart: "
                                   + ("it is the default" if alone else "no default was stored"))
        return Finding(entry, word, says, now, change, updated=updated)
    machine = median(default) / stored - 1
    against = winner.gap(times, default)  # how much slower the default is
    before = stored / entry.measurement.median_us  # the same, when it was tuned
    shift = before / (1 + against.slower) - 1
    surely = before / (1 + against.high) - 1, before / (1 + against.low) - 1
    verdict, says = STEADY, f"{change:+.1%}"
    if against.high < -MARGIN:
        verdict, says = LOST, f"the default is {-against.slower:.1%} faster than the winner now"
    elif abs(shift) > MOVED and min(map(abs, surely)) > MARGIN and surely[0] * surely[1] > 0:
        verdict, says = MOVED_WORD, f"{shift:+.1%} against the default, the machine {machine:+.1%}"
    elif abs(machine) > DRIFT:
        verdict, says = MACHINE, f"winner {change:+.1%} and default {machine:+.1%}, alike"
    return Finding(entry, verdict, says, now, change, machine, against, updated)


def _updated(entry: Entry, kernel: Candidate, pool: Pool, driver: str) -> tuple[str, ...]:
    built = pool.build(kernel)
    now = {"driver": driver,
           "compiler": "" if isinstance(built, Failure) else built.binary.compiler}
    was = {name: str(entry.provenance.get(name) or "") for name in now}
    return tuple(
        f"{name} {was[name]} is now {now[name]}" for name in sorted(now)
        if was[name] and now[name] and was[name] != now[name]
    )
