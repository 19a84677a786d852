"""The journal: torn lines, full disks, holders that died, proposals nobody answered."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from fagen import journal
from fagen.errors import StoreError
from fagen.journal import Journal, Proposal, repair
from tests.faults.table import fault

KNOBS = {"tile": (32, 64, 128), "turns": (False, True)}


def point(n: int) -> dict[str, Any]:
    return {"tile": KNOBS["tile"][n % 3], "turns": bool(n % 2)}


def fill(path: Path, count: int) -> list[dict[str, Any]]:
    with Journal(path) as held:
        study = held.study("f", KNOBS, 0)
        for n in range(count):
            study.tell(Proposal(point(n)), 10.0 + n, {"n": n})
    return journal.records(path)


def reopened(path: Path) -> list[dict[str, Any]]:
    with Journal(path) as held:
        return held.study("f", KNOBS, 0).records


def test_what_was_told_is_there_again(tmp_path: Path) -> None:
    told = fill(tmp_path / "a.journal", 5)
    assert [record["n"] for record in told] == list(range(5))
    assert reopened(tmp_path / "a.journal") == told


def test_asking_telling_and_pruning(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.journal") as held:
        study = held.study("f", KNOBS, 0)
        good, bad, dropped = study.ask(), study.ask(), study.ask()
        assert set(good.knobs) == set(KNOBS)
        study.tell(good, 3.0, {"n": 1})
        study.tell(bad, None, {"n": 2})
        study.withdraw(dropped)
        states = [t.state.name for t in study._study.trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL"]
    assert [r["n"] for r in reopened(tmp_path / "a.journal")] == [1, 2]


@pytest.mark.parametrize(("knobs", "kept"), [
    (KNOBS, [0, 1, 2, 3, 4, 5]),
    ({"tile": (32, 48, 64, 128), "turns": (False, True)}, [0, 1, 2, 3, 4, 5]),  # a new choice
    ({"tile": (64, 128), "turns": (False, True)}, [1, 2, 4, 5]),  # one that is no more
    ({**KNOBS, "order": ("up", "down")}, [0, 1, 2, 3, 4, 5]),  # a new knob
    ({"tile": (32, 64, 128)}, [0, 1, 2, 3, 4, 5]),  # a knob that is no more
    ({"tile": (32, 64)}, []),  # and other choices of what is left: those were other points
])
def test_a_search_goes_on_when_a_knob_has_other_choices(
    tmp_path: Path, knobs: dict[str, Any], kept: list[int]
) -> None:
    path = tmp_path / "a.journal"
    fill(path, 6)
    with Journal(path) as held:
        before = held.study("f", knobs, 0, {"what": "tiles"})
        assert [record["n"] for record in before.records] == kept
        for _ in range(12):  # beyond what is proposed at random
            proposal = before.ask()
            assert set(proposal.knobs) == set(knobs)
            assert all(proposal.knobs[knob] in choices for knob, choices in knobs.items())
            before.tell(proposal, 1.0, {"n": 9})
    with Journal(path) as held:
        assert [r["n"] for r in held.study("f", knobs, 0).records] == [*kept, *[9] * 12]


def test_proposals_of_a_search_that_died_are_withdrawn(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with Journal(path) as held:
        study = held.study("f", KNOBS, 0)
        study.ask()
    with Journal(path) as held:
        states = [t.state.name for t in held.study("f", KNOBS, 0)._study.trials]
    assert states == ["FAIL"]


def test_a_resumed_search_does_not_propose_the_same_again(tmp_path: Path) -> None:
    knobs = {f"k{n}": tuple(range(8)) for n in range(6)}
    asked = []
    for _ in range(2):
        with Journal(tmp_path / "a.journal") as held:
            study = held.study("f", knobs, 0)
            proposal = study.ask()
            study.tell(proposal, 1.0, {})
            asked.append(proposal.knobs)
    assert asked[0] != asked[1]


@fault("a journal torn in its last line", "the line is cut off, all before it is there", times=3)
@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.journal"
    told = fill(path, 4)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert reopened(path) == told[:-1]
    fill(path, 1)
    assert len(reopened(path)) == 4  # appended to a clean end


def test_a_last_line_of_zeros_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    told = fill(path, 2)
    with path.open("ab") as file:
        file.write(b"\0" * 50 + b"\n")
    assert repair(path) == 51
    assert reopened(path) == told


@fault("a journal damaged in the middle", "refused; the line and the remedy are named")
def test_damage_inside_names_the_line_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    fill(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b'{"op_code": 4, \x00\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(StoreError, match="line 2: not JSON") as caught:
        Journal(path)
    assert str(caught.value.hint) == f"delete it to start this search again: rm '{path}'"
    with pytest.raises(StoreError):
        journal.records(path)


def test_json_that_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    path.write_text('{"some": "thing"}\n')
    with pytest.raises(StoreError, match="is not one of this fagen"):
        Journal(path)
    with pytest.raises(StoreError, match="is not one of this fagen"):  # and it was let go
        Journal(path)


def _hold_and_die(path: Path) -> None:
    held = Journal(path)
    held.study("f", KNOBS, 0)
    os.kill(os.getpid(), signal.SIGKILL)


@fault("`kill -9` of the holder of a journal", "the next one opens it at once")
def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    child = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert reopened(path) == []


def test_two_holders_are_one_too_many(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with Journal(path), pytest.raises(StoreError, match=f"process {os.getpid()} is tuning"):
        Journal(path)
    Journal(path).close()


def test_starting_afresh_forgets(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    fill(path, 3)
    with Journal(path, fresh=True) as held:
        assert held.study("f", KNOBS, 0).records == []


@fault("the disk with the journal is full", "said; what was told before is safe")
def test_a_full_disk_is_said_and_loses_nothing_told(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    told = fill(path, 4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 300, limits[1]))
    try:
        with Journal(path) as held:
            study = held.study("f", KNOBS, 0)
            with pytest.raises(StoreError, match="what was told before is safe"):
                study.tell(Proposal(point(0)), 1.0, {"n": "x" * 500})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert reopened(path) == told
    assert len(fill(path, 1)) == 5


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        Journal(tmp_path / "file" / "a.journal")


def test_there_is_no_journal_yet(tmp_path: Path) -> None:
    assert journal.records(tmp_path / "none.journal") == []
