"""Searches that workers share: claims, deaths, outages, other versions. On SQLite, in one process;
tests/faults does the same to PostgreSQL with processes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sqlite3
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import fagen
from fagen.board import Board, key_of, study_id
from fagen.budget import Budget
from fagen.errors import SetupError, StoreError, UsageError
from fagen.families.base import Space
from fagen.ledger import Away, Proposal
from fagen.members import Members
from fagen.model import Candidate
from fagen.outbox import Outbox
from fagen.search import tune
from fagen.shared import Shared
from fagen.storage import Pace, Storage, spelled, without_password
from fagen.store import Store
from fagen.workload import Workload
from tests.faults.table import fault
from tests.unit import synthetic
from tests.unit.synthetic import FAMILY, PROBLEM, TARGET, WORKLOAD, FakePool

# Long enough that a machine with other work kills nobody; a lease ends by the clock fixture alone.
PACE = Pace(renew=0.05, lease=600.0, look=0.01, least=0.02, most=0.05, patience=600.0)
KNOBS = {"tile": (32, 64, 128)}
SPACE = Space(PROBLEM, TARGET, FAMILY)


class Clock:
    """By which leases are counted: it stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("fagen.members.time", made)
    return made


class Worker:
    """One member with a board of its own connection."""

    def __init__(self, url: str, say: Any = lambda text: None) -> None:
        self.storage = Storage(url, PACE, say)
        self.members = Members(self.storage, study_id(self.storage, "s"))
        self.members.join()
        self.board = Board(self.storage, "s/f", self.members, KNOBS)

    def die(self) -> None:
        self.members._done.set()
        self.members._thread.join()

    def renewed(self) -> None:
        """Returns when it has said once more that it lives."""
        before = self._said()
        while self._said() == before:
            time.sleep(PACE.look)

    def _said(self) -> Any:
        study = self.members._study
        return self.storage.call(
            lambda s: s.get_study_user_attrs(study))[f"worker {self.members.me}"]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return f"sqlite:///{tmp_path}/s.db"


def test_a_point_is_claimed_once_and_told_once(url: str) -> None:
    a, b = Worker(url), Worker(url)
    assert a.board.claim("p", {"tile": 32})
    assert not b.board.claim("p", {"tile": 32})
    assert b.board.claim("q", {"tile": 64})
    a.board.tell("p", {"tile": 32}, {"score": 3.0, "n": 1})
    b.board.look()
    assert b.board.fresh == [({"tile": 32}, {"score": 3.0, "n": 1})]
    assert not b.board.claim("p", {"tile": 32})
    a.board.look()
    assert a.board.fresh == []  # its own is no news
    assert set(a.board.taken) == {"q"}
    b.board.release("q")
    a.board.look()
    assert a.board.claim("q", {"tile": 64})


def test_what_was_timed_again_is_told_again(url: str) -> None:
    a, b = Worker(url), Worker(url)
    assert a.board.claim("p", {"tile": 32})
    a.board.tell("p", {"tile": 32}, {"score": 9.0, "again": 0})
    for _ in range(2):  # a letter that is sent twice tells nothing new
        a.board.tell("p", {"tile": 32}, {"score": 3.0, "again": 1})
    b.board.look()
    assert [record["score"] for _, record in b.board.fresh] == [9.0, 3.0]
    assert b.board.told["p"]["score"] == 3.0
    a.board.tell("p", {"tile": 32}, {"score": 9.0, "again": 0})
    b.board.look()
    assert b.board.told["p"]["score"] == 3.0


def test_of_two_claims_at_the_same_moment_the_first_one_holds(url: str) -> None:
    """Both are created before either looks."""
    a, b = Worker(url), Worker(url)
    barrier = threading.Barrier(2)
    for worker in (a, b):
        look = worker.board.look
        worker.board.look = lambda look=look: (barrier.wait(120), look())  # type: ignore[misc]
    got: dict[str, bool] = {}

    def claim(name: str, worker: Worker) -> None:
        got[name] = worker.board.claim("p", {"tile": 32})

    threads = [threading.Thread(target=claim, args=pair) for pair in (("a", a), ("b", b))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got.values()) == [False, True]


