"""The final lap: the best few, timed in turns, until the winner and its ties are known.

Rounds in which the device was not ours alone are thrown away, and counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median, quantiles

from fagen import winner
from fagen.budget import Budget
from fagen.model import Candidate, Failure, Measurement
from fagen.winner import Standing
from fagen.workload import Workload

# Rounds of a heat: per candidate its samples in microseconds and its measurement, or a failure.
Heat = Callable[
    [Sequence[Candidate], Workload, int], list[tuple[Sequence[float], Measurement] | Failure]
]

_SURE = 0.0035  # the standard error of a median that two runs agree on to 1.5%


class Finale:
    """Samples of the finalists, round by round, summed over the workloads by weight."""

    def __init__(
        self, finalists: Sequence[Candidate], workloads: Sequence[Workload], heat: Heat
    ) -> None:
        self.alive = list(finalists)
        self.workloads, self._heat = workloads, heat
        self.failures: dict[Candidate, Failure] = {}
        self._times: dict[Candidate, list[list[float]]] = {
            c: [[] for _ in workloads] for c in finalists
        }
        self._measured: dict[Candidate, list[Measurement]] = {}

    def run(self, budget: Budget, after: Callable[[int], None]) -> None:
        """Heats until one finalist is left, or the budget's number of them or its time is used up.
        While most rounds are disturbed there are more, up to twice as many; while the fastest one's
        time is not sure there is more time, up to twice as much."""
        begin = time.monotonic()
        for number in range(1, 2 * budget.heats + 1):
            self._one_heat(budget.rounds)
            after(number)
            calm = self.rounds - self.disturbed >= self.rounds / 2
            spent = (time.monotonic() - begin) / budget.lap_s
            enough = number >= budget.heats or spent > (1 if self._is_sure() else 2)
            if len(self.alive) < 2 or (enough and calm):
                return
            lost = self._hopeless()
            self.alive = [c for c in self.alive if c not in lost]

    def _is_sure(self) -> bool:
        """Another run would find the same medians."""
        fastest = min(self._ran(), key=lambda c: median(self.totals(c)), default=None)
        return fastest is None or all(_error(size[fastest]) <= _SURE for size in self.sizes())

    def _hopeless(self) -> set[Candidate]:
        """In all, and for every single workload too."""
        lost = winner.hopeless({c: self.totals(c) for c in self.alive})
        if len(self.workloads) > 1:
            for size in self.sizes():
                lost &= winner.hopeless({c: size[c] for c in self.alive})
        return lost

    @property
    def rounds(self) -> int:
        """The longest that anyone was in."""
        return max((len(times[0]) for times in self._times.values()), default=0)

    @property
    def disturbed(self) -> int:
        """Rounds thrown away: something else had the device, or its clocks fell."""
        return self.rounds - len(self._calm())

    def _calm(self) -> list[int]:
        samples = {c: self._all(c) for c in self._ran()}
        return winner.calm(samples) if samples else []

    def _ran(self) -> list[Candidate]:
        return [c for c in self._measured if c not in self.failures]

    def _one_heat(self, rounds: int) -> None:
        for index, workload in enumerate(self.workloads):
            for candidate, outcome in zip(
                list(self.alive), self._heat(self.alive, workload, rounds), strict=True
            ):
                if isinstance(outcome, Failure):
                    self.failures[candidate] = outcome
                    continue
                samples, measurement = outcome
                self._times[candidate][index].extend(samples)
                self._measured.setdefault(candidate, []).append(measurement)
            self.alive = [c for c in self.alive if c not in self.failures]

    def _all(self, candidate: Candidate) -> list[float]:
        """Time of each round, by weight."""
        rounds = zip(*self._times[candidate], strict=True)
        return [
            sum(w.weight * t for w, t in zip(self.workloads, times, strict=True))
            for times in rounds
        ]

    def totals(self, candidate: Candidate) -> list[float]:
        """The same of the calm rounds only."""
        return _at(self._calm(), self._all(candidate))

    def sizes(self) -> list[dict[Candidate, list[float]]]:
        """The calm rounds of each workload."""
        calm = self._calm()
        return [
            {c: _at(calm, self._times[c][index]) for c in self._ran()}
            for index in range(len(self.workloads))
        ]

    def standings(
        self, preference: Callable[[Candidate], tuple[int, ...]]
    ) -> list[Standing[Candidate]]:
        """The winner first; empty when all failed. ``preference`` decides among ties, the least
        first, and after it the name: nothing that is measured."""
        calm = self._calm()
        samples = {c: _at(calm, self._all(c)) for c in self._ran()}
        if not samples:
            return []
        return winner.rank(samples, {c: (*preference(c), str(c)) for c in samples})

    def measurements(self, candidate: Candidate) -> tuple[Measurement, ...]:
        """One per workload, over the calm rounds of all heats."""
        calm = self._calm()
        return tuple(
            _pooled(measured, _at(calm, times)) for measured, times in
            zip(self._measured[candidate], self._times[candidate], strict=False)
        )


def _at(rounds: Sequence[int], times: Sequence[float]) -> list[float]:
    return [times[r] for r in rounds if r < len(times)]


def _error(times: Sequence[float]) -> float:
    """The standard error of the median, as a share of it, from the quartiles."""
    if len(times) < 2:
        return math.inf
    low, middle, high = quantiles(times, n=4)
    return 1.25 * (high - low) / 1.35 / math.sqrt(len(times)) / middle


def _pooled(measurement: Measurement, times: Sequence[float]) -> Measurement:
    """The measurement with its times taken over all samples."""
    middle = median(times)
    low, _, high = quantiles(times, n=4) if len(times) > 1 else (middle,) * 3
    return replace(
        measurement,
        median_us=middle, low_us=low, high_us=high, samples=len(times),
        tflops=measurement.tflops * measurement.median_us / middle,
    )
