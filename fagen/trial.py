"""One candidate and what happened to it: its form in the journal, and what is told of a search."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fagen.model import Candidate, Failure, Measurement, Outcome, Problem


@dataclass(frozen=True)
class Trial:
    """A measurement per workload that was timed, or a failure."""

    measurements: tuple[Measurement, ...] = ()
    failure: Failure | None = None
    score: float | None = None  # microseconds over all workloads, by weight; None: failed
    # Where the time went: compile (in build children), wait (for them), run (verified and timed).
    seconds: dict[str, float] = field(default_factory=dict)
    again: int = 0  # times that it was timed anew, because the device was not as it always is

    @property
    def outcome(self) -> Outcome:
        return self.failure or self.measurements[0]


def to_record(candidate: Candidate, source: str, trial: Trial) -> dict[str, Any]:
    return {
        "family": candidate.family.name,
        "config": asdict(candidate.config),
        "source": source,
        "score": trial.score,
        "measurements": [asdict(m) for m in trial.measurements],
        "failure": asdict(trial.failure) if trial.failure else None,
        "seconds": trial.seconds,
        "again": trial.again,
    }


def from_record(record: dict[str, Any]) -> Trial:
    failure = record["failure"]
    return Trial(
        tuple(Measurement(**m) for m in record["measurements"]),
        Failure(**failure) if failure else None,
        record["score"],
        record.get("seconds", {}),
        record.get("again", 0),
    )


@dataclass(frozen=True)
class Event:
    """Something to show: ``start``, ``trial``, ``again`` (some are timed anew), ``heat`` (of the
    final lap) or ``done``."""

    kind: str
    problem: Problem
    done: int  # candidates tried, or heats run
    total: int
    elapsed_s: float
    candidate: Candidate | None = None  # the one just tried, or the winner
    outcome: Outcome | None = None
    best: Candidate | None = None
    best_us: float = 0.0  # over all workloads, by weight
    failures: int = 0
    resumed: int = 0  # candidates known from an earlier run
    exhaustive: bool = False
    disturbed: int = 0  # rounds of the final lap thrown away, because of other load
    waited: float = 0.0  # the share of the time in which the device waited for builds
    unbeaten: tuple[str, ...] = ()  # other implementations that are as fast, or faster
    thrown_away: int = 0  # timings before the final lap, because of other load
    says: str = ""  # why some are timed anew
