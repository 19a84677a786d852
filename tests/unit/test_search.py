"""The search: what it finds, what it keeps, and what cannot stop it."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fagen import journal
from fagen.budget import EFFORTS, Budget
from fagen.errors import INTERRUPTED, RunError, StoreError, UsageError
from fagen.families.base import Space, knob
from fagen.model import Candidate, Entry, Problem
from fagen.search import Event, Interrupted, journal_path, tune
from fagen.store import Store
from fagen.workload import Workload
from tests.faults.table import fault
from tests.unit import synthetic
from tests.unit.synthetic import (
    FAMILY,
    PROBLEM,
    SLOWER,
    TARGET,
    WORKLOAD,
    Config,
    FakePool,
    space,
    true_us,
)


class Bench:
    """One folder, and searches in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store([], folder / "tuned")
        self.events: list[Event] = []

    def tune(self, pool: FakePool, problem: Problem = PROBLEM, **given: Any) -> Entry:
        workloads = given.pop("workloads", [WORKLOAD])
        families = given.pop("families", [FAMILY])
        listener = given.pop("listener", self.events.append)
        fresh = given.pop("fresh", False)
        return tune(
            problem, workloads, TARGET, families, pool, self.store, self.folder / "journals",
            Budget(**{"trials": 40, "heats": 2, "rounds": 12, **given}), listener, fresh=fresh,
        )

    @property
    def journal(self) -> Path:
        return next((self.folder / "journals").glob("*.journal"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a thousand of them add up
    return Bench(tmp_path)


def candidate(entry: Entry) -> Candidate:
    return Space(entry.problem, TARGET, FAMILY).candidate(entry.config)


def config(c: Candidate) -> dict[str, Any]:
    return dict(vars(c.config))


# --- what it finds -----------------------------------------------------------------------------


def test_it_finds_something_better_than_the_default_and_stores_it(bench: Bench) -> None:
    entry = bench.tune(FakePool())
    default = true_us(FAMILY.default(PROBLEM, TARGET))
    assert true_us(candidate(entry)) < 0.85 * default
    assert entry.measurement.median_us == pytest.approx(true_us(candidate(entry)), rel=0.05)
    (stored,) = bench.store.entries()
    assert stored.config == entry.config
    search = stored.provenance["search"]
    assert search["tried"] == 40
    assert search["beats_default"] is True
    assert not search["exhaustive"]
    assert stored.binary["shared_bytes"] == synthetic._shared(candidate(entry))
    assert stored.provenance["source"] == FakePool().renderer.render(candidate(entry)).digest
    assert any(runner["default"] for runner in stored.runners_up)


def test_no_candidate_is_measured_outside_the_rules_and_none_beyond_the_budget(
    bench: Bench,
) -> None:
    pool = FakePool()
    bench.tune(pool)
    assert all(not FAMILY.broken_rules(c) for c in pool.measured)
    assert len(set(pool.measured)) == 40
    assert set(pool.measured) <= set(pool.prepared)


def test_a_small_space_is_walked_from_end_to_end(bench: Bench) -> None:
    problem = Problem.parse("fwd-bf16-d256-dense")
    legal = space(problem)
    pool = FakePool()
    entry = bench.tune(pool, problem, trials=len(legal))
    assert set(pool.measured) == set(legal)
    assert entry.provenance["search"]["exhaustive"]
    best = min(legal, key=true_us)
    assert true_us(candidate(entry)) <= 1.012 * true_us(best)
    assert bench.events[0].exhaustive


def test_the_default_is_always_in_the_final_lap_and_wins_if_it_is_best(bench: Bench) -> None:
    default = FAMILY.default(PROBLEM, TARGET)
    pool = FakePool(times=lambda c, w: 100.0 if c == default else 120.0 + len(str(c)))
    entry = bench.tune(pool)
    assert candidate(entry) == default
    assert default in pool.lapped
    assert entry.provenance["search"]["default_slower"] == 0


def test_a_lucky_short_measurement_does_not_win(bench: Bench) -> None:
    """The final lap decides, not the single fastest reading."""
    lucky = space()[17]

    class Lucky(FakePool):
        def measure(self, c: Candidate, workload: Workload, seconds: float) -> Any:
            self._times = lambda x, w: 1.0 if x == lucky else true_us(x, w)
            outcome = super().measure(c, workload, seconds)
            self._times = true_us
            return outcome

    bench.store.put(_entry_of(lucky))
    pool = Lucky()
    entry = bench.tune(pool)
    assert lucky in pool.lapped
    assert candidate(entry) != lucky


def test_load_that_comes_and_goes_is_noticed_and_does_not_decide(bench: Bench) -> None:
    calm_winner = bench.tune(FakePool())
    stormy = FakePool()
    stormy.storms = 0.3
    other = Bench(bench.folder / "stormy")
    entry = other.tune(stormy)
    ties = [r["config"] for r in calm_winner.runners_up if r["tie"]]
    assert entry.config == calm_winner.config or entry.config in ties
    usual = calm_winner.measurement.median_us
    assert entry.measurement.median_us == pytest.approx(usual, rel=0.015)
    summary = entry.provenance["search"]
    assert 0 < summary["disturbed_rounds"] < summary["rounds"] / 2
    assert calm_winner.provenance["search"]["disturbed_rounds"] == 0
    assert max(e.disturbed for e in other.events) == summary["disturbed_rounds"]


def test_while_most_rounds_are_disturbed_there_are_more(bench: Bench) -> None:
    pool = FakePool()
    pool.storms = 0.7
    entry = bench.tune(pool, heats=2, rounds=12)
    assert 24 < entry.provenance["search"]["rounds"] <= 48


def _entry_of(c: Candidate, workload: Workload = WORKLOAD) -> Entry:
    from fagen.model import Measurement

    return Entry(
        c.problem, TARGET, workload, c.family.name, config(c), Measurement(1, 1, 1, 1, 0.1, "o")
    )


def test_what_won_on_like_problems_is_tried_first(bench: Bench) -> None:
    near, far = space()[100], space()[200]
    bench.store.put(_entry_of(Candidate(Problem.parse("fwd-bf16-d64-causal"), TARGET, FAMILY,
                                        far.config)))
    bench.store.put(_entry_of(near, Workload(1, 32, 8, 1024, 1024)))
    bench.store.put(_entry_of(Candidate(Problem.parse("fwd-fp16-d128-causal"), TARGET, FAMILY,
                                        space()[300].config)))
    pool = FakePool()
    bench.tune(pool, trials=12)
    first = list(dict.fromkeys(pool.measured))[:3]
    assert first == [FAMILY.default(PROBLEM, TARGET), near, far]
    assert space()[300] not in first


def test_several_families_share_the_trials_and_the_faster_gets_most(bench: Bench) -> None:
    pool = FakePool()
    entry = bench.tune(pool, families=[SLOWER, FAMILY], trials=60)
    assert entry.family == "synthetic"
    tried = [c.family.name for c in dict.fromkeys(pool.measured)]
    assert 1 <= tried.count("slower") < tried.count("synthetic")
    assert {c.family.name for c in pool.lapped} == {"slower", "synthetic"}  # both defaults


SHORT, LONG = Workload(1, 8, 8, 512, 512, 1.0), Workload(1, 8, 8, 4096, 4096, 9.0)


def apart(by: float) -> Callable[[Candidate, Workload], float]:
    """Small tiles are best for the one size, large tiles for the other, so many percent apart."""
    def times(c: Candidate, w: Workload) -> float:
        gap = abs(c.config.block_m - (64 if w.seqlen_q == 512 else 192))
        return 100.0 + by * gap / 128 + c.config.unroll

    return times


def test_several_workloads_share_one_config_by_weight(bench: Bench) -> None:
    pool = FakePool(times=apart(0.8), noise=0.0005)
    entry = bench.tune(pool, workloads=[SHORT, LONG], trials=60)
    assert entry.config["block_m"] == 192
    stored = bench.store.entries()
    assert {str(e.workload): e.workload.weight for e in stored} == {str(SHORT): 1.0, str(LONG): 9.0}
    assert len({tuple(e.config.items()) for e in stored}) == 1
    assert stored[0].measurement.median_us != stored[1].measurement.median_us
    summary = entry.provenance["search"]
    assert summary["configs"] == 1
    assert summary["regret"] == pytest.approx(0.008, abs=0.003)
    assert summary["regret_worst"] == summary["one_config_worst"]


def test_a_workload_gets_its_own_config_where_it_pays(bench: Bench) -> None:
    pool = FakePool(times=apart(30.0))
    bench.tune(pool, workloads=[SHORT, LONG], trials=60)
    stored = {str(e.workload): e for e in bench.store.entries()}
    assert {w: e.config["block_m"] for w, e in stored.items()} == {str(SHORT): 64, str(LONG): 192}
    for entry in stored.values():
        summary = entry.provenance["search"]
        assert summary["configs"] == 2
        assert summary["regret_worst"] < 0.02
        assert summary["one_config_worst"] == pytest.approx(0.3, abs=0.03)
        assert summary["one_config_mean"] == pytest.approx(0.03, abs=0.01)
        own = Space(PROBLEM, TARGET, FAMILY).candidate(entry.config)
        expected = apart(30.0)(own, entry.workload)
        assert entry.measurement.median_us == pytest.approx(expected, rel=0.03)
        default = apart(30.0)(FAMILY.default(PROBLEM, TARGET), entry.workload)
        assert summary["default_us"] == pytest.approx(default, rel=0.03)
        assert entry.runners_up
        assert all(r["config"] != entry.config for r in entry.runners_up)
    assert all(not r["tie"] for r in stored[str(SHORT)].runners_up
               if r["config"]["block_m"] == 192)


# --- failures ----------------------------------------------------------------------------------


def test_failures_are_counted_never_selected_and_stop_nothing(bench: Bench) -> None:
    kinds = {1: "WrongResult", 2: "WorkerTimeout"}
    pool = FakePool(fails=lambda c: kinds.get(c.config.stages, ""))
    entry = bench.tune(pool)
    assert entry.config["stages"] > 2
    failures = entry.provenance["search"]["failures"]
    assert set(failures) == {"run: WrongResult", "run: WorkerTimeout"}
    told = [r for r in journal.records(bench.journal) if r["failure"]]
    assert len(told) == sum(failures.values())
    assert all(r["failure"]["reproduce"].startswith("fagen verify") for r in told)


def test_a_finalist_that_falls_in_the_final_lap_is_left_out(bench: Bench) -> None:
    class Falling(FakePool):
        def lap(self, candidates: Any, workload: Workload, rounds: int) -> Any:
            outcomes = super().lap(candidates, workload, rounds)
            best = min(candidates, key=true_us)
            return [
                synthetic.Failure("run", "WorkerCrashed", "late") if c == best else o
                for c, o in zip(candidates, outcomes, strict=True)
            ]

    pool = Falling()
    entry = bench.tune(pool, heats=1)
    assert candidate(entry) != min(pool.lapped, key=true_us)


def test_when_nothing_works_it_says_why(bench: Bench) -> None:
    with pytest.raises(RunError, match=r"all 40 candidates .* 40 at run .WrongResult.") as caught:
        bench.tune(FakePool(fails=lambda c: "WrongResult"))
    assert str(caught.value.hint).startswith("fagen verify")
    assert bench.store.entries() == ()


# --- going on ----------------------------------------------------------------------------------


def test_a_second_run_knows_what_the_first_was_told(bench: Bench) -> None:
    first, second = FakePool(), FakePool(seed=9)
    bench.tune(first)
    bench.tune(second, trials=50)
    assert not set(first.measured) & set(second.measured)
    assert len(set(second.measured)) == 10
    assert bench.events[-1].kind == "done"
    assert [e.resumed for e in bench.events if e.kind == "start"] == [0, 40]
    third = FakePool()
    bench.tune(third, trials=50, fresh=True)
    assert len(set(third.measured)) == 50


def test_changed_sources_start_another_journal(bench: Bench) -> None:
    bench.tune(FakePool())
    changed = FakePool()
    changed.renderer.version = "2"
    bench.tune(changed)
    assert len(set(changed.measured)) == 40
    assert len(list(bench.journal.parent.glob("*.journal"))) == 2


def test_another_choice_of_a_knob_starts_another_journal(bench: Bench) -> None:
    bench.tune(FakePool())

    @dataclasses.dataclass(frozen=True)
    class Wider(Config):
        unroll: int = knob(1, 2, 4, 8, default=1, says="unrolling")

    kernel = dataclasses.replace(
        FAMILY.kernel("fwd"), config=Wider, default=lambda problem, target: Wider()
    )
    wider = dataclasses.replace(FAMILY, kernels={"fwd": kernel})
    bench.tune(
        FakePool(times=lambda c, w: 100.0 / c.config.unroll), families=[wider], trials=12
    )
    assert len(list(bench.journal.parent.glob("*.journal"))) == 2


class Interrupting(FakePool):
    """Ctrl-C arrives in the middle of the n-th measurement."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def measure(self, c: Candidate, workload: Workload, seconds: float) -> Any:
        if c not in self.measured and len(set(self.measured)) == self.after:
            raise KeyboardInterrupt
        return super().measure(c, workload, seconds)


def test_ctrl_c_stores_the_best_so_far_and_says_how_to_go_on(bench: Bench) -> None:
    pool = Interrupting(15)
    with pytest.raises(Interrupted, match="15 candidates") as caught:
        bench.tune(pool)
    assert caught.value.exit_code == INTERRUPTED
    assert str(bench.journal) in str(caught.value.hint)
    (stored,) = bench.store.entries()
    assert stored.provenance["search"]["complete"] is False
    assert caught.value.entry is not None
    assert caught.value.entry.config == stored.config
    after = FakePool(seed=1)
    bench.tune(after)
    assert not set(pool.measured) & set(after.measured)
    assert bench.store.entries()[0].provenance["search"]["complete"] is True


def test_ctrl_c_before_anything_is_known_stores_nothing(bench: Bench) -> None:
    with pytest.raises(Interrupted, match="nothing new") as caught:
        bench.tune(Interrupting(0))
    assert caught.value.entry is None
    assert bench.store.entries() == ()


def test_ctrl_c_does_not_replace_a_finished_entry_it_did_not_meet(bench: Bench) -> None:
    bench.store.put(_entry_of(space()[50]))
    with pytest.raises(Interrupted, match="nothing new"):
        bench.tune(Interrupting(1))  # only the default was timed
    assert bench.store.entries()[0].config == config(space()[50])


@fault("`kill -9` of a search", "the same command goes on; nothing told is lost")
def test_kill_minus_nine_loses_nothing_that_was_told(tmp_path: Path) -> None:
    # It gets no further than 30 trials, however late it is killed.
    command = [sys.executable, "-m", "tests.unit.synthetic", str(tmp_path), "0", "0.01", "30"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert child.stdout is not None
    told = 0
    for line in child.stdout:
        kind, _, number = line.partition(" ")
        told = int(number) if kind == "trial" else told
        if told >= 12:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    path = next((tmp_path / "journals").glob("*.journal"))
    before = journal.records(path)
    assert len(before) >= told
    bench = Bench(tmp_path)
    pool = FakePool()
    bench.tune(pool, trials=60)
    assert bench.events[0].resumed == len(before)
    assert len(set(pool.measured)) == 60 - len(before)


def test_a_full_disk_stops_the_search_in_words_and_loses_nothing(bench: Bench) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event: Event) -> None:
        if event.kind == "trial" and event.done == 9:
            full = bench.journal.stat().st_size + 99
            resource.setrlimit(resource.RLIMIT_FSIZE, (full, limits[1]))

    pool, after = FakePool(), FakePool()
    try:
        with pytest.raises(StoreError, match="what was told before is safe") as caught:
            bench.tune(pool, listener=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "goes on from there" in str(caught.value.hint)
    bench.tune(after)
    assert bench.events[0].resumed >= 9
    assert not set(list(dict.fromkeys(pool.measured))[:9]) & set(after.measured)


def test_a_torn_line_costs_one_trial_at_most(bench: Bench) -> None:
    bench.tune(FakePool())
    bench.journal.write_bytes(bench.journal.read_bytes()[:-9])
    pool = FakePool()
    bench.tune(pool)
    assert [e.resumed for e in bench.events if e.kind == "start"] in ([0, 40], [0, 39])
    assert len(set(pool.measured)) <= 1


def test_a_second_search_of_the_same_problem_is_refused(bench: Bench) -> None:
    class Nested(FakePool):
        def measure(self, c: Candidate, workload: Workload, seconds: float) -> Any:
            with pytest.raises(StoreError, match=f"process {os.getpid()} is tuning"):
                bench.tune(FakePool())
            return super().measure(c, workload, seconds)

    bench.tune(Nested(), trials=3)


# --- budgets -----------------------------------------------------------------------------------


def test_minutes_end_the_search_and_the_lap_is_still_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    class Slow(FakePool):
        def measure(self, c: Candidate, workload: Workload, seconds: float) -> Any:
            now[0] += 2.0
            return super().measure(c, workload, seconds)

    monkeypatch.setattr("fagen.exploration.time.monotonic", lambda: now[0])
    pool = Slow()
    entry = bench.tune(pool, minutes=1.0, trials=10_000)
    assert len(pool.measured) == 30
    assert pool.lapped
    assert entry.provenance["search"]["complete"]


def test_patience_ends_the_search(bench: Bench) -> None:
    pool = FakePool(times=lambda c, w: 100.0)
    bench.tune(pool, patience=7, trials=500, long_s=0.05)
    assert len(set(pool.measured)) == 8


def test_budgets_say_what_is_wrong_with_them() -> None:
    assert Budget.of("quick", trials=7, minutes=None).trials == 7
    assert Budget.of("full") == EFFORTS["full"]
    for wrong in ({"trials": 0}, {"minutes": 0}, {"minutes": float("nan")}, {"patience": -1}):
        with pytest.raises(UsageError):
            Budget.of("normal", **wrong)
    with pytest.raises(UsageError, match="unknown effort"):
        Budget.of("heroic")


def test_no_workload_and_no_family(bench: Bench) -> None:
    with pytest.raises(UsageError, match="no workload"):
        bench.tune(FakePool(), workloads=[])
    with pytest.raises(UsageError, match="no family serves"):
        bench.tune(FakePool(), families=[])


def test_a_journal_is_named_by_what_it_belongs_to(tmp_path: Path) -> None:
    def path(workloads: list[Workload]) -> Path:
        return journal_path(
            tmp_path, PROBLEM, workloads, TARGET, [FAMILY], synthetic.FakeRenderer()
        )

    assert path([WORKLOAD]) == path([WORKLOAD])
    assert path([WORKLOAD]).name.startswith("fwd-bf16-d128-causal@synthetic-")
    assert path([WORKLOAD]) != path([Workload(4, 32, 8, 8192, 8192, 2.0)])
    assert Config() == FAMILY.default(PROBLEM, TARGET).config
