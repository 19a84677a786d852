"""Whatever a kernel or its compilation does, the pool answers with a Failure and goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fagen import paths
from fagen.build import Builder, Cache
from fagen.cases import of_workload
from fagen.devices import host
from fagen.model import Failure, Measurement
from fagen.pool import Pool, Verdict
from fagen.station import Limits
from fagen.target import Target
from fagen.workload import Workload
from tests.faults.family import GPU_FAULTS, candidate, renderer
from tests.faults.table import fault as injects
from tests.faults.table import row

ROOT = Path(__file__).parents[2]

SMALL = Workload(1, 2, 1, 70, 90)
# Of what must come to an end: a machine with other work takes its time.
PATIENT = Limits(build=600.0, start=600.0, prepare=600.0, run=600.0, time=600.0)

# fault: stage, kind, and words of the reason
EXPECTED = {
    "segfault": ("verify", "WorkerCrashed", "died of SIGSEGV while running b1-h1-s128"),
    "abort": ("verify", "WorkerCrashed", "died of SIGABRT"),
    "exit": ("verify", "WorkerCrashed", "exited with 0"),
    "hang": ("verify", "WorkerTimeout", "no answer within 3 s while running b1-h1-s128"),
    "wrong": ("verify", "WrongResult", "o is wrong on b1-h1-s128"),
    "nan": ("verify", "WrongResult", "1 of 2048 elements of o on b1-h1-s128 are NaN"),
    "unwritten": ("verify", "WrongResult", "16 of 2048 elements of o on b1-h1-s128 are NaN"),
    "past_the_end": ("verify", "WrongResult", "4 bytes starting 20 bytes after its end"),
    "far_away": ("verify", "WorkerCrashed", "died of SIG"),
    "input": ("verify", "WrongResult", "changed its input k"),
    "garbage_everywhere": ("verify", "WorkerCrashed", "something else wrote into"),
    "compile_error": ("build", "BuildError", "this kernel does not compile"),
}

WORDS = {
    "segfault": "a kernel that dies of SIGSEGV", "abort": "a kernel that aborts",
    "exit": "a kernel that ends its process", "hang": "a kernel that never ends",
    "wrong": "a wrong output", "nan": "one NaN in an output", "unwritten": "a row not written",
    "past_the_end": "a write past the end of an output", "far_away": "a write far away",
    "input": "a changed input", "garbage_everywhere": "garbage in the worker's answers",
    "compile_error": "a kernel that does not compile",
}
for name, (stage, kind, words) in EXPECTED.items():
    row(__name__, WORDS[name], f"failure at {stage}, {kind}: \"{words}\"; the pool goes on")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cache and a renderer for all tests here."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "templates").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(folder / "cache"))
        yield folder, Builder(Cache(folder / "cache")), renderer(folder / "templates")


@pytest.fixture(scope="module")
def target():
    return host().target


@pytest.fixture(scope="module")
def pool(world, target):
    folder, builder, render = world
    with Pool(builder, render, "cpu", jobs=2, scratch=folder / "scratch", limits=PATIENT) as pool:
        pool.prepare(candidate(target, fault=fault) for fault in ("none", *EXPECTED))
        yield pool


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_is_a_failure_and_the_pool_goes_on(pool, target, fault):
    stage, kind, words = EXPECTED[fault]
    with pytest.MonkeyPatch.context() as patch:
        if fault == "hang":
            patch.setitem(pool.station.worker.limits, "run", 3.0)
        outcome = pool.measure(candidate(target, fault=fault), SMALL, seconds=0.02)
    assert isinstance(outcome, Failure)
    assert (outcome.stage, outcome.kind) == (stage, kind), outcome.reason
    assert words in outcome.reason
    assert outcome.reproduce == (
        "fagen verify 'fwd-fp32-d16-causal' --gpu none --family faults"
        f" --set fault={fault} --set twin=0"
    )
    good = pool.measure(candidate(target), SMALL, seconds=0.02)
    assert isinstance(good, Measurement), good


@injects("a kernel that prints", "nothing of it reaches the protocol; it is timed")
def test_garbage_on_stdout_does_not_reach_the_protocol(pool, target):
    outcome = pool.measure(candidate(target, fault="garbage"), SMALL, seconds=0.02)
    assert isinstance(outcome, Measurement)
    assert outcome.median_us > 1
    assert 0 <= outcome.error < 1


@injects("an output that differs in one bit from run to run", "failure of what must repeat")
def test_runs_that_differ_in_one_bit_are_seen(pool, target):
    cases, unsteady = [of_workload(SMALL)], candidate(target, fault="unsteady")
    assert isinstance(pool.check(unsteady, cases), Verdict)
    outcome = pool.check(unsteady, cases, runs=2)
    assert isinstance(outcome, Failure)
    assert outcome.reason == "run 2 on b1-h2x1-s70x90 gives another o than the first run"
    assert isinstance(pool.check(candidate(target), cases, runs=100), Verdict)


@injects("another process that measures on the device", "waits for its turn, and says for whom")
def test_a_measurement_waits_for_another_process_that_measures(world, target):
    folder, builder, render = world
    said: list[str] = []
    code = (
        "import sys; from pathlib import Path; from fagen.lock import DeviceLock\n"
        "with DeviceLock(Path(sys.argv[1]), 'cpu').held():\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(paths.locks())]
    second = folder / "second"

    def let_go(text: str) -> None:
        said.append(text)
        other.stdin.close()

    with Pool(builder, render, "cpu", jobs=1, scratch=second, on_wait=let_go) as pool:
        pool.verify(candidate(target))
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                 cwd=ROOT)
        assert other.stdout.readline() == "held\n"
        outcome = pool.measure(candidate(target), SMALL, seconds=0.02)
        assert other.wait() == 0
    assert isinstance(outcome, Measurement)
    assert said == [f"cpu is in use by process {other.pid} (-c {command[-1]}); waiting"]


@pytest.mark.parametrize("fault", GPU_FAULTS)
def test_the_gpu_faults_compile(world, fault):
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    _, builder, render = world
    made = candidate(Target.known("h200"), fault=fault)
    assert builder.build(made, render.render(made)).arch == "sm_90"


def test_a_crash_on_the_workload_alone_names_the_workload(pool, target):
    large = Workload(1, 1, 1, 1600, 64)
    outcome = pool.measure(candidate(target, fault="large"), large, seconds=0.02)
    assert isinstance(outcome, Failure)
    assert "SIGSEGV while running b1-h1-s1600x64" in outcome.reason
    assert outcome.reproduce.endswith("--workload b1-h1-s1600x64")


def test_a_lap_leaves_out_who_fails(pool, target):
    field = [candidate(target, twin=0), candidate(target, fault="wrong"), candidate(target, twin=1)]
    first, wrong, second = pool.lap(field, SMALL, rounds=4)
    assert isinstance(wrong, Failure)
    for good, outcome in ((field[0], first), (field[2], second)):
        assert isinstance(outcome, Measurement)
        assert len(pool.lap_samples[good]) == 4
        assert outcome.low_us <= outcome.median_us <= outcome.high_us
    assert field[1] not in pool.lap_samples


def test_a_reference_is_timed_beside_the_candidates(pool, target):
    steady = candidate(target)
    assert isinstance(pool.measure(candidate(target, twin=1), SMALL, 0.02), Measurement)
    for _ in range(3):
        begin = time.monotonic()
        us = pool.reference(steady, SMALL, 0.02)
        assert 1 < us < 1e6 * (time.monotonic() - begin)
    assert 0 <= pool.conditions.busy <= 1
    fell = pool.reference(candidate(target, fault="wrong"), SMALL, 0.02)
    assert isinstance(fell, Failure)


def test_other_implementations_take_turns_with_ours(pool, target):
    square = Workload(1, 2, 1, 90, 90)
    samples = pool.contest(candidate(target), square, rounds=4)
    assert {name: len(times) for name, times in samples.items()} == {"": 4, "torch": 4}
    assert min(map(min, samples.values())) > 0
    assert pool.contest(candidate(target), SMALL, rounds=4) == {"": []}  # torch aligns otherwise


@injects("a crash in the final lap", "who crashed is named and left out; the others are timed")
def test_who_crashes_in_the_middle_of_a_lap_is_named(pool, target, monkeypatch):
    """Verified on a small size, so that the crash comes in the lap itself."""
    large, small = Workload(1, 1, 1, 1600, 64), pool.verify(candidate(target, twin=1))
    monkeypatch.setattr(pool, "_passes", lambda candidate, case: small)
    field = [candidate(target, twin=1), candidate(target, fault="large")]
    good, bad = pool.lap(field, large, rounds=3)
    assert isinstance(good, Measurement)
    assert isinstance(bad, Failure)
    assert (bad.stage, bad.kind) == ("measure", "WorkerCrashed")
    assert "died of SIGSEGV while timing b1-h1-s1600x64" in bad.reason


@injects("`kill -9` of the worker while it times", "failure of that candidate; a new worker")
def test_kill_of_the_worker_in_mid_measure_is_survived(pool, target):
    good, slow = candidate(target), Workload(1, 8, 8, 500, 500)
    assert isinstance(pool.measure(good, slow, seconds=0.02), Measurement)
    pid = pool.worker_pid
    line = pool.station.worker._line

    def killing(seconds, words):
        if words.startswith("while timing"):
            os.kill(pid, signal.SIGKILL)
        return line(seconds, words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool.station.worker, "_line", killing)
        outcome = pool.measure(good, slow, seconds=300.0)
    assert isinstance(outcome, Failure)
    assert (outcome.stage, outcome.kind) == ("measure", "WorkerCrashed")
    assert "SIGKILL" in outcome.reason
    assert isinstance(pool.measure(good, SMALL, seconds=0.02), Measurement)
    assert pool.worker_pid != pid


@injects("a compiler that hangs", "killed at the deadline, with all it started; failure at build")
def test_a_compiler_that_hangs_is_killed(world, target):
    folder, builder, render = world
    limits = Limits(build=2.0)
    with Pool(builder, render, "cpu", jobs=1, scratch=folder / "hang", limits=limits) as pool:
        outcome = pool.measure(candidate(target, fault="compile_hang"), SMALL, seconds=0.02)
    assert isinstance(outcome, Failure)
    assert (outcome.stage, outcome.kind) == ("build", "BuildError")
    assert "did not finish within 2 s" in outcome.reason
