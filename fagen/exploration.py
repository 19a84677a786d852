"""The first part of a search: try candidates until the budget is used up, losing nothing."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from fagen import kin
from fagen.budget import Budget
from fagen.errors import BuildError, FagenError
from fagen.explorer import Explorer, Lane, Planned
from fagen.families.base import Family, Space
from fagen.ledger import Away, Ledger, Record
from fagen.model import Binary, Candidate, Failure, Measurement, Problem
from fagen.stopwatch import Stopwatch
from fagen.store import Store
from fagen.taint import Guard
from fagen.target import Target
from fagen.trial import Event, Trial, from_record, to_record
from fagen.tried import Tried
from fagen.tunable import Pool
from fagen.workload import Workload

_AHEAD = 8  # candidates planned, so that builds run ahead of the device
_AHEAD_OF_OTHERS = 4  # the same where other workers would like to have them
_PER_WORKLOAD = 2  # finalists that are there for one of several workloads
_BETTER = 0.997  # what counts as progress for patience
_SEEDS = 8  # entries of neighbours that are tried


class Exploration:
    """What is tried and known of one problem."""

    def __init__(
        self, problem: Problem, workloads: Sequence[Workload], target: Target,
        families: Sequence[Family], pool: Pool, budget: Budget, journal: Ledger,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.problem, self.workloads, self.target = problem, tuple(workloads), target
        self.pool, self.budget, self.journal = pool, budget, journal
        self._emit = on_event or (lambda event: None)
        self._start = time.monotonic()
        self.trials = Tried(workloads)
        self.defaults = [f.default(problem, target) for f in families]
        spaces = [Space(problem, target, f) for f in families]
        about = {
            "problem": str(problem), "target": asdict(target),
            "workloads": [[str(w), w.weight] for w in workloads],
        }
        self.lanes = [
            Lane(s, journal.study(s.family.name, s.knobs(), budget.seed, about)) for s in spaces
        ]
        self.resumed = sum(self._remember(lane, lane.study.records) for lane in self.lanes)
        self.explorer = Explorer(self.lanes, budget.trials, budget.seed + journal.salt)
        self._stopwatch = Stopwatch(pool, problem, workloads, budget, self.trials, self.defaults)
        self.guard: Guard[Candidate] = Guard(
            self._stopwatch.look, self._again, self.trials.by_score,
            lambda says: self.report("again", says=says), self._start + 60 * budget.minutes,
        )

    def _remember(self, lane: Lane, records: Sequence[Record]) -> int:
        """Take what an earlier run or another worker told as known, as long as the source is still
        the same."""
        for record in records:
            candidate = self._local(record["family"], record["config"])
            if candidate is None or self.source_digest(candidate) != record["source"]:
                continue
            trial = from_record(record)
            self.trials.keep(candidate, trial)
            lane.learn(candidate, math.inf if trial.score is None else trial.score)
        return len(lane.scores)

    def _local(self, family: str, config: dict[str, object]) -> Candidate | None:
        """A config from elsewhere as a candidate of this search, if it can be one."""
        for lane in self.lanes:
            if lane.space.family.name == family:
                try:
                    candidate = lane.space.candidate(config)
                except FagenError:  # a knob or a choice that is no more
                    return None
                return candidate if lane.is_legal(candidate) else None
        return None

    def source_digest(self, candidate: Candidate) -> str:
        """Empty when it does not render: then that is the candidate's failure."""
        try:
            return self.pool.renderer.render(candidate).digest
        except FagenError:
            return ""

    # --- seeds ---------------------------------------------------------------------------------

    def seed(self, store: Store) -> None:
        """The defaults, then what won here and on like problems, nearest first."""
        like = kin.like(store, self.problem, self.target, self.workloads[0])
        local = [self._local(e.family, e.config) for e in like]
        winners = dict.fromkeys(c for c in local if c and c not in self.defaults)
        self.explorer.seed([*self.defaults, *list(winners)[:_SEEDS]])

    def stored(self, store: Store) -> Candidate | None:
        """What the store holds for exactly this search."""
        entry = kin.same(store, self.problem, self.target, self.workloads[0])
        return self._local(entry.family, entry.config) if entry else None

    # --- trying --------------------------------------------------------------------------------

    def run(self) -> None:
        """Builds run ahead of the device: a few candidates are always planned."""
        ahead: deque[Planned] = deque()
        self.report("start")
        stale, best = 0, self.trials.best_score
        try:
            while not self._out_of_time() and not 0 < self.budget.patience <= stale:
                in_touch = self._plan(ahead)
                if ahead:
                    self._try(ahead.popleft())
                    stale = 0 if self.trials.best_score < best * _BETTER else stale + 1
                    best = min(best, self.trials.best_score)
                    if self.guard.due:
                        self.guard.check()
                        best = self.trials.best_score
                elif in_touch and not self.explorer.awaits_others:
                    break
                else:
                    self.journal.wait()
            self.guard.finish()
        finally:
            for planned in ahead:
                self.explorer.withdraw(planned)

    def _plan(self, ahead: deque[Planned]) -> bool:
        """False while a shared storage is away: then what was planned before is tried first."""
        most = _AHEAD if self.journal.alone else _AHEAD_OF_OTHERS
        try:
            self._hear()
            while len(ahead) < most and (planned := self.explorer.plan()):
                ahead.append(planned)
                self._hear()
                if self.explorer.is_beyond(planned):
                    self.explorer.withdraw(ahead.pop())
                    break
                self.pool.prepare([planned.candidate])
        except Away:
            return False
        return True

    def _hear(self) -> None:
        """What other workers told, and what they hold."""
        for lane in self.lanes:
            news = lane.study.news()
            self._remember(lane, news.told)
            name = lane.space.family.name
            held = (self._local(name, knobs) for knobs in news.taken)
            self.explorer.leave_to_others(lane, {c for c in held if c})

    def _out_of_time(self) -> bool:
        return time.monotonic() - self._start >= self.budget.minutes * 60

    def _try(self, planned: Planned) -> None:
        candidate = planned.candidate
        start = time.monotonic()
        built = self.pool.build(candidate)
        ready = time.monotonic()
        trial = self._timed(candidate)
        trial = replace(trial, seconds={
            "compile": 0.0 if isinstance(built, Failure) else round(built.binary.seconds, 3),
            "wait": round(ready - start, 3),
            "run": round(time.monotonic() - ready, 3),
        })
        self.explorer.tell(planned, trial.score, self._record(candidate, trial))
        self.trials.keep(candidate, trial)
        self.report("trial", candidate)

    def _record(self, candidate: Candidate, trial: Trial) -> Record:
        return to_record(candidate, self.source_digest(candidate), trial)

    def _timed(self, candidate: Candidate) -> Trial:
        trial, conditions = self._stopwatch.time(candidate)
        if trial.failure is None:
            self.guard.timed(candidate, conditions)
        return trial

    def _again(self, candidate: Candidate) -> None:
        """The device was not ours alone: what was told before does not count any more."""
        start, before = time.monotonic(), self.trials[candidate]
        trial = self._timed(candidate)
        spent = before.seconds.get("run", 0.0) + time.monotonic() - start
        trial = replace(trial, again=before.again + 1,
                        seconds=before.seconds | {"run": round(spent, 3)})
        self.explorer.correct(candidate, trial.score, self._record(candidate, trial))
        self.trials.keep(candidate, trial)

    # --- what is known -------------------------------------------------------------------------

    def binary(self, candidate: Candidate) -> Binary:
        """Built before, so this costs nothing."""
        built = self.pool.build(candidate)
        if isinstance(built, Failure):
            raise BuildError(f"{candidate} was built and measured, and now: {built.reason}")
        return built.binary

    def settle(self, winner: Candidate, measurements: Sequence[Measurement]) -> None:
        """The final lap has decided."""
        score = sum(
            w.weight * m.median_us for w, m in zip(self.workloads, measurements, strict=True)
        )
        self.trials.settle(winner, score)

    def finalists(self) -> list[Candidate]:
        """The best few, those of each workload, and every default that works."""
        ranked = self.trials.ranked()
        works = [c for c in self.defaults if c in self.trials and self.trials[c].failure is None]
        several = range(len(self.workloads)) if len(self.workloads) > 1 else ()
        here = [c for index in several for c in self.trials.fastest_at(index)[:_PER_WORKLOAD]]
        return list(dict.fromkeys([*ranked[: self.budget.finalists], *works, *here]))

    def weight(self, candidate: Candidate) -> tuple[int, int]:
        """Shared memory and registers, which decide among ties."""
        binary = self.binary(candidate)
        steps = candidate.family.kernel(self.problem.op).plan(candidate).steps
        dynamic = max((step.shared_bytes for step in steps), default=0)
        return binary.shared_bytes + dynamic, binary.registers

    def report(
        self, kind: str, candidate: Candidate | None = None, done: int = 0, total: int = 0,
        disturbed: int = 0, unbeaten: tuple[str, ...] = (), says: str = "",
    ) -> None:
        best, trial = self.trials.best, self.trials.get(candidate) if candidate else None
        self._emit(Event(
            kind, self.problem,
            done or self.explorer.tried, total or self.explorer.total,
            time.monotonic() - self._start, candidate, trial.outcome if trial else None,
            best, self.trials.best_score if best else 0.0,
            sum(self.trials.failures().values()), self.resumed, self.explorer.exhaustive,
            disturbed, self.trials.waited(), unbeaten, self.guard.thrown_away, says,
        ))
