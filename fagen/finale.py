"""The final lap: the best few, timed in turns, until the winner and its ties are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median, quantiles

from fagen import winner
from fagen.budget import Budget
from fagen.model import Candidate, Failure, Measurement, Workload
from fagen.winner import Standing

# Rounds of a heat: per candidate its samples in microseconds and its measurement, or a failure.
Heat = Callable[
    [Sequence[Candidate], Workload, int], list[tuple[Sequence[float], Measurement] | Failure]
]


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
        """Heats until one finalist is left, or the budget's number of them."""
        for number in range(1, budget.heats + 1):
            self._one_heat(budget.rounds)
            after(number)
            if len(self.alive) < 2:
                return
            lost = winner.hopeless({c: self.totals(c) for c in self.alive})
            self.alive = [c for c in self.alive if c not in lost]

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

    def totals(self, candidate: Candidate) -> list[float]:
        """Time of each round, by weight."""
        rounds = zip(*self._times[candidate], strict=True)
        return [
            sum(w.weight * t for w, t in zip(self.workloads, times, strict=True))
            for times in rounds
        ]

    def standings(
        self, preference: Callable[[Candidate], tuple[int, ...]]
    ) -> list[Standing[Candidate]]:
        """The winner first; empty when all failed. ``preference`` decides among ties, the least
        first, and after it the name: nothing that is measured."""
        samples = {c: self.totals(c) for c in self._measured if c not in self.failures}
        if not samples:
            return []
        return winner.rank(samples, {c: (*preference(c), str(c)) for c in samples})

    def measurements(self, candidate: Candidate) -> tuple[Measurement, ...]:
        """One per workload, over all heats."""
        count = len(self.workloads)
        return tuple(
            _pooled(self._measured[candidate][index], self._times[candidate][index])
            for index in range(count)
        )


def _pooled(measurement: Measurement, times: Sequence[float]) -> Measurement:
    """The measurement with its times taken over all samples."""
    middle = median(times)
    low, _, high = quantiles(times, n=4) if len(times) > 1 else (middle,) * 3
    return replace(
        measurement,
        median_us=middle, low_us=low, high_us=high, samples=len(times),
        tflops=measurement.tflops * measurement.median_us / middle,
    )
