"""Every candidate that a search knows, and how they stand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from fagen.model import Candidate
from fagen.trial import Trial
from fagen.workload import Workload


class Tried(dict[Candidate, Trial]):
    """What came of each. Those timed on every workload are ranked."""

    def __init__(self, workloads: Sequence[Workload]) -> None:
        super().__init__()
        self._workloads = len(workloads)
        self._best: tuple[float, str, Candidate | None] = (math.inf, "", None)

    def keep(self, candidate: Candidate, trial: Trial) -> None:
        anew = candidate == self.best
        self[candidate] = trial
        if anew:  # it may be the best no longer
            self._best = min(map(self._place, self), key=lambda place: place[:2])
        else:
            self._best = min(self._best, self._place(candidate), key=lambda place: place[:2])

    def settle(self, winner: Candidate, score: float) -> None:
        """The final lap has decided."""
        self._best = (score, str(winner), winner)

    def _place(self, candidate: Candidate) -> tuple[float, str, Candidate | None]:
        trial = self[candidate]
        if trial.score is None or not self._is_complete(trial):
            return (math.inf, "", None)
        return (trial.score, str(candidate), candidate)

    def _is_complete(self, trial: Trial) -> bool:
        return trial.failure is None and len(trial.measurements) == self._workloads

    @property
    def best(self) -> Candidate | None:
        return self._best[2]

    @property
    def best_score(self) -> float:
        return self._best[0]

    def by_score(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """The fastest first; those without a time last."""
        return sorted(candidates, key=lambda c: (self[c].score or math.inf, str(c)))

    def ranked(self) -> list[Candidate]:
        """Of all that were timed on every workload."""
        return self.by_score(c for c, trial in self.items() if self._is_complete(trial))

    def fastest_at(self, index: int) -> list[Candidate]:
        """On one workload."""
        return sorted(
            self.ranked(), key=lambda c: (self[c].measurements[index].median_us, str(c))
        )

    def failures(self) -> dict[str, int]:
        """How many failed at each stage, and how."""
        failures = [t.failure for t in self.values() if t.failure]
        return dict(sorted(Counter(f"{f.stage}: {f.kind}" for f in failures).items()))

    def waited(self) -> float:
        """The share of the time in which the device waited for builds."""
        spent = {part: sum(t.seconds.get(part, 0.0) for t in self.values())
                 for part in ("wait", "run")}
        return spent["wait"] / (sum(spent.values()) or 1.0)
