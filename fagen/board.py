"""Claims and outcomes of one shared Optuna study, so that no point is tried twice.

A claim is a running trial that is created whole, in one transaction. The database numbers trials in
the order in which they are created, so of several claims of one point the lowest number holds, and
everybody sees the same. The claim of a dead worker is failed, and the point is free again; where
its result had arrived already, it counts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from fagen.journal import ABOUT, RECORD
from fagen.ledger import Away, Knobs, Record
from fagen.members import Members
from fagen.storage import Storage

_KEY, _WORKER = "key", "worker"


def key_of(knobs: Mapping[str, Any]) -> str:
    return json.dumps(knobs, sort_keys=True)


def study_id(storage: Storage, name: str) -> int:
    """Of a study that is created where it is not there."""
    def make(engine: Any) -> int:
        optuna.create_study(storage=engine, study_name=name, load_if_exists=True)
        return int(engine.get_study_id_from_name(name))

    return storage.call(make)


class Board:
    """One study. Records hold their ``score``; None is one that cannot be had."""

    def __init__(
        self, storage: Storage, name: str, members: Members,
        knobs: Mapping[str, Sequence[Any]] | None = None, about: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self._storage, self._members = name, storage, members
        self._space: dict[str, optuna.distributions.BaseDistribution] = {
            knob: optuna.distributions.CategoricalDistribution(choices)
            for knob, choices in (knobs or {}).items()
        }
        self._study = study_id(storage, name)
        if about:
            storage.call(lambda s: s.set_study_user_attr(self._study, ABOUT, dict(about)))
        self._mine: dict[str, int] = {}  # trials by key, until they are told or released
        self._read: set[int] = set()  # numbers of the trials that are over
        self._numbers: dict[int, int] = {}
        self.fresh: list[tuple[Knobs, Record]] = []  # told by others, until somebody takes it
        self.told: dict[str, Record] = {}
        self.taken: dict[str, tuple[int, Knobs]] = {}  # by others who live: number and knobs

    # --- looking -------------------------------------------------------------------------------

    def look(self) -> None:
        trials = self._storage.call(lambda s: s.get_all_trials(self._study, deepcopy=False))
        self._members.observe()  # afterwards: who has just come and claimed is known by then
        self.taken = {}
        self._numbers = {trial._trial_id: trial.number for trial in trials}
        for trial in trials:
            if trial.number in self._read:
                continue
            if trial.state.is_finished():
                self._read.add(trial.number)
                self._see_told(trial)
            elif trial._trial_id not in self._mine.values():
                self._see_claim(trial)

    def _see_told(self, trial: FrozenTrial) -> None:
        record, attributes = trial.user_attrs.get(RECORD), trial.user_attrs
        if record is not None and trial.state != TrialState.FAIL:
            self.told[attributes[_KEY]] = record
            if attributes[_WORKER] != self._members.me:
                self.fresh.append((dict(trial.params), record))

    def _see_claim(self, trial: FrozenTrial) -> None:
        worker = trial.user_attrs.get(_WORKER, "")
        if worker != self._members.me and self._members.is_alive(worker):
            known = trial.number, dict(trial.params)
            self.taken.setdefault(trial.user_attrs[_KEY], known)
        else:
            self._bury(trial)

    def _bury(self, trial: FrozenTrial) -> None:
        """Nobody works on it any more. Another worker may be first to say so."""
        record = trial.user_attrs.get(RECORD)
        with contextlib.suppress(UpdateFinishedTrialError):
            self._finish(trial._trial_id, TrialState.FAIL if record is None else _state(record),
                         record)

    def _finish(self, trial: int, state: TrialState, record: Record | None) -> None:
        values = [record["score"]] if record and state == TrialState.COMPLETE else None
        self._storage.call(lambda s: s.set_trial_state_values(trial, state, values))

    # --- claiming and telling ------------------------------------------------------------------

    def claim(self, key: str, knobs: Knobs) -> bool:
        if key in self.taken or key in self.told:
            return False
        trial = self._storage.call(
            lambda s: s.create_new_trial(self._study, self._trial(TrialState.RUNNING, key, knobs))
        )
        self._mine[key] = trial
        try:
            return self._holds(key, trial)
        except Away:
            del self._mine[key]  # a claim of ours that we do not know of is failed when seen
            raise

    def _holds(self, key: str, trial: int) -> bool:
        self.look()
        rival = self.taken.get(key)
        if key in self.told or (rival is not None and rival[0] < self._numbers[trial]):
            self.release(key)
            return False
        return True

    def later(self, key: str) -> int:
        """Points that others who live claimed after this one of ours."""
        ours = self._numbers[self._mine[key]]
        return sum(number > ours for number, _ in self.taken.values())

    def tell(self, key: str, knobs: Knobs, record: Record) -> None:
        """May be repeated: what was told before, or by the worker that took over, is kept, but for
        what was timed again."""
        trial = self._mine.get(key)
        try:
            if trial is None:
                raise UpdateFinishedTrialError
            self._storage.call(lambda s: s.set_trial_user_attr(trial, RECORD, record))
            self._finish(trial, _state(record), record)
        except UpdateFinishedTrialError:
            self.look()
            if key not in self.told or _again(record) > _again(self.told[key]):
                frozen = self._trial(_state(record), key, knobs, record)
                self._storage.call(lambda s: s.create_new_trial(self._study, frozen))
        self.told[key] = record
        self._mine.pop(key, None)

    def release(self, key: str) -> None:
        """Not tried after all."""
        trial = self._mine.pop(key, None)
        if trial is not None:
            with contextlib.suppress(UpdateFinishedTrialError, Away):
                self._finish(trial, TrialState.FAIL, None)

    def release_all(self) -> None:
        for key in list(self._mine):
            self.release(key)

    def _trial(
        self, state: TrialState, key: str, knobs: Knobs, record: Record | None = None
    ) -> FrozenTrial:
        attributes: dict[str, Any] = {_KEY: key, _WORKER: self._members.me}
        if record is not None:
            attributes[RECORD] = record
        score = record["score"] if record and state == TrialState.COMPLETE else None
        return create_trial(
            state=state, value=score, params=knobs, distributions=self._space,
            user_attrs=attributes,
        )


def _state(record: Record) -> TrialState:
    """Pruned and never failed, as in a journal: a failed trial is one that is to be retried."""
    return TrialState.PRUNED if record["score"] is None else TrialState.COMPLETE


def _again(record: Record) -> int:
    """How often it was timed anew: the latest time counts."""
    return int(record.get("again", 0))
