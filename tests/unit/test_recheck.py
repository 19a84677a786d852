"""Stored winners looked at again: what moved, the kernel or the machine."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fagen.budget import Budget
from fagen.cli import main
from fagen.model import Candidate, Entry, Failure
from fagen.recheck import Finding, recheck
from fagen.search import tune
from fagen.store import Store
from fagen.workload import Workload
from tests.unit.synthetic import FAMILY, PROBLEM, SLOWER, TARGET, WORKLOAD, FakePool, true_us

ROUNDS = 20


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        return tune(PROBLEM, [WORKLOAD], TARGET, [FAMILY], FakePool(), Store([], folder),
                    folder / "j", Budget(trials=40, heats=1), driver="570.1")


def is_winner(entry: Entry, c: Candidate) -> bool:
    return vars(c.config) == entry.config


def times(entry: Entry, winner: float = 1.0, machine: float = 1.0) -> Callable[..., float]:
    """Everything by the machine's factor, the winner by its own too."""
    return lambda c, w: true_us(c, w) * machine * (winner if is_winner(entry, c) else 1.0)


def again(entry: Entry, pool: FakePool, driver: str = "570.1") -> Finding:
    return recheck(entry, [FAMILY], pool, ROUNDS, driver)


@pytest.mark.parametrize("seed", range(10))
def test_nothing_changed(entry: Entry, seed: int) -> None:
    found = again(entry, FakePool(seed=seed))
    assert found.verdict == "steady"
    assert not found.is_news
    assert abs(found.change) < 0.03
    assert found.updated == ()


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_machine_that_drifts_moves_both(entry: Entry, factor: float) -> None:
    found = again(entry, FakePool(times=times(entry, machine=factor)))
    assert (found.verdict, found.is_news) == ("machine", False)
    assert found.change == pytest.approx(factor - 1, abs=0.03)
    assert found.machine == pytest.approx(factor - 1, abs=0.03)


@pytest.mark.parametrize("machine", [0.9, 1.0, 1.2])
@pytest.mark.parametrize("factor", [0.93, 1.07])
def test_a_winner_that_moved_is_told_apart_from_the_machine(
    entry: Entry, factor: float, machine: float
) -> None:
    found = again(entry, FakePool(times=times(entry, factor, machine)))
    assert (found.verdict, found.is_news) == ("moved", True)
    against_default = float(found.says.partition("%")[0]) / 100
    assert against_default == pytest.approx(factor - 1, abs=0.015)
    assert found.machine == pytest.approx(machine - 1, abs=0.03)


def test_a_winner_that_lost_to_the_default_is_said(entry: Entry) -> None:
    found = again(entry, FakePool(times=times(entry, 2.0)))
    assert (found.verdict, found.is_news) == ("lost", True)
    assert "the default is" in found.says


def test_a_winner_that_fails_now_is_said_with_its_command(entry: Entry) -> None:
    class Broken(FakePool):
        def lap(self, candidates: Any, workload: Workload, rounds: int) -> Any:
            return [Failure("verify", "WrongResult", "off by 3", "fagen verify x")
                    if is_winner(entry, c) else o
                    for c, o in zip(candidates, super().lap(candidates, workload, rounds),
                                    strict=True)]

    found = again(entry, Broken())
    assert found.verdict == "failed"
    assert found.says == "verify: off by 3; fagen verify x"


def test_an_entry_of_another_version_is_said(entry: Entry) -> None:
    gone = dataclasses.replace(entry, config={"nope": 1})
    assert again(gone, FakePool()).verdict == "failed"


def test_a_lap_under_load_says_nothing(entry: Entry) -> None:
    pool = FakePool()
    pool.storms = 0.8
    found = again(entry, pool)
    assert (found.verdict, found.is_news) == ("disturbed", False)


def test_times_that_were_stored_under_load_say_nothing(entry: Entry) -> None:
    us = entry.measurement.median_us
    loud = dataclasses.replace(
        entry, measurement=dataclasses.replace(entry.measurement, low_us=us, high_us=1.5 * us)
    )
    found = again(loud, FakePool(times=times(entry, 1.07)))
    assert (found.verdict, found.is_news) == ("disturbed", False)
    assert "timed under load" in found.says


def test_an_interval_that_is_too_wide_says_nothing(entry: Entry) -> None:
    found = again(entry, FakePool(noise=0.4, seed=3))
    assert found.verdict == "disturbed"


def test_the_default_itself_has_nothing_beside_it(entry: Entry) -> None:
    default = FAMILY.default(PROBLEM, TARGET)
    us = true_us(default)
    own = dataclasses.replace(
        entry, config=dict(vars(default.config)), runners_up=(),
        measurement=dataclasses.replace(entry.measurement, median_us=us),
    )
    assert again(own, FakePool()).verdict == "steady"
    found = again(own, FakePool(times=lambda c, w: 1.3 * true_us(c, w)))
    assert found.verdict == "machine"
    assert "cannot be told apart" in found.says


def test_the_default_is_that_of_the_family_whose_time_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    families = [SLOWER, FAMILY]
    both = tune(PROBLEM, [WORKLOAD], TARGET, families, FakePool(), Store([], tmp_path),
                tmp_path / "j", Budget(trials=40, heats=1))
    pool = FakePool()
    assert recheck(both, families, pool, ROUNDS).verdict == "steady"
    stored = min((true_us(f.default(PROBLEM, TARGET)), f.name) for f in families)
    search = both.provenance["search"]
    assert (search["default_us"], search["default_family"]) == (
        pytest.approx(stored[0], rel=0.03), stored[1]
    )
    assert [c.family.name for c in pool.lapped] == [both.family, stored[1]]


def test_what_was_updated_is_named(entry: Entry) -> None:
    found = again(entry, FakePool(), driver="580.2")
    assert found.updated == ("driver 570.1 is now 580.2",)


# --- the verb ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_check_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAGEN_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("FAGEN_CACHE_DIR", str(tmp_path / "cache"))
    words = ("fwd-fp32-d16-causal", "--gpu", "none")
    assert main(["check", *words]) == 1
    assert "nothing was learned about fwd-fp32-d16-causal" in capsys.readouterr().err
    assert main(["tune", *words, "--trials", "2", "--effort", "quick", "-q",
                 "--workload", "b1-h2-s128"]) == 0
    path = next((tmp_path / "data" / "tuned").glob("*/*.yaml"))
    capsys.readouterr()
    assert main(["check", *words, "-q", "--json", "--rounds", "9"]) in (0, 1)
    (found,) = json.loads(capsys.readouterr().out)["checked"]
    assert found["verdict"] in ("steady", "machine", "moved", "lost", "disturbed")
    path.write_text(path.read_text().replace("median_us: ", "median_us: 1000", 1))
    code = main(["check", *words, "-q", "--rounds", "9"])
    out = capsys.readouterr().out
    assert "fwd-fp32-d16-causal" in out
    assert (code == 1) == ("next: fagen tune --fresh" in out)
