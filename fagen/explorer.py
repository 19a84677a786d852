"""Which candidate to try next.

Seeds first, then, if everything legal fits the budget, everything. A larger space is explored by
turns: the sampler (TPE) looks where good points are dense, and the neighbours of the best points,
one knob away, are tried so that the last few percent are not left to luck. Several families share
the trials: one that is far behind gets few turns.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fagen.families.base import Space
from fagen.journal import Proposal, Study
from fagen.model import Candidate

_ASKS = 40  # of the sampler for one new legal point, before a point is drawn instead
_DRAWS = 200  # of a random point, before the space is walked
_NEAR = 1.15  # neighbours are tried of points within this factor of the best
_INCUMBENTS = 4
_FAR_BEHIND = 4  # power of the lag by which a family loses turns


@dataclass(frozen=True)
class Planned:
    """A candidate that is to be tried, and the proposal that must be told."""

    candidate: Candidate
    proposal: Proposal


@dataclass
class Lane:
    """One family's space, its study, and what is known of its points."""

    space: Space
    study: Study
    scores: dict[Candidate, float] = field(default_factory=dict)  # inf: tried and failed
    planned: set[Candidate] = field(default_factory=set)

    @property
    def best(self) -> float:
        return min(self.scores.values(), default=math.inf)

    def is_new(self, candidate: Candidate) -> bool:
        return candidate not in self.scores and candidate not in self.planned

    def is_legal(self, candidate: Candidate) -> bool:
        return not self.space.family.broken_rules(candidate)

    def incumbents(self) -> list[Candidate]:
        near = [c for c, score in self.scores.items() if score <= self.best * _NEAR]
        return sorted(near, key=lambda c: (self.scores[c], str(c)))[:_INCUMBENTS]


class Explorer:
    """Plans candidates over all lanes. At most ``trials`` points are planned in all."""

    def __init__(self, lanes: Sequence[Lane], trials: int, seed: int) -> None:
        self.lanes = {lane.space.family.name: lane for lane in lanes}
        self.trials = trials
        self._rng = random.Random(seed)
        self._seeds: deque[Candidate] = deque()
        everything = itertools.chain.from_iterable(lane.space.legal() for lane in lanes)
        points = list(itertools.islice(everything, trials + 1))
        self.exhaustive = len(points) <= trials
        self.total = len(points) if self.exhaustive else trials
        self._points = iter(points) if self.exhaustive else None
        self._turns = itertools.count()

    def seed(self, candidates: Sequence[Candidate]) -> None:
        """Candidates to try before anything else."""
        self._seeds.extend(candidates)

    @property
    def tried(self) -> int:
        """Points measured or failed, in this run and those before it."""
        return sum(len(lane.scores) for lane in self.lanes.values())

    def plan(self) -> Planned | None:
        """The next candidate, or None when the budget or the space is used up."""
        waiting = sum(len(lane.planned) for lane in self.lanes.values())
        if self.tried + waiting >= self.trials:
            return None
        planned = self._seed() or (self._walk() if self._points else self._search())
        if planned:
            self.lane(planned.candidate).planned.add(planned.candidate)
        return planned

    def tell(self, planned: Planned, score: float | None, record: dict[str, Any]) -> None:
        """What came of it. On disk before this returns."""
        lane = self.lane(planned.candidate)
        lane.study.tell(planned.proposal, score, record)
        lane.planned.discard(planned.candidate)
        lane.scores[planned.candidate] = math.inf if score is None else score

    def withdraw(self, planned: Planned) -> None:
        """It will not be tried."""
        lane = self.lane(planned.candidate)
        lane.planned.discard(planned.candidate)
        lane.study.withdraw(planned.proposal)

    def lane(self, candidate: Candidate) -> Lane:
        return self.lanes[candidate.family.name]

    # --- where candidates come from ----------------------------------------------------------

    def _seed(self) -> Planned | None:
        return self._first_new(self._seeds.popleft() for _ in range(len(self._seeds)))

    def _walk(self) -> Planned | None:
        assert self._points is not None
        return self._first_new(self._points)

    def _first_new(self, candidates: Iterator[Candidate]) -> Planned | None:
        for candidate in candidates:
            if self.lane(candidate).is_new(candidate):
                return _plain(candidate)
        return None

    def _search(self) -> Planned | None:
        lanes = list(self.lanes.values())
        while lanes:
            lane = self._rng.choices(lanes, [self._turn_share(lane) for lane in lanes])[0]
            planned = self._neighbour(lane) if next(self._turns) % 2 else self._ask(lane)
            planned = planned or self._ask(lane) or self._draw(lane)
            if planned:
                return planned
            lanes.remove(lane)  # this family has nothing new any more
        return None

    def _turn_share(self, lane: Lane) -> float:
        best = min(lane.best for lane in self.lanes.values())
        if math.isinf(lane.best) or best == 0:
            return 1.0
        return (best / lane.best) ** _FAR_BEHIND

    def _ask(self, lane: Lane) -> Planned | None:
        """A new legal point of the sampler. Others are answered at once: an illegal point as one
        that cannot be had, a repeated one with what is known."""
        for _ in range(_ASKS):
            proposal = lane.study.ask()
            candidate = lane.space.candidate(proposal.knobs)
            if not lane.is_legal(candidate):
                lane.study.tell(proposal, None)
            elif candidate in lane.planned:
                lane.study.withdraw(proposal)
            elif candidate in lane.scores:
                score = lane.scores[candidate]
                lane.study.tell(proposal, None if math.isinf(score) else score)
            else:
                return Planned(candidate, proposal)
        return None

    def _neighbour(self, lane: Lane) -> Planned | None:
        """A new legal point one knob away from one of the best, the nearest steps first."""
        for incumbent in lane.incumbents():
            for step in neighbours(lane.space, incumbent):
                new = [c for c in step if lane.is_new(c) and lane.is_legal(c)]
                if new:
                    return _plain(self._rng.choice(new))
        return None

    def _draw(self, lane: Lane) -> Planned | None:
        knobs = lane.space.knobs()
        for _ in range(_DRAWS):
            point = {name: self._rng.choice(choices) for name, choices in knobs.items()}
            candidate = lane.space.candidate(point)
            if lane.is_new(candidate) and lane.is_legal(candidate):
                return _plain(candidate)
        return self._first_new(lane.space.legal())


def neighbours(space: Space, candidate: Candidate) -> list[list[Candidate]]:
    """Points that differ in one knob: first those one step away in the knob's order of choices,
    then the rest."""
    near: list[Candidate] = []
    far: list[Candidate] = []
    for name, choices in space.knobs().items():
        at = choices.index(getattr(candidate.config, name))
        for index, choice in enumerate(choices):
            if index != at:
                (near if abs(index - at) == 1 else far).append(
                    candidate.with_config(**{name: choice})
                )
    return [near, far]


def _plain(candidate: Candidate) -> Planned:
    return Planned(candidate, Proposal(asdict(candidate.config)))
