"""What was proposed and what came of it: Optuna studies in one journal file that is hard to lose.

One process at a time holds a journal. Every outcome is on disk before the next step begins; a line
that was torn by a crash is cut off when the journal is opened, and proposals that nobody answered
are withdrawn. Optuna's own tools read the same file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
from optuna.trial import TrialState

from fagen.errors import StoreError
from fagen.ledger import News, Proposal, Record
from fagen.studies import study_of

optuna.logging.set_verbosity(optuna.logging.ERROR)

RECORD = "record"  # the attribute of a trial that holds what happened
ABOUT = "search"  # the attribute of a study that says what is searched
Knobs = dict[str, Any]


class _Held(JournalFileSymlinkLock):
    """No lock per write: the process holds the whole journal. A killed holder of Optuna's own lock
    would stall everyone for half a minute."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Journal:
    """A journal file, held until closed. Nobody else is on the search."""

    alone, salt = True, 0

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path.absolute()
        with disk(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._holder = _hold(self.path)
            try:
                if fresh:
                    self.path.unlink(missing_ok=True)
                self.dropped_bytes = repair(self.path)
                self._storage = storage_of(self.path)
            except BaseException:
                self._holder.close()
                raise

    def study(
        self, name: str, knobs: Mapping[str, Sequence[Any]], seed: int,
        about: Mapping[str, Any] | None = None,
    ) -> Study:
        """``about`` says, to who reads the file later, what is searched."""
        with disk(self.path):
            return Study(self.path, self._storage, name, knobs, seed, about or {})

    @property
    def where(self) -> str:
        return f"journal: {self.path}"

    def once(self, key: str, make: Callable[[], Record]) -> Record:
        return make()

    def wait(self) -> None:
        """There is nobody to wait for."""

    def close(self) -> None:
        self._holder.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Study:
    """One space within a journal: Optuna proposes, we tell."""

    def __init__(
        self, path: Path, storage: optuna.storages.BaseStorage, name: str,
        knobs: Mapping[str, Sequence[Any]], seed: int, about: Mapping[str, Any],
    ) -> None:
        self._path = path
        self._space: dict[str, optuna.distributions.BaseDistribution] = {
            knob: optuna.distributions.CategoricalDistribution(choices)
            for knob, choices in knobs.items()
        }
        self._study = study_of(storage, name, self._space)
        if about and ABOUT not in self._study.user_attrs:
            self._study.set_user_attr(ABOUT, dict(about))
        before = self._study.get_trials(deepcopy=False)
        self.records = _records(before)
        self._withdraw(before)
        # The seed moves on with the journal, or a resumed search would propose the same again.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=(seed * 1_000_003 + len(before)) % 2**32, n_startup_trials=10
        )

    def _withdraw(self, trials: Sequence[optuna.trial.FrozenTrial]) -> None:
        """A killed search leaves open proposals; the sampler would take them for bad points."""
        for trial in trials:
            if not trial.state.is_finished():
                self._study.tell(trial.number, state=TrialState.FAIL)

    def ask(self) -> Proposal:
        with disk(self._path):
            trial = self._study.ask(self._space)
        return Proposal(dict(trial.params), trial)

    def claim(self, proposal: Proposal) -> bool:
        return True

    def news(self) -> News:
        return News()

    def later(self, proposal: Proposal) -> int:
        return 0

    def tell(
        self, proposal: Proposal, score: float | None, record: dict[str, Any] | None = None
    ) -> None:
        """The score (less is better), or None for a point that cannot be had. Points are told as
        pruned and never as failed: the sampler learns nothing from failures."""
        state = TrialState.PRUNED if score is None else TrialState.COMPLETE
        with disk(self._path):
            if proposal.trial is None:
                self._add(proposal.knobs, state, score, record)
                return
            if record is not None:
                proposal.trial.set_user_attr(RECORD, record)
            self._study.tell(proposal.trial, score, state)

    def _add(
        self, knobs: Knobs, state: TrialState, score: float | None, record: dict[str, Any] | None
    ) -> None:
        trial = optuna.trial.create_trial(
            state=state, value=score, params=knobs, distributions=self._space,
            user_attrs={} if record is None else {RECORD: record},
        )
        self._study.add_trial(trial)

    def withdraw(self, proposal: Proposal) -> None:
        """The proposal was not tried and says nothing about its point."""
        if proposal.trial is not None:
            with disk(self._path):
                self._study.tell(proposal.trial, state=TrialState.FAIL)

    def give_up(self, proposal: Proposal) -> None:
        self.withdraw(proposal)


def mirror(where: str, name: str, knobs: Mapping[str, Sequence[Any]], seed: int) -> Study:
    """A study in memory: the sampler's view of what is kept elsewhere."""
    return Study(Path(where), optuna.storages.InMemoryStorage(), name, knobs, seed, {})


def records(path: Path) -> list[dict[str, Any]]:
    """Everything that was told, of all studies, without holding the journal."""
    if not path.exists():
        return []
    with disk(path):
        storage = storage_of(path.absolute())
        return [
            record
            for study in storage.get_all_studies()
            for record in _records(storage.get_all_trials(study._study_id, deepcopy=False))
        ]


def _records(trials: Sequence[optuna.trial.FrozenTrial]) -> list[dict[str, Any]]:
    return [t.user_attrs[RECORD] for t in trials if RECORD in t.user_attrs]


def storage_of(path: Path) -> JournalStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "JournalStorage is experimental"
        return JournalStorage(JournalFileBackend(str(path), _Held(str(path))))


def _hold(path: Path) -> IO[str]:
    """Exclusive for this process, given back by the kernel however the process ends."""
    holder = path.with_suffix(".lock").open("a+")
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder.seek(0)
        pid = holder.read().strip() or "unknown"
        holder.close()
        raise StoreError(
            f"process {pid} is tuning this problem already, in {path}",
            "wait for it, stop it, or set FAGEN_DATA_DIR to search apart from it",
        ) from None
    holder.truncate(0)
    holder.write(str(os.getpid()))
    holder.flush()
    return holder


def repair(path: Path) -> int:
    """Cut off a last line that was torn; returns how many bytes went. Raises for damage inside."""
    if not path.exists():
        return 0
    good = 0
    with path.open("rb") as file:
        lines = file.readlines()
    for number, line in enumerate(lines, start=1):
        if line.endswith(b"\n") and _is_json(line):
            good += len(line)
        elif number == len(lines):
            os.truncate(path, good)
            return len(line)
        else:
            raise StoreError(
                f"{path}, line {number}: not JSON; the journal was damaged by something else",
                f"delete it to start this search again: rm '{path}'",
            )
    return 0


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Say in words that the disk is full or the journal unreadable."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the journal {path} cannot be written: {error.strerror}; what was told before is safe",
            "free some space, then run the same command again: the search goes on from there",
        ) from error
    except (KeyError, json.JSONDecodeError) as error:
        raise StoreError(
            f"the journal {path} is not one of this fagen ({type(error).__name__}: {error})",
            f"delete it to start this search again: rm '{path}'",
        ) from error
