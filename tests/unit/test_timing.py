"""The timing loops on a clock of our own, and what is made of their samples."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from fagen.neighbours import Gpu
from fagen.timing import Summary, Timer


def test_a_summary_is_the_median_and_the_quartiles():
    assert Summary.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Summary(3.0, 2.0, 4.0, 5)
    assert Summary.of([2.0, 2.0, 2.0]) == Summary(2.0, 2.0, 2.0, 3)


@pytest.fixture
def clock(monkeypatch):
    """Time passes when a call says so, and at no other time."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def call(clock, seconds, counts, name):
    def run():
        counts[name] += 1
        clock[0] += seconds

    return run


def test_samples_are_microseconds_of_the_calls_in_rotation(clock):
    counts = Counter()
    calls = [call(clock, 0.001, counts, "short"), call(clock, 0.003, counts, "long")]
    samples = Timer("cpu").sample(calls, 1.0)
    assert set(map(round, samples)) == {1000, 3000}
    assert abs(counts["short"] - counts["long"]) <= 2
    # 0.3 s of warming up are not among the samples.
    assert sum(samples) * 1e-6 == pytest.approx(0.7, abs=0.05)
    assert clock[0] == pytest.approx(1.0, abs=0.1)


def test_a_call_longer_than_the_time_asked_for_still_gives_three_samples(clock):
    counts = Counter()
    assert len(Timer("cpu").sample([call(clock, 2.0, counts, "slow")], 0.5)) == 3
    assert counts["slow"] == 4  # and one to warm up


def test_once_takes_one_sample_of_each(clock):
    counts = Counter()
    calls = [call(clock, seconds, counts, seconds) for seconds in (0.5, 0.25)]
    assert Timer("cpu").once(calls) == [500000.0, 250000.0]


def test_a_clock_nobody_can_read_is_zero():
    assert Gpu("GPU-00000000-0000-0000-0000-000000000000").mhz() == 0.0
    assert Timer("cpu").mhz() == 0.0