@fault("a worker of a shared search dies", "what it had claimed is free after its lease")
def test_the_claim_of_a_dead_worker_is_free_after_its_lease(url: str, clock: Clock) -> None:
    a, b = Worker(url), Worker(url)
    assert a.board.claim("p", {"tile": 32})
    a.die()
    b.board.look()
    clock.now += PACE.lease - 1
    b.board.look()
    assert set(b.board.taken) == {"p"}
    clock.now += 1
    assert b.members.is_alive(a.members.me)  # until somebody looks
    b.board.look()
    assert b.board.claim("p", {"tile": 32})
    # It was not dead after all: what it measured counts as long as nobody else told it.
    a.board.tell("p", {"tile": 32}, {"score": 4.0})
    b.board.look()
    assert b.board.told["p"] == {"score": 4.0}
    b.board.tell("p", {"tile": 32}, {"score": 5.0})


@fault("a host's clock jumps by a day", "nothing")
def test_a_worker_that_renews_lives_whatever_its_clock_says(
    url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = Worker(url), Worker(url)
    assert a.board.claim("p", {"tile": 32})
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + 86_400)
    for _ in range(3):
        b.board.look()
        a.renewed()
        clock.now += 0.9 * PACE.lease
    assert set(b.board.taken) == {"p"}


def test_who_comes_and_claims_while_another_looks_is_not_taken_for_dead(url: str) -> None:
    a, came = Worker(url), []
    call = a.storage.call

    def slowly(do: Any) -> Any:
        answer = call(do)
        if not came:
            came.append(Worker(url))
            assert came[0].board.claim("p", {"tile": 32})
        return answer

    a.storage.call = slowly  # type: ignore[method-assign]
    a.board.look()  # the first of its questions is answered before the other one comes
    a.board.look()
    assert set(a.board.taken) == {"p"}
    assert came[0].storage.call(lambda s: s.get_trial(came[0].board._mine["p"]).state.name) \
        == "RUNNING"


def test_a_result_that_arrived_before_its_worker_died_counts(url: str) -> None:
    """It was written, and not yet marked as told."""
    a, b = Worker(url), Worker(url)
    assert a.board.claim("p", {"tile": 32})
    trial = a.board._mine["p"]
    a.storage.call(lambda s: s.set_trial_user_attr(trial, "record", {"score": 7.0}))
    a.members.leave()
    b.board.look()
    b.board.look()
    assert b.board.told == {"p": {"score": 7.0}}


def test_after_an_outage_every_lease_begins_anew(url: str, clock: Clock) -> None:
    a, b = Worker(url), Worker(url)
    assert a.board.claim("p", {"tile": 32})
    a.die()
    b.board.look()
    clock.now += PACE.lease
    b.storage.outages += 1
    b.board.look()
    assert set(b.board.taken) == {"p"}


# --- the storage goes away -----------------------------------------------------------------------


class Switch:
    """A storage whose database can be switched off."""

    def __init__(self, url: str, pace: Pace = PACE) -> None:
        self.said: list[str] = []
        self.storage = Storage(url, pace, self.said.append)
        self.off = False
        true = self.storage.call
        self.storage.call = lambda do: true(do if not self.off else self._fail)  # type: ignore[method-assign]

    def _fail(self, engine: Any) -> Any:
        from sqlalchemy.exc import OperationalError

        raise OperationalError("select", {}, sqlite3.OperationalError("no server"))


def shared(storage: Storage, folder: Path, sources: str = "1", fresh: bool = False) -> Shared:
    return Shared(storage, "problem@1", folder / "outbox", {"sources": sources}, fresh)


def test_a_proposal_that_repeats_what_we_hold_gives_nothing_up(url: str, tmp_path: Path) -> None:
    storages = [Storage(url, PACE, lambda text: None) for _ in range(2)]
    with shared(storages[0], tmp_path / "a") as a, shared(storages[1], tmp_path / "b") as b:
        mine, others = a.study("f", KNOBS, 0), b.study("f", KNOBS, 0)
        held = Proposal({"tile": 32})
        assert mine.claim(held)
        mine.withdraw(Proposal({"tile": 32}))  # the sampler's, once more
        assert not others.claim(held)
        mine.give_up(held)
        time.sleep(2 * PACE.look)
        others.news()
        assert others.claim(held)


@fault("a shared storage goes away", "said; results are kept in a file and told when it is back")
def test_results_are_kept_here_and_told_later(url: str, tmp_path: Path) -> None:
    switch = Switch(url)
    with shared(switch.storage, tmp_path) as search:
        study = search.study("f", KNOBS, 0)
        proposal = Proposal({"tile": 32})
        assert study.claim(proposal)
        switch.off = True
        study.tell(proposal, 3.0, {"score": 3.0})
        (kept,) = (tmp_path / "outbox").iterdir()
        assert '"score": 3.0' in kept.read_text()
        with pytest.raises(Away):
            study.claim(Proposal({"tile": 64}))
        switch.off = False
        while kept.exists():  # a try that began before it was back may fail after it
            search.wait()
            with contextlib.suppress(Away):
                study.news()
    assert "does not answer: no server" in switch.said[0]
    assert switch.said[-1].startswith(f"{url} answers again, after ")
    with shared(Storage(url, PACE), tmp_path) as search:
        assert search.study("f", KNOBS, 0).records == [{"score": 3.0}]


