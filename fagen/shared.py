"""A search that many workers share, through any database that Optuna speaks to.

Each worker proposes from a mirror in its own memory of all that was told, so that the sampler never
waits for the database; what is exchanged are claims and outcomes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import fagen
from fagen.board import Board, key_of, study_id
from fagen.errors import StoreError
from fagen.journal import Study, mirror
from fagen.ledger import Away, Knobs, News, Proposal, Record
from fagen.members import Members
from fagen.outbox import Letter, Outbox
from fagen.storage import Storage

T = TypeVar("T")


def letter(board: Board, key: str, knobs: Knobs, record: Record) -> Letter:
    return {"board": board.name, "key": key, "knobs": knobs, "record": record}


class Turns:
    """In which order a worker takes studies up: first one that nobody is on."""

    def __init__(self, storage: Storage, names: Sequence[str]) -> None:
        self._storage, self._left = storage, dict(enumerate(names))
        self._random = random.Random()  # workers that start together should part
        self._watched: dict[int, Members] = {}

    def __iter__(self) -> Iterator[int]:
        while self._left:
            order = self._random.sample(sorted(self._left), len(self._left))
            least = min(order, key=self._crowd)
            del self._left[least]
            yield least

    def _crowd(self, index: int) -> int:
        try:
            if index not in self._watched:
                study = study_id(self._storage, self._left[index])
                self._watched[index] = Members(self._storage, study)
            return self._watched[index].count()
        except Away:
            return 0


class SharedStudy:
    """One family's points."""

    def __init__(self, board: Board, inner: Study, outbox: Outbox, look_s: float) -> None:
        self._board, self._mirror, self._outbox = board, inner, outbox
        self._look_s, self._looked = look_s, time.monotonic()
        board.look()
        self.records: Sequence[Record] = self._learn()

    def _learn(self) -> list[Record]:
        fresh, self._board.fresh = self._board.fresh, []
        for knobs, record in fresh:
            self._mirror.tell(Proposal(knobs), record["score"], record)
        return [record for _, record in fresh]

    def ask(self) -> Proposal:
        return self._mirror.ask()

    def claim(self, proposal: Proposal) -> bool:
        try:
            return self._board.claim(key_of(proposal.knobs), proposal.knobs)
        except Away:
            self._mirror.withdraw(proposal)
            raise

    def later(self, proposal: Proposal) -> int:
        return self._board.later(key_of(proposal.knobs))

    def tell(self, proposal: Proposal, score: float | None, record: Record | None = None) -> None:
        """Without a record it is an answer to the sampler alone."""
        self._mirror.tell(proposal, score, record)
        if record is not None:
            key = key_of(proposal.knobs)
            self._outbox.put(letter(self._board, key, proposal.knobs, record))

    def withdraw(self, proposal: Proposal) -> None:
        """The sampler may propose what we hold already: that claim stands."""
        self._mirror.withdraw(proposal)

    def give_up(self, proposal: Proposal) -> None:
        self._mirror.withdraw(proposal)
        self._board.release(key_of(proposal.knobs))

    def news(self) -> News:
        if time.monotonic() - self._looked >= self._look_s:
            self._outbox.adopt()
            self._outbox.flush()
            self._board.look()
            self._looked = time.monotonic()
        return News(tuple(self._learn()), tuple(knobs for _, knobs in self._board.taken.values()))


class Shared:
    """The studies of one search: ``name`` itself says what it is about and what came of it in the
    end, ``name/family`` holds the points."""

    def __init__(
        self, storage: Storage, name: str, outbox: Path, identity: Mapping[str, Any],
        fresh: bool = False,
    ) -> None:
        self.storage, self.name = storage, name
        self.where = f"study {name!r} in {storage.where}"
        if fresh:
            self._patiently(self._forget)
        self._members = Members(storage, self._patiently(lambda: study_id(storage, name)))
        self._patiently(self._members.join)
        self._outbox = Outbox(outbox / f"{name}-{self._members.me}.jsonl", self._send)
        try:
            self._boards = {name: self._patiently(lambda: Board(storage, name, self._members))}
            self._agree(dict(identity))
        except BaseException:
            self._members.leave()
            raise

    alone = False

    @property
    def salt(self) -> int:
        return int(self._members.me[:8], 16)

    def _patiently(self, do: Callable[[], T]) -> T:
        """At the start a storage may be on its way up; a wrong address is not worth long."""
        deadline = time.monotonic() + 10 * self.storage.pace.most / 3
        while True:
            try:
                return do()
            except Away:
                if time.monotonic() > deadline:
                    raise
                self.storage.wait()

    def _agree(self, mine: Record) -> None:
        """Results of different sources must not meet in one study."""
        theirs = self.once("identity", lambda: mine | {"fagen": fagen.__version__, "score": None})
        if theirs["fagen"] != fagen.__version__ or theirs["sources"] != mine["sources"]:
            raise StoreError(
                f"{self.where} was begun by fagen {theirs['fagen']} (sources {theirs['sources']}), "
                f"and this is fagen {fagen.__version__} (sources {mine['sources']})",
                "run the same fagen on every host; --fresh begins the study anew",
            )

    def _forget(self) -> None:
        """Delete the study, unless somebody is on it."""
        watch = Members(self.storage, study_id(self.storage, self.name))
        if watch.count():
            self.storage.say(f"{self.where}: looking for up to {self.storage.pace.lease:g} s "
                             "whether the workers on it are alive")
        if watch.is_anybody_here():
            raise StoreError(
                f"another worker is on {self.where}", "stop it, or leave out --fresh"
            )
        self.storage.call(lambda s: [
            s.delete_study(study._study_id) for study in s.get_all_studies()
            if study.study_name == self.name or study.study_name.startswith(f"{self.name}/")
        ])

    def study(
        self, name: str, knobs: Mapping[str, Sequence[Any]], seed: int,
        about: Mapping[str, Any] | None = None,
    ) -> SharedStudy:
        full = f"{self.name}/{name}"
        board = self._patiently(lambda: Board(self.storage, full, self._members, knobs, about))
        self._boards[full] = board
        inner = mirror(full, name, knobs, seed + self.salt)
        look_s = self.storage.pace.look
        return self._patiently(lambda: SharedStudy(board, inner, self._outbox, look_s))

    def _send(self, letter: Letter) -> None:
        self._boards[letter["board"]].tell(letter["key"], letter["knobs"], letter["record"])

    def once(self, key: str, make: Callable[[], Record]) -> Record:
        board = self._boards[self.name]
        while True:
            try:
                self._outbox.flush()
                board.look()
                if key in board.told:
                    return board.told[key]
                if board.claim(key, {}):
                    break
            except Away:
                pass
            self.wait()
        try:
            made = make()
        except BaseException:
            board.release(key)
            raise
        self._outbox.put(letter(board, key, {}, made))
        return made

    def wait(self) -> None:
        self.storage.wait()

    def close(self) -> None:
        self._outbox.flush()
        for board in self._boards.values():
            board.release_all()
        self._members.leave()
        if self._outbox.waiting:
            self.storage.say(
                f"{len(self._outbox.waiting)} results are kept in {self._outbox.path} until the "
                "same command is run again here"
            )

    def __enter__(self) -> Shared:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
