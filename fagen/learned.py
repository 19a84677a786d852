"""The end of a search as entries of the store."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import fagen
from fagen.exploration import Exploration
from fagen.model import Binary, Candidate, Entry, Measurement
from fagen.portfolio import Portfolio
from fagen.rivals import Rival
from fagen.winner import Standing
from fagen.workload import Workload

_RUNNERS_UP = 8


@dataclass(frozen=True)
class Place:
    """What serves one workload: its time there, how the finalists stood, how far from the fastest
    it is, and what the fastest family's default took."""

    candidate: Candidate
    measurement: Measurement
    standings: Sequence[Standing[Candidate]] = ()  # the chosen first; none when there was no lap
    regret: float = 0.0
    default_family: str = ""
    default_us: float = 0.0
    rivals: Mapping[str, Rival] = field(default_factory=dict)  # other implementations


@dataclass(frozen=True)
class Learned:
    """A place for every workload."""

    places: Sequence[Place]
    complete: bool
    few: Portfolio[Candidate] | None = None
    rounds: int = 0  # of the final lap
    disturbed: int = 0  # of them, thrown away


def entries_of(learned: Learned, found: Exploration, driver: str) -> tuple[Entry, ...]:
    """One per workload."""
    return tuple(
        _entry(workload, place, learned, found, driver)
        for workload, place in zip(found.workloads, learned.places, strict=True)
    )


def _entry(
    workload: Workload, place: Place, learned: Learned, found: Exploration, driver: str
) -> Entry:
    winner = place.candidate
    binary = found.binary(winner)
    provenance = {
        "source": found.source_digest(winner),
        "compiler": binary.compiler,
        "driver": driver,
        "fagen": fagen.__version__,
        "date": datetime.date.today().isoformat(),
        "search": _search(place, learned, found),
    }
    return Entry(
        found.problem, found.target, workload, winner.family.name, asdict(winner.config),
        place.measurement, _binary(binary, found.weight(winner)[0]),
        tuple(_runners_up(place, found)), provenance,
    )


def _binary(binary: Binary, shared_bytes: int) -> dict[str, Any]:
    return {
        "sha256": binary.sha256,
        "arch": binary.arch,
        "registers": binary.registers,
        "spill_bytes": binary.spill_bytes,
        "shared_bytes": shared_bytes,
    }


def _search(place: Place, learned: Learned, found: Exploration) -> dict[str, Any]:
    """How much was looked at, and whether it paid."""
    summary: dict[str, Any] = {
        "tried": found.explorer.tried,
        "exhaustive": found.explorer.exhaustive and found.explorer.tried >= found.explorer.total,
        "complete": learned.complete,
        "seed": found.budget.seed,
        "workloads": [str(w) for w in found.workloads],
        "failures": found.trials.failures(),
        "device_waited": round(found.trials.waited(), 3),
        "thrown_away": found.guard.thrown_away,
    }
    if learned.rounds:
        summary["rounds"] = learned.rounds
        summary["disturbed_rounds"] = learned.disturbed
    default = next((s for s in place.standings if s.key in found.defaults), None)
    if default:
        summary["default_slower"] = default.gap.slower
        summary["beats_default"] = default.gap.low > 0
    if place.default_us:
        summary |= {"default_family": place.default_family, "default_us": place.default_us}
    if place.rivals:
        summary["peers"] = {name: rival.to_dict() for name, rival in place.rivals.items()}
        summary["beats_peers"] = all(rival.is_beaten for rival in place.rivals.values())
    if learned.few and len(found.workloads) > 1:
        summary |= _regret(learned.few, place)
    return summary


def _regret(few: Portfolio[Candidate], place: Place) -> dict[str, Any]:
    """How much slower than the fastest finalist: here, and over all workloads; and what one config
    for all would have cost."""
    return {
        "configs": few.configs,
        "regret": place.regret, "regret_mean": few.mean, "regret_worst": few.worst,
        "one_config_mean": few.shared_mean, "one_config_worst": few.shared_worst,
    }


def _runners_up(place: Place, found: Exploration) -> list[dict[str, Any]]:
    """The finalists behind the winner: all that tie, the best of the rest, the default."""
    shown = [
        s for position, s in enumerate(place.standings[1:])
        if position < _RUNNERS_UP or s.tie or s.key in found.defaults
    ]
    return [
        {
            "tie": s.tie,
            "slower": s.gap.slower,
            "low": s.gap.low,
            "high": s.gap.high,
            "default": s.key in found.defaults,
            "family": s.key.family.name,
            "config": asdict(s.key.config),
        }
        for s in shown
    ]