def test_a_storage_that_falters_at_the_start_is_waited_for(url: str, tmp_path: Path) -> None:
    for fails in itertools.count():  # one call after the other, up to the last of the start
        switch = Switch(url, dataclasses.replace(PACE, most=180.0))
        call, calls = switch.storage.call, itertools.count()

        def faltering(do: Any, call: Any = call, calls: Any = calls, fails: int = fails,
                      switch: Switch = switch) -> Any:
            return call(switch._fail if next(calls) == fails else do)

        switch.storage.call = faltering  # type: ignore[method-assign]
        with shared(switch.storage, tmp_path) as search:
            search.study("f", KNOBS, 0)
            said = list(switch.said)
        if not said:
            break
        assert "does not answer" in said[0]
    assert fails > 6


@fault("a worker dies while the storage is away", "the next one on the host tells what it kept")
def test_what_a_dead_worker_kept_is_told_by_the_next_one(url: str, tmp_path: Path) -> None:
    switch = Switch(url)
    with shared(switch.storage, tmp_path) as search:
        study = search.study("f", KNOBS, 0)
        proposal = Proposal({"tile": 32})
        assert study.claim(proposal)
        switch.off = True
        study.tell(proposal, 3.0, {"score": 3.0})
        (kept,) = (tmp_path / "outbox").iterdir()
        text = kept.read_text()
    assert "1 results are kept in" in switch.said[-1]
    search._outbox._holder = None  # its process is gone
    assert kept.read_text() == text
    with shared(Storage(url, PACE), tmp_path) as search:
        study = search.study("f", KNOBS, 0)
        time.sleep(PACE.look)
        study.news()
        assert not kept.exists()
    with shared(Storage(url, PACE), tmp_path) as search:
        assert search.study("f", KNOBS, 0).records == [{"score": 3.0}]


def test_patience_ends(url: str) -> None:
    storage = Storage(url, dataclasses.replace(PACE, patience=0.1), lambda text: None)
    switch = Switch(url)
    storage.call(lambda s: None)
    for _ in range(2):
        with pytest.raises(Away):
            storage.call(switch._fail)
        time.sleep(0.06)
    time.sleep(0.1)
    with pytest.raises(StoreError, match=r"no server, for 0\.1 s now") as caught:
        storage.wait()
    assert "the same command goes on from there" in str(caught.value.hint)


def test_a_letter_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    def away(letter: Any) -> None:
        raise Away("away")

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        Outbox(tmp_path / "file" / "x-1.jsonl", away).put({})


# --- versions and addresses ----------------------------------------------------------------------


@fault("another version of fagen, or other templates, on one study", "refused", times=2)
def test_other_sources_and_other_versions_are_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shared(Storage(url, PACE), tmp_path, "1"):
        with pytest.raises(StoreError, match=r"begun by fagen .* \(sources 1\)") as caught:
            shared(Storage(url, PACE), tmp_path, "2")
        assert "the same fagen on every host" in str(caught.value.hint)
    monkeypatch.setattr(fagen, "__version__", "9.9.9")
    with pytest.raises(StoreError, match=r"this is fagen 9\.9\.9"):
        shared(Storage(url, PACE), tmp_path, "1")


def test_a_study_is_begun_anew_only_when_nobody_is_on_it(url: str, tmp_path: Path) -> None:
    quiet = Storage(url, PACE, lambda text: None)
    with (
        shared(Storage(url, PACE), tmp_path, "1"),
        pytest.raises(StoreError, match="another worker is on"),
    ):
        shared(quiet, tmp_path, "2", fresh=True)
    shared(quiet, tmp_path, "2", fresh=True).close()


