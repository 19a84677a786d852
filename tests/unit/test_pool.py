"""The pool's own behaviour: building ahead, pausing, locking, dying with its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fagen.build import Builder, Cache
from fagen.builds import Builds, Built, signal_tree
from fagen.cases import of_workload
from fagen.errors import RunError, SetupError
from fagen.lock import DeviceLock
from fagen.model import Failure
from fagen.pool import Pool
from fagen.station import Limits, reproduce
from fagen.target import Target
from fagen.workload import Workload
from tests.faults.family import candidate, renderer

ROOT = Path(__file__).parents[2]
V3 = Target.known("x86-64-v3")


def eventually(holds, seconds=300.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return False


def alive(pid):
    """Running, and not only waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def templates(tmp_path):
    (tmp_path / "templates").mkdir()
    return renderer(tmp_path / "templates")


@pytest.fixture
def builds(tmp_path, templates, monkeypatch):
    monkeypatch.setenv("FAGEN_CACHE_DIR", str(tmp_path / "cache"))
    made = Builds(Builder(Cache(tmp_path / "cache")), templates, 2, tmp_path / "libraries", 600.0)
    yield made
    made.close()


class TestBuilds:
    def test_what_is_added_is_built_without_being_asked_for(self, builds):
        good, bad = candidate(V3), candidate(V3, fault="compile_error")
        builds.add(bad)
        builds.add(good)
        libraries = builds.folder
        assert eventually(lambda: builds.pump() or list(libraries.glob("*.so")))
        built = builds.get(good)
        assert isinstance(built, Built)
        assert built.library.parent == libraries
        failure = builds.get(bad)
        assert isinstance(failure, Failure)
        assert (failure.stage, failure.kind) == ("build", "BuildError")

    def test_a_paused_compiler_does_not_run(self, builds):
        builds.add(candidate(V3, fault="compile_hang"))
        pids = [running.process.pid for running in builds._running.values()]
        assert eventually(lambda: compiling(pids[0]))
        with builds.paused():
            assert eventually(lambda: {state(pid) for pid in tree(pids[0])} == {"T"})
            before = [cpu_ticks(pid) for pid in tree(pids[0])]
            time.sleep(0.3)
            assert [cpu_ticks(pid) for pid in tree(pids[0])] == before
            builds.add(candidate(V3))
            assert len(builds._running) == 1
        assert eventually(lambda: "T" not in {state(pid) for pid in tree(pids[0])})
        assert isinstance(builds.get(candidate(V3)), Built)

    def test_close_leaves_no_process_behind(self, builds):
        builds.add(candidate(V3, fault="compile_hang"))
        [running] = builds._running.values()
        assert eventually(lambda: compiling(running.process.pid))
        pids = tree(running.process.pid)
        builds.close()
        assert eventually(lambda: not any(alive(pid) for pid in pids))

    def test_a_build_child_that_dies_is_a_failure(self, builds, monkeypatch):
        monkeypatch.setattr(builds, "_build", lambda c: os.kill(os.getpid(), signal.SIGKILL))
        outcome = builds.get(candidate(V3))
        assert isinstance(outcome, Failure)
        assert "the build process died (-9)" in outcome.reason

    def test_ctrl_c_that_reaches_a_build_child_before_it_leaves_is_ignored(
        self, builds, monkeypatch
    ):
        setsid = os.setsid
        monkeypatch.setattr(os, "setsid", lambda: (os.kill(os.getpid(), signal.SIGINT), setsid()))
        assert isinstance(builds.get(candidate(V3)), Built)

    def test_a_build_child_holds_nothing_of_its_parent(self, builds, tmp_path):
        with DeviceLock(tmp_path, "cpu").held():
            builds.add(candidate(V3, fault="compile_hang"))
            [running] = builds._running.values()
            files = Path(f"/proc/{running.process.pid}/fd")
            assert eventually(lambda: compiling(running.process.pid))
            opened = {os.readlink(file) for file in files.iterdir()}
            assert not [name for name in opened if name.endswith(".lock")]
        with DeviceLock(tmp_path, "cpu", wait=0).held():
            pass

    def test_a_missing_compiler_is_not_the_candidates_fault(self, builds, monkeypatch):
        def build(c):
            raise SetupError("no compiler", "install one")

        monkeypatch.setattr(builds, "_build", build)
        with pytest.raises(SetupError, match="no compiler"):
            builds.get(candidate(V3))


