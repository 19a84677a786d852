"""What the reference says of the device, what is timed again, and what is left alone."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fagen import journal
from fagen.budget import Budget
from fagen.cli.output import thrown_away
from fagen.families.base import Rule
from fagen.history import searches
from fagen.model import Candidate, Entry, Failure, Measurement
from fagen.neighbours import Conditions
from fagen.search import Event, tune
from fagen.store import Store
from fagen.taint import Guard
from fagen.usual import Look, Usual
from fagen.workload import Workload
from tests.faults.table import fault
from tests.unit import synthetic
from tests.unit.synthetic import PROBLEM, TARGET, WORKLOAD, FakePool, true_us


class Clock:
    """Time passes when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    monkeypatch.setattr(time, "sleep", made.sleep)
    return made


# --- one look ------------------------------------------------------------------------------------


def usual(*us: float, **conditions: float) -> Usual:
    known = Usual()
    for one in us:
        known.take(look(one, **conditions))
    return known


def look(us: float, **conditions: float) -> Look:
    return Look(us, Conditions(**conditions))  # type: ignore[arg-type]


@pytest.mark.parametrize(("us", "slow", "fast"), [
    (100, False, False), (104, False, False), (96, False, False),
    (118, True, False), (160, True, False), (80, False, True),
])
def test_a_look_is_judged_by_the_median_of_the_good_ones(us: int, slow: bool, fast: bool) -> None:
    known = usual(100, 101, 99, 100, 100.5)
    assert (known.is_slow(look(us)), known.is_fast(look(us))) == (slow, fast)


def test_the_first_look_is_the_usual() -> None:
    assert not Usual().is_slow(look(100))
    assert not Usual().is_fast(look(100))


def test_a_loud_reference_is_given_more_room() -> None:
    assert usual(100, 104, 96, 103, 97).allowed() == pytest.approx(0.12)
    assert usual(100, 130, 70, 150, 60).allowed() == 0.15
    assert usual(100, 100.1, 99.9, 100, 100).allowed() == 0.06


def test_the_median_moves_along_with_a_clock_that_sinks_slowly() -> None:
    known = usual(100, 100, 100)
    for step in range(200):
        now = look(100 * 1.004**step)
        assert not known.is_slow(now)
        known.take(now)
    assert now.us > 200


@pytest.mark.parametrize(("conditions", "says"), [
    ({"mhz": 1620.0, "busy": 0.9}, "its clock fell from 1980 to 1620 MHz"),
    ({"mhz": 1975.0, "busy": 0.45}, "others used 45% of the device"),
    ({"mhz": 1980.0, "others": 2}, "2 other processes hold the device"),
    ({}, "something else used the device"),
])
def test_the_reason_is_told_in_words(conditions: dict[str, float], says: str) -> None:
    assert usual(100, 100, mhz=1980.0).reason(Conditions(**conditions)) == says  # type: ignore[arg-type]


def test_load_that_is_always_there_crowds_nobody() -> None:
    known = usual(100, 100, 100, busy=0.3)
    assert not known.is_crowded(Conditions(0.45))
    assert known.is_crowded(Conditions(0.55))


# --- a guard over timings ------------------------------------------------------------------------


class World:
    """A device that is slower at times, and candidates that each take a while."""

    def __init__(
        self, clock: Clock, slower: Callable[[float], float], noise: float = 0.01, seed: int = 0
    ) -> None:
        self.clock, self.slower, self.noise = clock, slower, noise
        self.begin, self._random = clock.now, random.Random(seed)
        self.times: dict[str, float] = {}
        self.again: list[str] = []
        self.said: list[str] = []
        self.guard: Guard[str] = Guard(self.look, self.once_more, self.best, self.said.append)

    def now(self) -> float:
        return self.clock.now - self.begin

    def _us(self, seconds: float) -> float:
        factor = self.slower(self.now())
        self.clock.now += seconds
        return 100 * factor * (1 + self._random.gauss(0, self.noise))

    def look(self) -> Look:
        return Look(self._us(0.05), Conditions())

    def once_more(self, name: str) -> None:
        self.again.append(name)
        self.time(name)

    def best(self, names: Iterable[str]) -> Sequence[str]:
        return sorted(names, key=lambda name: self.times[name])

    def time(self, name: str) -> None:
        self.times[name] = self._us(0.4)
        self.guard.timed(name, Conditions())

    def run(self, count: int) -> None:
        for number in range(count):
            self.time(f"c{number}")
            if self.guard.due:
                self.guard.check()
        self.guard.finish()


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_thrown_away_where_nothing_is_disturbed(clock: Clock, seed: int) -> None:
    world = World(clock, lambda t: 1.0, seed=seed)
    world.run(400)
    assert world.said == []
    assert world.guard.thrown_away == 0
    assert world.guard.looks > 50
    assert world.guard.seconds < 0.03 * world.now()


