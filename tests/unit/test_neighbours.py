"""Who else is on a device: a management library and a /proc/stat of our own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fagen.neighbours import Conditions, Gpu, Host

OURS = os.getpid()


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> str:
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fakenvml.c")
    compile_it = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source]
    subprocess.run(compile_it, check=True)
    return str(library)


def seen(nvml: str, monkeypatch: pytest.MonkeyPatch, pids: str, use: str = "") -> Conditions:
    monkeypatch.setenv("FAKE_PIDS", pids)
    monkeypatch.setenv("FAKE_USE", use)
    return Gpu("GPU-1", nvml).watch()()


@pytest.mark.parametrize(("pids", "use", "busy", "others"), [
    ("", "", 0.0, 0),
    (f"{OURS}", f"{OURS} 98 0", 0.0, 0),
    (f"71 {OURS}", f"71 0 0 {OURS} 98 0", 0.0, 1),
    (f"71 {OURS} 72", f"71 30 0 72 15 0 {OURS} 50 0", 0.45, 2),
    (f"71 {OURS}", f"71 80 1 71 20 0 {OURS} 98 0", 0.2, 1),  # what was long ago is over
    (f"{OURS}", f"{OURS} 60 0 93 40 0", 0.4, 0),  # one that draws, or has just ended
    ("5001", "5001 97 0", 0.0, 0),  # a container: ours has another number outside
    ("5001 5002", "5001 30 0 5002 60 0", 0.3, 1),
])
def test_the_processes_of_a_gpu(
    nvml: str, monkeypatch: pytest.MonkeyPatch, pids: str, use: str, busy: float, others: int
) -> None:
    assert seen(nvml, monkeypatch, pids, use) == Conditions(busy, others, 1755.0)


def test_who_may_not_ask_for_use_still_sees_processes(
    nvml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FORBIDDEN", "1")
    assert seen(nvml, monkeypatch, f"71 {OURS}", "71 50 0") == Conditions(0.0, 1, 1755.0)


@pytest.mark.parametrize(("uuid", "library"), [("GPU-1", "libnone.so.1"), ("GPU-2", "")])
def test_where_nobody_says_nobody_is_there(nvml: str, uuid: str, library: str) -> None:
    gpu = Gpu(uuid, library or nvml)
    assert gpu.watch()() == Conditions()
    assert gpu.mhz() == 0.0


# --- the host ------------------------------------------------------------------------------------


def stat(path: Path, busy: int, idle: int) -> None:
    """Ticks of each of our cores; those of others are always busy."""
    ours = os.sched_getaffinity(0)
    lines = [f"cpu{n} {busy} 0 0 {idle} 900 0 0 0 0 0" for n in ours]
    lines += [f"cpu{n} {busy + idle} 0 0 0 0 0 0 0 0 0" for n in range(300, 304)]
    path.write_text("\n".join(["cpu  1 2 3 4 5 6 7 8 9 0", *lines, "intr 5", "ctxt 6"]) + "\n")


@pytest.mark.parametrize(("ticks", "share"), [(0, 0.0), (1, 0.0), (26, 0.25), (76, 0.75)])
def test_other_work_of_our_cores_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ticks: int, share: float
) -> None:
    """One second passes in which we do nothing; one tick more or less says nothing."""
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(os, "times", lambda: os.times_result((1.0, 1.0, 0.0, 0.0, 9.0)))
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    path = tmp_path / "stat"
    stat(path, 1000, 5000)
    conditions = Host(path).watch()
    stat(path, 1000 + ticks, 5100 - ticks)
    now[0] += 1.0
    assert conditions() == Conditions(pytest.approx(share))


def test_our_own_work_is_not_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = [0.0]
    monkeypatch.setattr(os, "times", lambda: os.times_result((ran[0], 0.0, 0.0, 0.0, 9.0)))
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    path = tmp_path / "stat"
    stat(path, 0, 0)
    conditions = Host(path).watch()
    stat(path, 100, 0)
    ran[0] = len(os.sched_getaffinity(0)) * 1.0
    assert conditions().busy == 0.0


def test_a_host_that_does_not_count_has_no_neighbours(tmp_path: Path) -> None:
    assert Host(tmp_path / "none").watch()() == Conditions()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc/stat")
def test_a_busy_neighbour_is_seen_for_real() -> None:
    """As many as there are cores, so that one of them is on ours."""
    cores = range(len(os.sched_getaffinity(0)))
    spin = "print('on', flush=True)\nwhile True: pass"
    spinning = [
        subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) for _ in cores
    ]
    try:
        assert [process.stdout.readline() for process in spinning] == [b"on\n" for _ in cores]
        conditions = Host().watch()
        time.sleep(1.0)
        assert conditions().busy > 0.5
    finally:
        for process in spinning:
            process.kill()
            process.communicate()