def test_a_study_of_the_dead_is_begun_anew_after_a_lease(
    url: str, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = shared(Storage(url, PACE, lambda text: None), tmp_path, "1")
    dead._members._done.set()
    dead._members._thread.join()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += PACE.lease / 8

    monkeypatch.setattr(clock, "sleep", sleep)
    said: list[str] = []
    shared(Storage(url, PACE, said.append), tmp_path, "2", fresh=True).close()
    assert "looking for up to 600 s whether" in said[0]
    assert slept == [PACE.look] * 8


def test_other_hardware_is_another_study(url: str, tmp_path: Path) -> None:
    names = []
    for target in (TARGET, TARGET, dataclasses.replace(TARGET, sm_count=114)):
        storage = Storage(url, PACE, lambda text: None)
        tune(PROBLEM, [WORKLOAD], target, [FAMILY], FakePool(), Store([], tmp_path / "tuned"),
             tmp_path / "journals", Budget(trials=4, heats=1), storage=storage)
        names.append({s.study_name for s in storage.call(lambda s: s.get_all_studies())})
    assert [len(n) for n in names] == [2, 2, 4]


@pytest.mark.parametrize(("given", "kind", "says"), [
    ("nonsense", UsageError, "cannot read --storage 'nonsense'"),
    ("nosuch://host/db", UsageError, "cannot use --storage nosuch://host/db"),
    ("sqlite:////nowhere/at/all.db", StoreError, "unable to open database file"),
])
def test_addresses_that_lead_nowhere(given: str, kind: type[StoreError], says: str) -> None:
    with pytest.raises(kind, match=says):
        Storage(given, PACE).call(lambda s: s)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SetupError, match="driver of postgresql://me@host/db") as caught:
        Storage("postgresql://me:secret@host/db", PACE).call(lambda s: s)
    assert caught.value.hint == "pip install 'fagen[storage]'"


def test_no_password_is_shown() -> None:
    assert without_password("postgresql://me:secret@host:5/db?x=1") == "postgresql://me@host:5/db"
    assert spelled("postgresql://host/db") == "postgresql+psycopg://host/db"


# --- a whole search ------------------------------------------------------------------------------


def test_a_claim_beyond_the_trials_is_given_up(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker claims at the moment when this one takes the last of the trials."""
    claim, others = Board.claim, []
    points = [asdict(c.config) for c in reversed(synthetic.space())]

    def racing(self: Board, key: str, knobs: dict[str, Any]) -> bool:
        if knobs and not others and len(self.told) + len(self._mine) == 5:
            members = Members(self._storage, self._members._study)
            members.join()
            others.append(Board(self._storage, self.name, members, SPACE.knobs()))
            free = next(p for p in points if key_of(p) not in {*self.told, *self._mine, key})
            assert claim(others[0], key_of(free), free)
        return claim(self, key, knobs)

    class Watching(FakePool):
        def measure(self, c: Candidate, workload: Workload, seconds: float) -> Any:
            if others and not others[0]._members._done.is_set():
                states = [t.state.name for t in storage.call(
                    lambda s: s.get_all_trials(others[0]._study))]
                assert states.count("RUNNING") + states.count("COMPLETE") == 6
                assert states.count("FAIL") == 1  # given up
                others[0]._members.leave()
            return super().measure(c, workload, seconds)

    monkeypatch.setattr(Board, "claim", racing)
    pool, storage = Watching(), Storage(url, PACE)
    entry = tune(
        PROBLEM, [WORKLOAD], TARGET, [FAMILY], pool, Store([], tmp_path / "tuned"),
        tmp_path / "journals", Budget(trials=6, heats=1, rounds=4), storage=storage,
    )
    assert others[0]._members._done.is_set()
    assert entry.provenance["search"]["tried"] == len(set(pool.measured)) == 6


def test_two_workers_share_the_trials_and_store_the_same_entry(url: str, tmp_path: Path) -> None:
    """Each tries three before the other one may go on, so that there is something to share."""
    together = threading.Barrier(2)

    class Meeting(FakePool):
        def measure(self, c: Candidate, workload: Workload, seconds: float) -> Any:
            if c not in self.measured and len(set(self.measured)) < 3:
                together.wait(300)
            return super().measure(c, workload, seconds)

    pools, entries = [Meeting(n) for n in range(2)], {}

    def work(n: int) -> None:
        pools[n].pause_s = 0.005
        entries[n] = tune(
            PROBLEM, [WORKLOAD], TARGET, [FAMILY], pools[n], Store([], tmp_path / f"tuned{n}"),
            tmp_path / "journals", Budget(trials=30, heats=1, rounds=12),
            storage=Storage(url, PACE, lambda text: None),
        )

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (set(pool.measured) for pool in pools)
    assert not first & second
    assert len(first | second) == 30
    assert min(len(first), len(second)) > 2
    assert entries[0] == entries[1]
    assert [bool(pool.lapped) for pool in pools].count(True) == 1  # one final lap for all
    files = [next((tmp_path / f"tuned{n}").rglob("*.yaml")).read_text() for n in range(2)]
    assert files[0] == files[1]