def test_an_expensive_reference_is_asked_for_less_often(clock: Clock) -> None:
    world = World(clock, lambda t: 1.0)
    cheap = world.look

    def slow() -> Look:
        clock.now += 0.45
        return cheap()

    world.guard = Guard(slow, world.once_more, world.best, world.said.append)
    world.run(400)
    assert world.guard.seconds < 0.03 * world.now()


def test_a_slow_drift_that_all_share_throws_nothing_away(clock: Clock) -> None:
    world = World(clock, lambda t: 1 + 0.3 * t / 200)
    world.run(400)
    assert world.guard.thrown_away == 0


@pytest.mark.parametrize("seed", range(5))
def test_what_a_burst_disturbed_is_timed_again(clock: Clock, seed: int) -> None:
    world = World(clock, lambda t: 1.6 if 30 < t < 42 else 1.0, seed=seed)
    world.run(200)
    assert max(world.times.values()) < 105
    assert 12 / 0.4 <= world.guard.thrown_away <= 50
    assert "the reference ran 6" in world.said[0]
    assert world.said[0].endswith("% slow: something else used the device; "
                                  f"{len(world.again)} candidates are timed again")


def test_a_step_that_stays_is_the_new_usual_and_the_best_are_compared_at_it(clock: Clock) -> None:
    world = World(clock, lambda t: 1.25 if t > 60 else 1.0)
    world.run(500)
    assert any("the reference takes +2" in says for says in world.said)
    assert len(world.said) == 1
    assert world.guard.thrown_away == 16
    early = [f"c{n}" for n in range(140)]
    assert sum(world.times[name] > 115 for name in early) == 16


def test_after_a_slow_beginning_the_best_are_timed_again(clock: Clock) -> None:
    """The usual was not known yet, and turns out to have been better."""
    world = World(clock, lambda t: 1.5 if t < 20 else 1.0)
    world.run(200)
    assert [says for says in world.said if "from now on" in says]
    assert sum(us > 130 for us in world.times.values()) <= 60 - 16


def test_it_gives_up_after_a_few_times_and_waits_for_no_longer_than_there_is(clock: Clock) -> None:
    rng = random.Random(1)
    wild = World(clock, lambda t: 1 + rng.random())
    wild.run(100)
    assert wild.guard.thrown_away <= 3 * 100
    for until, most in ((math.inf, 50), (clock.now + 22, 25)):
        late = World(clock, lambda t: 1.5 if t > 10 else 1.0)
        late.guard = Guard(late.look, late.once_more, late.best, late.said.append, until)
        late.run(50)
        assert 20 < late.now() < most


def test_who_was_crowded_is_timed_again_though_the_reference_is_fine(clock: Clock) -> None:
    world = World(clock, lambda t: 1.0)
    world.run(10)
    world.guard.timed("c3", Conditions(busy=0.5))
    assert world.guard.due
    world.guard.check()
    assert world.again == ["c3"]
    assert world.said == ["others used 50% of the device; 1 candidate is timed again"]


def test_without_a_reference_nothing_happens(clock: Clock) -> None:
    guard: Guard[str] = Guard(lambda: None, pytest.fail, sorted, pytest.fail)
    guard.timed("a", Conditions(busy=0.9))
    guard.check()
    assert (guard.looks, guard.thrown_away) == (0, 0)


# --- in a search ---------------------------------------------------------------------------------


# Few enough that all are tried: the winner is the same with any luck.
FAMILY = synthetic.limited(
    Rule("it is one of a few", lambda c: c.config.unroll == 2 and c.config.stages in (2, 3)
         and c.config.block_n >= 80),
)
POINTS = len(synthetic.space(family=FAMILY))


