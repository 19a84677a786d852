"""The end of a search as entries of the store."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fagen
from fagen.exploration import Exploration
from fagen.model import Binary, Candidate, Entry, Measurement
from fagen.winner import Standing

_RUNNERS_UP = 8


@dataclass(frozen=True)
class Learned:
    """The winner, its time on every workload, and how the finalists stood."""

    winner: Candidate
    measurements: Sequence[Measurement]
    standings: Sequence[Standing[Candidate]]  # the winner first; none when there was no lap
    complete: bool
    rounds: int = 0  # of the final lap
    disturbed: int = 0  # of them, thrown away


def entries_of(learned: Learned, found: Exploration, driver: str) -> tuple[Entry, ...]:
    """One per workload, with the same config."""
    winner = learned.winner
    binary = found.binary(winner)
    provenance = {
        "source": found.source_digest(winner),
        "compiler": binary.compiler,
        "driver": driver,
        "fagen": fagen.__version__,
        "date": datetime.date.today().isoformat(),
        "search": _search(learned, found),
    }
    return tuple(
        Entry(
            found.problem, found.target, workload, winner.family.name, asdict(winner.config),
            measurement, _binary(binary, found.weight(winner)[0]),
            tuple(_runners_up(learned, found)), provenance,
        )
        for workload, measurement in zip(found.workloads, learned.measurements, strict=True)
    )


def _binary(binary: Binary, shared_bytes: int) -> dict[str, Any]:
    return {
        "sha256": binary.sha256,
        "arch": binary.arch,
        "registers": binary.registers,
        "spill_bytes": binary.spill_bytes,
        "shared_bytes": shared_bytes,
    }


def _search(learned: Learned, found: Exploration) -> dict[str, Any]:
    """How much was looked at, and whether it paid."""
    summary: dict[str, Any] = {
        "tried": found.explorer.tried,
        "exhaustive": found.explorer.exhaustive and found.explorer.tried >= found.explorer.total,
        "complete": learned.complete,
        "seed": found.budget.seed,
        "workloads": [str(w) for w in found.workloads],
        "failures": found.failures(),
    }
    if learned.rounds:
        summary["rounds"] = learned.rounds
        summary["disturbed_rounds"] = learned.disturbed
    default = next((s for s in learned.standings if s.key in found.defaults), None)
    if default:
        summary["default_slower"] = default.gap.slower
        summary["beats_default"] = default.gap.low > 0
    return summary


def _runners_up(learned: Learned, found: Exploration) -> list[dict[str, Any]]:
    """The finalists behind the winner: all that tie, the best of the rest, the default."""
    shown = [
        s for place, s in enumerate(learned.standings[1:])
        if place < _RUNNERS_UP or s.tie or s.key in found.defaults
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
