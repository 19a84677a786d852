"""How a search times: a candidate briefly, and again for longer when it is close to the best; in
between, a reference that is always the same."""

from __future__ import annotations

from collections.abc import Sequence

from fagen.budget import Budget
from fagen.model import Candidate, Failure, Measurement, Problem
from fagen.neighbours import Conditions
from fagen.trial import Trial
from fagen.tried import Tried
from fagen.tunable import Pool
from fagen.usual import Look
from fagen.workload import Workload

_NEAR = 1.10  # within this factor of the best, a candidate is timed again for longer
_LAGGING = 1.5  # of several workloads, the rest is skipped beyond this factor
_LOOK_S = 0.05  # of timing the reference


class Stopwatch:
    """Of one search. It reads ``trials`` and adds nothing to them."""

    def __init__(
        self, pool: Pool, problem: Problem, workloads: Sequence[Workload], budget: Budget,
        trials: Tried, defaults: Sequence[Candidate],
    ) -> None:
        self._pool, self._workloads, self._budget = pool, workloads, budget
        self._smallest = min(workloads, key=lambda w: w.flops(problem))
        self._trials, self._defaults = trials, defaults
        self._reference: Candidate | None = None
        self._fell = False

    def time(self, candidate: Candidate) -> tuple[Trial, Conditions]:
        """With the worst conditions under which one of the workloads was timed."""
        trial, conditions = self._all(candidate, self._budget.short_s)
        close = trial.score is not None and trial.score <= self._trials.best_score * _NEAR
        if close and self._budget.long_s > self._budget.short_s:
            return self._all(candidate, self._budget.long_s)
        return trial, conditions

    def _all(self, candidate: Candidate, seconds: float) -> tuple[Trial, Conditions]:
        measured: list[Measurement] = []
        score, conditions = 0.0, Conditions()
        for workload in self._workloads:
            if score > self._trials.best_score * _LAGGING:
                break
            outcome = self._pool.measure(candidate, workload, seconds)
            if isinstance(outcome, Failure):
                return Trial(failure=outcome), conditions
            measured.append(outcome)
            score += workload.weight * outcome.median_us
            conditions = max(conditions, self._pool.conditions, key=lambda c: c.busy)
        return Trial(tuple(measured), None, score), conditions

    def look(self) -> Look | None:
        """At the first default that works, at the smallest size."""
        if self._reference is None:
            tried = (c for c in self._defaults if c in self._trials)
            self._reference = next((c for c in tried if not self._trials[c].failure), None)
        if self._reference is None or self._fell:
            return None
        us = self._pool.reference(self._reference, self._smallest, _LOOK_S)
        self._fell = isinstance(us, Failure)
        return None if isinstance(us, Failure) else Look(us, self._pool.conditions)
