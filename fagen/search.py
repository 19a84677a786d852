"""Find the fastest verified kernel for a problem within a budget, and store what was learned."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

from fagen.budget import Budget
from fagen.entryfile import read_text, to_text
from fagen.errors import INTERRUPTED, FagenError, RunError, UsageError
from fagen.exploration import Exploration
from fagen.families import families_for
from fagen.families.base import Family, Space
from fagen.finale import Finale, Heat
from fagen.journal import Journal
from fagen.learned import Learned, Place, entries_of
from fagen.model import Candidate, Entry, Failure, Measurement, Problem
from fagen.portfolio import choose
from fagen.rivals import Rival, standing
from fagen.shared import Shared
from fagen.storage import Storage
from fagen.store import Store
from fagen.target import Target
from fagen.trial import Event
from fagen.tunable import Pool, Renders
from fagen.winner import around
from fagen.workload import Workload

__all__ = ["Budget", "Event", "Interrupted", "Pool", "journal_path", "tune"]


class Interrupted(FagenError):
    """The search was stopped by hand. What was told is kept, and the best so far, if any."""

    exit_code = INTERRUPTED

    def __init__(self, message: str, hint: str, entry: Entry | None) -> None:
        super().__init__(message, hint)
        self.entry = entry


def tune(
    problem: Problem,
    workloads: Sequence[Workload],
    target: Target,
    families: Sequence[Family],
    pool: Pool,
    store: Store,
    journal_dir: Path,
    budget: Budget,
    on_event: Callable[[Event], None] | None = None,
    *,
    fresh: bool = False,
    driver: str = "",
    storage: Storage | None = None,
) -> Entry:
    """Search, store one entry per workload, and return that of the first. The config with the least
    time over all workloads, by weight, serves those where no other one pays beyond doubt.
    ``fresh`` forgets an earlier run; ``driver`` is written into the entry. In a ``storage`` other
    workers take part, one of them runs the final lap, and all store its entries."""
    if not workloads:
        raise UsageError(f"no workload was given for {problem}")
    usable = families_for(problem, target, tuple(families))
    if not usable:
        raise UsageError(
            f"no family serves {problem} on {target.name}; there are: "
            + ", ".join(f.name for f in families),
            "fagen devices lists the targets, fagen space what a family can do",
        )
    what = problem, workloads, target, usable
    with (
        Journal(journal_path(journal_dir, *what, pool.renderer), fresh=fresh) if storage is None
        else _shared(storage, journal_dir.parent / "outbox", *what, pool.renderer, fresh)
    ) as journal:
        found = Exploration(*what, pool, budget, journal, on_event)
        found.seed(store)
        try:
            found.run()
            entries = journal.once(
                f"entries of {found.explorer.tried}",
                lambda: {"score": None, "entries": to_text(
                    entries_of(conclude(found), found, driver)
                )},
            )
        except KeyboardInterrupt:
            raise _interrupted(found, store, driver) from None
        made = read_text(entries["entries"], Path(f"{problem}.yaml"))
        store.put(*made)
    return made[0]


def journal_path(
    folder: Path, problem: Problem, workloads: Sequence[Workload], target: Target,
    families: Sequence[Family], renderer: Renders,
) -> Path:
    """A journal belongs to a problem, its workloads, the hardware, the sources, the knobs and what
    is written of an outcome: change one of them and the search starts afresh."""
    digest = _digest([
        _question(workloads, target), _sources(problem, target, families, renderer)
    ])
    return folder.absolute() / f"{problem}@{target.name}-{digest}.journal"


def _shared(
    storage: Storage, outbox: Path, problem: Problem, workloads: Sequence[Workload],
    target: Target, families: Sequence[Family], renderer: Renders, fresh: bool,
) -> Shared:
    """A shared study belongs to a problem, its workloads and the hardware. All of its workers must
    have the same sources."""
    return Shared(
        storage, study_name(problem, workloads, target), outbox,
        {"sources": _digest(_sources(problem, target, families, renderer))}, fresh,
    )


def study_name(problem: Problem, workloads: Sequence[Workload], target: Target) -> str:
    return f"{problem}@{target.name}-{_digest(_question(workloads, target))}"


def _question(workloads: Sequence[Workload], target: Target) -> dict[str, Any]:
    return {"workloads": [(str(w), w.weight) for w in workloads], "target": target.facts()}


def _sources(
    problem: Problem, target: Target, families: Sequence[Family], renderer: Renders
) -> dict[str, Any]:
    """The kernels, the knobs, and what is written of an outcome."""
    return {
        "outcome": [f.name for kind in (Measurement, Failure) for f in fields(kind)],
        "knobs": {f.name: Space(problem, target, f).knobs() for f in families},
        "sources": {f.name: renderer.render(f.default(problem, target)).digest for f in families},
    }


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def conclude(found: Exploration) -> Learned:
    """The final lap of the best few and every family's default: tuned is never slower."""
    finalists = found.finalists()
    if not finalists:
        raise _nothing_works(found)
    lap = Finale(finalists, found.workloads, _heat(found))

    def after(heat: int) -> None:
        total = max(heat, found.budget.heats)
        found.report("heat", done=heat, total=total, disturbed=lap.disturbed)

    lap.run(found.budget, after)
    standings = lap.standings(found.weight)
    if not standings:
        raise _nothing_works(found, lap.failures)
    winner = standings[0].key
    sizes = lap.sizes()
    preference = {c: (*found.weight(c), str(c)) for c in sizes[0]}
    few = choose(sizes, [w.weight for w in found.workloads], winner, preference)
    places = [
        Place(
            c, lap.measurements(c)[index],
            standings if c == winner else around(sizes[index], c, preference),
            few.regret[index], *_default(found, sizes[index]), _against(found, c, index),
        )
        for index, c in enumerate(few.chosen)
    ]
    found.settle(winner, lap.measurements(winner))
    unbeaten = sorted({n for p in places for n, rival in p.rivals.items() if not rival.is_beaten})
    found.report("done", candidate=winner, unbeaten=tuple(unbeaten))
    return Learned(tuple(places), True, few, lap.rounds, lap.disturbed)