def tree(pid):
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
        except FileNotFoundError:
            continue
    return found


def compiling(pid):
    """The build child, the compiler's driver and the compiler itself are there."""
    try:
        names = [Path(f"/proc/{p}/comm").read_text().strip() for p in tree(pid)]
    except FileNotFoundError:
        return False
    return len(names) >= 3 and (names[-1].startswith("cc1") or "clang" in names[-1])


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_signal_tree_of_a_process_that_is_gone_is_nothing():
    process = subprocess.Popen(["true"])
    process.wait()
    signal_tree(process.pid, signal.SIGKILL)


class TestLock:
    def test_the_second_one_is_told_who_has_it(self, tmp_path):
        said = []
        holder = DeviceLock(tmp_path, "GPU-1234")
        waiter = DeviceLock(tmp_path, "GPU-1234", wait=0.2, on_wait=said.append)
        with holder.held(), pytest.raises(RunError) as caught, waiter.held():
            pass
        assert f"GPU-1234 is in use by process {os.getpid()}" in caught.value.message
        assert len(said) == 1
        with waiter.held():
            pass

    def test_two_devices_do_not_meet(self, tmp_path):
        with DeviceLock(tmp_path, "GPU-1").held(), DeviceLock(tmp_path, "GPU-2", wait=0).held():
            pass

    def test_who_measures_over_and_over_lets_others_have_a_turn(self, tmp_path):
        code = (
            "import sys; from pathlib import Path; from fagen.lock import DeviceLock\n"
            f"lock = DeviceLock(Path({str(tmp_path)!r}), 'cpu')\n"
            "while True:\n"
            "    with lock.held():\n"
            "        print('turn', flush=True); sys.stdin.readline()\n"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

        def end_turn(text):  # its next one would last for ever
            other.stdin.write("\n")
            other.stdin.flush()

        for _ in range(3):
            assert other.stdout.readline() == "turn\n"
            with DeviceLock(tmp_path, "cpu", wait=60, on_wait=end_turn).held():
                pass
        other.kill()
        other.communicate()

    def test_a_forked_child_does_not_keep_it(self, tmp_path):
        with DeviceLock(tmp_path, "cpu").held():
            child = os.fork()
            if child == 0:
                time.sleep(600)
                os._exit(0)
        try:
            with DeviceLock(tmp_path, "cpu", wait=0).held():
                pass
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def test_a_killed_holder_gives_it_back(self, tmp_path):
        code = (
            "import sys, time; from pathlib import Path; from fagen.lock import DeviceLock\n"
            f"with DeviceLock(Path({str(tmp_path)!r}), 'cpu').held():\n"
            "    print('held', flush=True); time.sleep(600)\n"
        )
        holder = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError), DeviceLock(tmp_path, "cpu", wait=0).held():
            pass
        holder.kill()
        holder.communicate()
        with DeviceLock(tmp_path, "cpu", wait=0).held():
            pass

    def test_a_folder_that_cannot_be_written_is_a_setup_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(SetupError, match="cannot be opened: File exists"), DeviceLock(
            tmp_path / "file", "cpu"
        ).held():
            pass

    def test_a_full_disk_only_hides_the_name_of_the_holder(self, tmp_path):
        (tmp_path / "cpu.lock").symlink_to("/dev/full")
        with DeviceLock(tmp_path, "cpu").held():
            pass


