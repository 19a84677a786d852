"""Which candidate to try next.

Seeds first, then, if everything legal fits the budget, everything. A larger space is explored by
turns: the sampler (TPE) looks where good points are dense, and a model of the space picks the legal
point that promises most, so that the last few percent are not left to luck. Several families share
the trials: one that is far behind gets few turns.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from fagen.errors import StoreError
from fagen.families.base import Space
from fagen.ledger import Proposal, Study
from fagen.model import Candidate
from fagen.surrogate import coordinates, most_promising

_SAMPLER_TURN = 6  # every so many points the sampler is asked, in between the model
_ASKS = 8  # of the sampler for one new legal point, before a point is drawn instead
_MODEL_FROM = 8  # points timed before the model is worth asking
_MODEL_OF = 120  # of the fastest points the model is made
_MODEL_OVER = 1000  # legal points, drawn anew each time where there are more
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
    elsewhere: set[Candidate] = field(default_factory=set)  # other workers have them

    @property
    def best(self) -> float:
        return min(self.scores.values(), default=math.inf)

    def is_new(self, candidate: Candidate) -> bool:
        held = self.planned | self.elsewhere if self.elsewhere else self.planned
        return candidate not in self.scores and candidate not in held

    def is_legal(self, candidate: Candidate) -> bool:
        return self.space.family.allows(candidate)

    def fastest(self) -> list[Candidate]:
        timed = [c for c, score in self.scores.items() if math.isfinite(score)]
        return sorted(timed, key=lambda c: (self.scores[c], str(c)))

    @cached_property
    def left(self) -> dict[Candidate, None]:
        """Legal points that are new, in the space's order."""
        return dict.fromkeys(c for c in self.space.legal() if self.is_new(c))

    def plan(self, candidate: Candidate) -> None:
        self.planned.add(candidate)
        self.left.pop(candidate, None)

    def learn(self, candidate: Candidate, score: float) -> None:
        """From elsewhere."""
        self.scores[candidate] = score
        self.elsewhere.discard(candidate)
        if "left" in self.__dict__:
            self.left.pop(candidate, None)

    def leave_to_others(self, candidates: set[Candidate]) -> list[Candidate]:
        """All that other workers have now. Returns what they had before and gave up."""
        if not self.elsewhere and not candidates:
            return []
        freed = [c for c in self.elsewhere - candidates if c not in self.scores]
        self.elsewhere = candidates - self.planned
        for candidate in self.elsewhere:
            self.left.pop(candidate, None)
        for candidate in freed:
            self.left[candidate] = None
        return sorted(freed, key=str)

    def coordinates(self, candidates: Sequence[Candidate]) -> list[list[float]]:
        knobs = self.space.knobs()
        return [coordinates(knobs, c.config) for c in candidates]


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
        """The next candidate, or None when the budget or the space is used up. What another worker
        claimed first is left to it."""
        while self._waiting() + self.tried < self.trials:
            planned = self._seed() or (self._walk() if self._points else self._search())
            if planned is None or self._claim(planned):
                return planned
        return None

    def _waiting(self) -> int:
        return sum(len(lane.planned) + len(lane.elsewhere) for lane in self.lanes.values())

    def _claim(self, planned: Planned) -> bool:
        lane = self.lane(planned.candidate)
        try:
            ours = lane.study.claim(planned.proposal)
        except StoreError:
            self._seeds.appendleft(planned.candidate)
            raise
        if ours:
            lane.plan(planned.candidate)
        else:
            lane.study.withdraw(planned.proposal)
            lane.elsewhere.add(planned.candidate)
            lane.left.pop(planned.candidate, None)
        return ours

    def is_beyond(self, planned: Planned) -> bool:
        """Others claimed at the same moment, and there are more points than trials now. Who claimed
        last gives up."""
        beyond = self._waiting() + self.tried - self.trials
        return beyond > 0 and beyond > self.lane(planned.candidate).study.later(planned.proposal)

    def leave_to_others(self, lane: Lane, candidates: set[Candidate]) -> None:
        """What a worker gave up, or died over, is tried before anything else."""
        self._seeds.extendleft(lane.leave_to_others(candidates))

    @property
    def awaits_others(self) -> bool:
        return any(lane.elsewhere for lane in self.lanes.values())

    def tell(self, planned: Planned, score: float | None, record: dict[str, Any]) -> None:
        """What came of it. On disk before this returns."""
        lane = self.lane(planned.candidate)
        lane.study.tell(planned.proposal, score, record)
        lane.planned.discard(planned.candidate)
        lane.scores[planned.candidate] = math.inf if score is None else score

    def correct(self, candidate: Candidate, score: float | None, record: dict[str, Any]) -> None:
        """It was timed again, and what was told before does not count."""
        lane = self.lane(candidate)
        lane.study.tell(_plain(candidate).proposal, score, record)
        lane.scores[candidate] = math.inf if score is None else score

    def withdraw(self, planned: Planned) -> None:
        """It will not be tried."""
        lane = self.lane(planned.candidate)
        lane.planned.discard(planned.candidate)
        lane.left[planned.candidate] = None
        lane.study.give_up(planned.proposal)

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
            planned = self._model(lane) if next(self._turns) % _SAMPLER_TURN else None
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
            elif candidate in lane.planned or candidate in lane.elsewhere:
                lane.study.withdraw(proposal)
            elif candidate in lane.scores:
                score = lane.scores[candidate]
                lane.study.tell(proposal, None if math.isinf(score) else score)
            else:
                return Planned(candidate, proposal)
        return None

    def _model(self, lane: Lane) -> Planned | None:
        """The new legal point that promises most by what was measured."""
        known = lane.fastest()[:_MODEL_OF]
        new = list(lane.left)
        if len(known) < _MODEL_FROM or not new:
            return None
        if len(new) > _MODEL_OVER:
            new = self._rng.sample(new, _MODEL_OVER)
        best = most_promising(
            lane.coordinates(known), [lane.scores[c] for c in known], lane.coordinates(new)
        )
        return _plain(new[best])

    def _draw(self, lane: Lane) -> Planned | None:
        return _plain(self._rng.choice(list(lane.left))) if lane.left else None


def _plain(candidate: Candidate) -> Planned:
    return Planned(candidate, Proposal(asdict(candidate.config)))