class Beside(FakePool):
    """A device that a neighbour uses from time to time."""

    def __init__(self, clock: Clock, slower: Callable[[float], float], seed: int = 0) -> None:
        super().__init__(seed)
        self.clock, self.slower, self.begin = clock, slower, clock.now

    def _now(self, seconds: float) -> float:
        factor = self.slower(self.clock.now - self.begin)
        self.clock.now += seconds
        return factor

    def measure(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> Measurement | Failure:
        self.clock.now += 0.2  # verified first
        factor, outcome = self._now(seconds), super().measure(candidate, workload, seconds)
        assert isinstance(outcome, Measurement)
        return replace(outcome, median_us=factor * outcome.median_us)

    def reference(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> float | Failure:
        us = super().reference(candidate, workload, seconds)
        assert isinstance(us, float)
        return self._now(seconds) * us

    def lap(
        self, candidates: Sequence[Candidate], workload: Workload, rounds: int
    ) -> list[Measurement | Failure]:
        super().lap(candidates, workload, rounds)
        for r in range(rounds):
            for samples in self.lap_samples.values():
                samples[r] *= self._now(0.02)
        return [synthetic._measurement(c, workload, self.lap_samples[c]) for c in candidates]


def search(
    folder: Path, pool: FakePool, events: list[Event] | None = None, **budget: int
) -> Entry:
    told = [] if events is None else events
    return tune(PROBLEM, [WORKLOAD], TARGET, [FAMILY], pool, Store([], folder / "tuned"),
                folder / "journals", Budget(**{"trials": POINTS, **budget}), told.append)


def by_turns(seconds: float) -> Callable[[float], float]:
    """Half of the time it takes its share."""
    return lambda t: 1.7 if t % (2 * seconds) >= seconds else 1.0


def true(entry: Entry) -> float:
    return true_us(FAMILY.default(PROBLEM, TARGET).with_config(**entry.config))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    return search(tmp_path_factory.mktemp("alone"), FakePool())


@fault("another process that uses the device half of the time", "noticed, in words; what it "
       "disturbed is timed again, and the winner is the same", times=3)
@pytest.mark.parametrize("seconds", [3.0, 10.0, 25.0])
def test_a_neighbour_half_of_the_time_changes_no_winner(
    clock: Clock, tmp_path: Path, alone: Entry, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    events: list[Event] = []
    beside = search(tmp_path, Beside(clock, by_turns(seconds)), events)
    ties = [r["config"] for r in alone.runners_up if r["tie"]]
    assert beside.config == alone.config or beside.config in ties
    assert beside.measurement.median_us == pytest.approx(alone.measurement.median_us, rel=0.015)
    said = [e.says for e in events if e.kind == "again"]
    assert any("slow: something else used the device" in says for says in said)
    summary = beside.provenance["search"]
    assert summary["thrown_away"] == events[-1].thrown_away > 5
    assert alone.provenance["search"]["thrown_away"] == 0


def test_a_heat_of_the_final_lap_that_was_disturbed_is_run_again(clock: Clock) -> None:
    world = World(clock, lambda t: 1.5 if 12 < t < 17 else 1.0)
    world.run(20)
    heats: list[float] = []

    def heat() -> float:
        heats.append(world._us(4.5))
        return heats[-1]

    assert world.guard.undisturbed(heat, "a heat") < 105
    assert world.guard.undisturbed(heat, "a heat") < 105
    assert len(heats) == 3
    assert world.said[-1].endswith("% slow: something else used the device; a heat is run again")


def test_what_is_timed_again_counts_and_is_known_to_a_later_run(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    pool = Beside(clock, by_turns(5.0))
    search(tmp_path, pool)
    path = next((tmp_path / "journals").glob("*.journal"))
    records = journal.records(path)
    assert len(records) > POINTS
    latest = {str(r["config"]): r for r in records}
    assert len(latest) == POINTS
    (seen,) = searches(tmp_path / "journals")
    assert len(seen.told) == POINTS
    assert {t.trial.score for t in seen.told} == {r["score"] for r in latest.values()}
    config = FAMILY.default(PROBLEM, TARGET).with_config
    wrong = [r for r in latest.values() if r["score"] > 1.2 * true_us(config(**r["config"]))]
    assert len(wrong) < POINTS / 10
    events: list[Event] = []
    search(tmp_path, FakePool(), events)
    assert events[0].resumed == POINTS


@pytest.mark.parametrize(("summary", "says"), [
    ({}, "nothing"),
    ({"thrown_away": 0, "rounds": 60, "disturbed_rounds": 0}, "nothing"),
    ({"thrown_away": 3, "rounds": 60, "disturbed_rounds": 4}, "3 timings and 4 of 60 rounds"),
    ({"thrown_away": 3}, "3 timings"),
])
def test_what_was_thrown_away_is_shown(summary: dict[str, int], says: str) -> None:
    assert thrown_away(summary) == says
