"""Facts of the host and of GPUs, from made-up machines and from this one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fagen import devices
from fagen.devices import GpuProbe, gpus, host, label, pick
from fagen.errors import SetupError, UsageError
from fagen.target import Target

H200 = {
    "index": 0, "name": "NVIDIA H200", "uuid": "GPU-12345678-0000-0000-0000-000000000000",
    "major": 9, "minor": 0, "sm_count": 132, "shared_bytes": 232448, "l2_bytes": 60 << 20,
    "memory_khz": 3201000, "bus_bits": 6144, "memory_bytes": 150 << 30, "driver": "CUDA 13.0",
}


def answering(text: str, code: int = 0) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import sys; print({text!r}); sys.exit({code})")


def probe(*facts: dict[str, object]) -> GpuProbe:
    return gpus(answering(json.dumps({"gpus": list(facts), "trouble": ""})))


@pytest.mark.parametrize(("name", "expected"), [
    ("NVIDIA H200", "h200"),
    ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
    ("AMD EPYC 9R14 96-Core Processor", "amd-epyc-9r14"),
    ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "intel-core-i7-9750h"),
    ("", "unknown"),
])
def test_a_label_is_the_makers_name_in_plain_letters(name: str, expected: str) -> None:
    assert label(name) == expected


@given(st.text())
def test_every_name_makes_a_valid_target_name(name: str) -> None:
    Target(label(name), "cpu")


def machine(tmp_path: Path, flags: str, caches: dict[str, tuple[str, str, str]]) -> devices.Device:
    (tmp_path / "cpuinfo").write_text(
        f"processor\t: 0\nmodel name\t: Some Chip 3000\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    )
    (tmp_path / "meminfo").write_text("MemTotal:       1024 kB\n")
    for index, (level, kind, size) in caches.items():
        folder = tmp_path / "cpu0" / "cache" / index
        folder.mkdir(parents=True)
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(text + "\n")
    return host(tmp_path, tmp_path)


def test_a_host_is_read_from_proc_and_sys(tmp_path: Path) -> None:
    found = machine(tmp_path, "fpu avx2 fma f16c sse2", {
        "index0": ("1", "Data", "48K"),
        "index1": ("1", "Instruction", "64K"),
        "index2": ("2", "Unified", "2M"),
    })
    assert found.target.isa == ("avx2", "f16c", "fma")
    assert (found.target.l1_bytes, found.target.l2_bytes) == (48 << 10, 2 << 20)
    assert (found.says, found.target.name, found.memory_bytes) == (
        "Some Chip 3000", "some-chip-3000", 1 << 20)


def test_a_host_that_tells_nothing_still_has_a_target(tmp_path: Path) -> None:
    target = host(tmp_path / "no", tmp_path / "no").target
    assert target.isa == ()
    assert target.l1_bytes > 0
    assert target.l2_bytes > 0


def test_cores_follow_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert host().target.cores == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_gpu_becomes_a_target() -> None:
    (gpu,) = probe(H200).gpus
    assert gpu.name == "cuda:0"
    assert gpu.target.capability == (9, 0)
    assert gpu.target.memory_gb_s == 4917
    assert gpu.target.serves(Target.known("h200"))


@pytest.mark.parametrize(("command", "says"), [
    (answering("no json", 3), "exit code 3"),
    ((sys.executable, "-c", "import os; os.abort()"), "signal 6"),
    (answering(json.dumps({"gpus": [], "trouble": "cuInit answered error 999"})), "999"),
])
def test_a_broken_driver_is_a_sentence(command: tuple[str, ...], says: str) -> None:
    found = gpus(command)
    assert found.gpus == ()
    assert says in found.trouble


def test_a_hanging_driver_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_PROBE_SECONDS", 0.2)
    assert "did not answer" in gpus((sys.executable, "-c", "import time; time.sleep(60)")).trouble


def test_the_probe_of_this_machine_ends_without_trouble() -> None:
    assert gpus().trouble == ""


def test_without_a_wish_the_first_gpu_is_picked_else_the_host() -> None:
    assert pick(None, lambda: probe(H200, H200 | {"index": 1})).name == "cuda:0"
    assert pick(None, lambda: probe()).name == "cpu"


@pytest.mark.parametrize("gpu", ["1", "GPU-87654321-0000-0000-0000-000000000000"])
def test_a_gpu_is_picked_by_index_or_uuid(gpu: str) -> None:
    two = probe(H200, H200 | {"index": 1, "uuid": "GPU-87654321-0000-0000-0000-000000000000"})
    assert pick(gpu, lambda: two).name == "cuda:1"


def test_none_picks_the_host_and_asks_no_driver() -> None:
    def never() -> GpuProbe:
        raise AssertionError("asked")

    assert pick("none", never).name == "cpu"


def test_a_gpu_that_is_not_there_is_an_error_that_lists_what_is() -> None:
    with pytest.raises(SetupError, match=r"--gpu 7 .*0 \(NVIDIA H200\)"):
        pick("7", lambda: probe(H200))
    with pytest.raises(SetupError, match="GPUs here: none"):
        pick("0", lambda: probe())


@pytest.mark.parametrize("gpu", ["-1", "x", "0x1", "GPU-zz", "99999", ""])
def test_a_gpu_that_cannot_be_read_is_a_usage_error(gpu: str) -> None:
    with pytest.raises(UsageError):
        pick(gpu, lambda: probe(H200))
