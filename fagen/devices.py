"""What this machine has: the host CPU from /proc and /sys, GPUs from the driver.

The parent process never touches CUDA: a child (this module run as a program) asks libcuda through
ctypes and prints JSON, so a broken driver costs a child and a sentence.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fagen.errors import SetupError, UsageError
from fagen.target import KNOWN_TARGETS, Target

HOST = "none"  # what --gpu takes to say "the host CPU"
_PROBE_SECONDS = 30.0
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
# Caches that every x86-64 and arm64 server core has at least, for hosts that do not tell.
_L1_BYTES, _L2_BYTES = 32 << 10, 256 << 10


@dataclass(frozen=True)
class Device:
    """Something kernels run on. ``name`` is what workers are told: ``cpu`` or ``cuda:N``."""

    name: str
    says: str  # the maker's name for it
    target: Target
    uuid: str = ""
    memory_bytes: int = 0
    driver: str = ""


def label(name: str) -> str:
    """The maker's name as a target name: ``NVIDIA GeForce RTX 4090`` -> ``rtx4090``."""
    text = re.sub(r"\(r\)|\(tm\)|nvidia|geforce|tesla|processor|\bcpu\b", " ", name.lower())
    text = re.sub(r"\brtx (?=\d)", "rtx", text)
    text = re.sub(r"@.*|\d+-core", " ", text)
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "unknown"


# --- the host ----------------------------------------------------------------------------------


def host(proc: Path = Path("/proc"), sys_cpu: Path = Path("/sys/devices/system/cpu")) -> Device:
    """The CPU that this process may use."""
    info = _cpuinfo(proc / "cpuinfo")
    says = info.get("model name") or platform.processor() or platform.machine()
    known = {isa for target in KNOWN_TARGETS.values() for isa in target.isa}
    flags = set(info.get("flags", "").split())
    target = Target(
        name=label(says),
        kind="cpu",
        isa=tuple(sorted(known & flags)),
        cores=_cores(),
        l1_bytes=_cache(sys_cpu, 1) or _L1_BYTES,
        l2_bytes=_cache(sys_cpu, 2) or _L2_BYTES,
    )
    return Device("cpu", says, target, memory_bytes=_memory(proc / "meminfo"))


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's lines."""
    try:
        first = path.read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cores() -> int:
    """Processors by affinity, which is what `taskset` and cpusets change."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cache(sys_cpu: Path, level: int) -> int:
    for index in sorted(sys_cpu.glob("cpu0/cache/index*")):
        try:
            kind, size = (index / "type").read_text().strip(), (index / "size").read_text()
            if int((index / "level").read_text()) != level or kind == "Instruction":
                continue
            match = re.fullmatch(r"(\d+)([KM]?)", size.strip())
        except (OSError, ValueError):
            continue
        if match:
            return int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]]
    return 0


def _memory(path: Path) -> int:
    try:
        match = re.search(r"^MemTotal:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) << 10 if match else 0


# --- GPUs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GpuProbe:
    """The GPUs that CUDA shows, or the reason why there are none."""

    gpus: tuple[Device, ...]
    trouble: str = ""  # empty where there is simply no NVIDIA driver or no GPU


def gpus(command: tuple[str, ...] = (sys.executable, "-m", "fagen.devices")) -> GpuProbe:
    """Ask a child process. Order and visibility are CUDA's own (CUDA_VISIBLE_DEVICES counts)."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.getenv("PYTHONPATH")]))
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return GpuProbe((), f"the CUDA driver did not answer within {_PROBE_SECONDS:.0f} s")
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        how = f"exit code {child.returncode}" if child.returncode >= 0 else (
            f"signal {-child.returncode}")
        return GpuProbe((), f"the process that asks the CUDA driver ended with {how}")
    return GpuProbe(tuple(map(_device, answer["gpus"])), answer["trouble"])


def _device(facts: dict[str, Any]) -> Device:
    target = Target(
        name=label(facts["name"]),
        kind="cuda",
        capability=(facts["major"], facts["minor"]),
        sm_count=facts["sm_count"],
        shared_bytes=facts["shared_bytes"],
        l2_bytes=facts["l2_bytes"],
        # Two transfers per clock.
        memory_gb_s=float(round(2e-6 * facts["memory_khz"] * facts["bus_bits"] / 8)),
    )
    return Device(
        f"cuda:{facts['index']}", facts["name"], target, facts["uuid"], facts["memory_bytes"],
        facts["driver"],
    )


def pick(gpu: str | None, find: Any = gpus) -> Device:
    """The device that --gpu names; without it the first GPU if there is one, else the host."""
    if gpu == HOST:
        return host()
    probe: GpuProbe = find()
    if gpu is None:
        return probe.gpus[0] if probe.gpus else host()
    if not re.fullmatch(r"\d{1,4}|(GPU|MIG)-[0-9a-fA-F-]+", gpu):
        raise UsageError(
            f"cannot read --gpu {gpu!r}", f"an index such as 0, a UUID, or {HOST} for the host CPU"
        )
    for device in probe.gpus:
        if gpu in (device.name.removeprefix("cuda:"), device.uuid):
            return device
    found = ", ".join(f"{d.name.removeprefix('cuda:')} ({d.says})" for d in probe.gpus)
    raise SetupError(
        f"--gpu {gpu} was asked for; GPUs here: {found or probe.trouble or 'none'}",
        f"fagen devices lists them; --gpu {HOST} uses the host CPU",
    )


# --- the child ---------------------------------------------------------------------------------

_ATTRIBUTES = {  # CUdevice_attribute
    "major": 75,
    "minor": 76,
    "sm_count": 16,
    "shared_bytes": 97,
    "l2_bytes": 38,
    "memory_khz": 36,
    "bus_bits": 37,
}


def _probe() -> dict[str, Any]:
    import ctypes

    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"gpus": [], "trouble": ""}
    code = cuda.cuInit(0)
    if code:
        trouble = "" if code == _NO_DEVICE else f"cuInit answered error {code}"
        return {"gpus": [], "trouble": trouble}
    count, version = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    cuda.cuDriverGetVersion(ctypes.byref(version))
    driver = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    found = [_facts(cuda, index) | {"driver": driver} for index in range(count.value)]
    return {"gpus": found, "trouble": ""}


def _facts(cuda: Any, index: int) -> dict[str, Any]:
    import ctypes
    import uuid

    device, number, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    facts: dict[str, Any] = {"index": index}
    for name, attribute in _ATTRIBUTES.items():
        code = cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        facts[name] = 0 if code else number.value
    name_text, raw = ctypes.create_string_buffer(256), (ctypes.c_ubyte * 16)()
    cuda.cuDeviceGetName(name_text, len(name_text), device)
    cuda.cuDeviceGetUuid(ctypes.byref(raw), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    return facts | {
        "name": name_text.value.decode(errors="replace"),
        "uuid": f"GPU-{uuid.UUID(bytes=bytes(raw))}",
        "memory_bytes": total.value,
    }


if __name__ == "__main__":
    print(json.dumps(_probe()))