class TestReproduce:
    def test_a_known_target_is_named(self):
        command = reproduce(candidate(V3, fault="abort"))
        assert command == (
            "fagen verify 'fwd-fp32-d16-causal' --target x86-64-v3 --family faults"
            " --set fault=abort --set twin=0"
        )

    def test_another_host_is_this_host(self):
        mine = Target("my-laptop", "cpu", isa=V3.isa)
        command = reproduce(candidate(mine), of_workload(Workload(1, 2, 1, 3, 4)))
        assert command.endswith("--set twin=0 --workload b1-h2x1-s3x4")
        assert "--gpu none" in command


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_worker_dies_with_its_parent_even_in_a_kernel_that_hangs(tmp_path, number):
    code = """
import sys
from pathlib import Path
from fagen.build import Builder, Cache
from fagen.devices import host
from fagen.pool import Pool
from tests.faults.family import candidate, renderer
folder = Path(sys.argv[1])
(folder / "t").mkdir()
with Pool(Builder(Cache(folder / "cache")), renderer(folder / "t"), "cpu", jobs=1,
          scratch=folder / "scratch") as pool:
    pool.build(candidate(host().target, fault="hang"))
    pool.station.worker.start()
    print(pool.worker_pid, flush=True)
    pool.verify(candidate(host().target, fault="hang"))
"""
    environment = {**os.environ, "FAGEN_CACHE_DIR": str(tmp_path / "cache")}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env=environment, stderr=subprocess.DEVNULL,
    )
    worker = int(parent.stdout.readline())
    assert alive(worker)
    before = cpu_ticks(worker)
    assert eventually(lambda: cpu_ticks(worker) > before + 50)  # it spins
    parent.send_signal(number)
    parent.communicate()
    assert parent.returncode == -number
    assert eventually(lambda: not alive(worker))


def test_a_worker_that_cannot_start_is_a_setup_error(tmp_path, templates):
    with (
        Pool(Builder(Cache(tmp_path)), templates, "cuda:77", jobs=1, scratch=tmp_path / "s",
             limits=Limits(start=600)) as pool,
        pytest.raises(SetupError, match="the worker for cuda:77 does not start"),
    ):
        pool.station.worker.start()


def test_a_worker_runs_under_a_wrapper_and_is_left_to_finish(tmp_path, templates):
    """As a sanitizer needs it, which reports when the worker is gone."""
    report = tmp_path / "report"
    wrapper = ("sh", "-c", f'"$@"; echo done $? > {report}', "wrapper")
    with Pool(
        Builder(Cache(tmp_path)), templates, "cpu", jobs=1, scratch=tmp_path, wrapper=wrapper
    ) as pool:
        pool.station.worker.start()
    assert report.read_text() == "done 0\n"


def test_a_log_that_cannot_be_written_is_a_setup_error(tmp_path, templates):
    (tmp_path / "file").write_text("")
    scratch = tmp_path / "file" / "scratch"
    with (
        Pool(Builder(Cache(tmp_path)), templates, "cpu", jobs=1, scratch=scratch) as pool,
        pytest.raises(SetupError, match=r"worker.log cannot be written: Not a directory"),
    ):
        pool.station.worker.start()


def test_the_worker_can_be_talked_to_by_hand():
    case = of_workload(Workload(1, 1, 1, 4, 4)).to_json()
    request = {"do": "verify", "with": {
        "library": "/nowhere.so", "problem": "fwd-fp32-d8", "cases": [case],
    }}
    worker = subprocess.Popen(
        [sys.executable, "-m", "fagen.worker"], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )
    worker.stdin.write(json.dumps(request) + "\n")
    worker.stdin.flush()
    answers = [json.loads(worker.stdout.readline()) for _ in range(4)]
    worker.communicate()
    assert answers[0]["ok"]
    assert [a.get("doing") for a in answers[1:3]] == ["prepare", "run"]
    assert answers[3]["ok"] is False
    assert "/nowhere.so" in answers[3]["reason"]
