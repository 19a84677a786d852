"""Real faults on a GPU: each is a Failure, and the next kernel runs."""

from __future__ import annotations

import pytest

from fagen.build import Builder, Cache
from fagen.cases import of_workload
from fagen.model import Failure, Measurement
from fagen.pool import Pool, Verdict
from fagen.station import Limits
from fagen.workload import Workload
from tests.faults.family import candidate, renderer
from tests.gpu.test_conformance import DEVICE, TARGET

pytestmark = pytest.mark.gpu

SMALL = Workload(1, 2, 1, 70, 90)
EXPECTED = {
    "illegal_address": ("run", "RunError", "CUDA"),
    "trap": ("run", "RunError", "CUDA"),
    "hang": ("verify", "WorkerTimeout", "no answer within 8 s while running"),
    "wrong": ("verify", "WrongResult", "o is wrong on b1-h1-s128"),
    "nan": ("verify", "WrongResult", "1 of 2048 elements of o on b1-h1-s128 are NaN"),
    "past_the_end": ("verify", "WrongResult", "4 bytes starting 20 bytes after its end"),
    "out_of_memory": ("run", "OutOfMemory", "memory"),
    "too_much_shared": ("run", "RunError", "shared"),
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "templates").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(folder / "cache"))
        builder, render = Builder(Cache(folder / "cache")), renderer(folder / "templates")
        with Pool(
            builder, render, DEVICE, jobs=4, scratch=folder, limits=Limits(run=8.0)
        ) as pool:
            yield pool


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_is_a_failure_and_the_pool_goes_on(pool, fault):
    stage, kind, words = EXPECTED[fault]
    outcome = pool.measure(candidate(TARGET, fault=fault), SMALL, seconds=0.02)
    assert isinstance(outcome, Failure)
    assert (outcome.stage, outcome.kind) == (stage, kind), outcome.reason
    assert words.lower() in outcome.reason.lower()
    good = pool.measure(candidate(TARGET), SMALL, seconds=0.02)
    assert isinstance(good, Measurement), good


def test_runs_that_differ_in_one_bit_are_seen(pool):
    cases, unsteady = [of_workload(SMALL)], candidate(TARGET, fault="unsteady")
    assert isinstance(pool.check(unsteady, cases), Verdict)
    outcome = pool.check(unsteady, cases, runs=2)
    assert isinstance(outcome, Failure)
    assert "gives another o than the first run" in outcome.reason


def test_a_measurement_on_a_gpu_is_complete(pool):
    outcome = pool.measure(candidate(TARGET), SMALL, seconds=0.1)
    assert isinstance(outcome, Measurement)
    assert outcome.low_us <= outcome.median_us <= outcome.high_us
    assert outcome.clock_mhz > 100
    assert outcome.samples >= 3