def _against(found: Exploration, candidate: Candidate, index: int) -> dict[str, Rival]:
    """Other implementations on one workload."""
    samples = dict(found.pool.contest(candidate, found.workloads[index], found.budget.rounds))
    return standing(samples.pop(""), samples)


def _default(
    found: Exploration, samples: Mapping[Candidate, Sequence[float]]
) -> tuple[str, float]:
    """The family of the fastest default on one workload, and its time; 0 when none ran."""
    ran = [(median(samples[c]), c.family.name) for c in found.defaults if c in samples]
    us, family = min(ran, default=(0.0, ""))
    return family, us


def _heat(found: Exploration) -> Heat:
    """One lap of the pool, with the samples behind its measurements."""
    pool = found.pool

    def run(
        candidates: Sequence[Candidate], workload: Workload, rounds: int
    ) -> list[tuple[Sequence[float], Measurement] | Failure]:
        outcomes = found.guard.undisturbed(
            lambda: pool.lap(candidates, workload, rounds), "a heat of the final lap"
        )
        return [
            outcome if isinstance(outcome, Failure) else (pool.lap_samples[candidate], outcome)
            for candidate, outcome in zip(candidates, outcomes, strict=True)
        ]

    return run


def _interrupted(found: Exploration, store: Store, driver: str) -> Interrupted:
    """Store the best so far. The entry of a finished search only gives way to what beat it here."""
    stored = found.stored(store)
    best = found.trials.best
    entries: tuple[Entry, ...] = ()
    if best and (stored is None or stored in found.trials):
        trial = found.trials[best]
        places = tuple(Place(best, m) for m in trial.measurements)
        entries = entries_of(Learned(places, False), found, driver)
        store.put(*entries)
    return Interrupted(
        f"stopped after {found.explorer.tried} candidates, which are kept"
        + ("; the best so far is stored" if entries else "; nothing new is stored"),
        f"the same command goes on from there ({found.journal.where})",
        entries[0] if entries else None,
    )


def _nothing_works(
    found: Exploration, late: dict[Candidate, Failure] | None = None
) -> RunError:
    failures = [t.failure for t in found.trials.values() if t.failure]
    failures += (late or {}).values()
    if not failures:
        return RunError(
            f"no candidate for {found.problem} was timed within {found.budget.minutes:g} minutes",
            "raise --minutes",
        )
    kinds = Counter(f"{f.stage} ({f.kind})" for f in failures)
    return RunError(
        f"all {len(failures)} candidates for {found.problem} failed: "
        + ", ".join(f"{count} at {kind}" for kind, count in kinds.most_common())
        + f"; the first: {failures[0].reason}",
        failures[0].reproduce or None,
    )
