"""Who else is on the device while a kernel is timed: processes on a GPU, or the cores' other work.

A GPU's driver tells of its processes and clocks through its management library; the host's kernel
counts how long every core was busy. Where nobody says, nobody is there.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NVML = "libnvidia-ml.so.1"
_SM = 1  # NVML_CLOCK_SM
_MOST = 256  # processes that are listed


@dataclass(frozen=True)
class Conditions:
    """Under which something was timed."""

    busy: float = 0.0  # the share of the device's time that others used
    others: int = 0  # processes of others that hold a GPU
    mhz: float = 0.0  # the multiprocessors' clock in the end; 0: not known


class _Holder(ctypes.Structure):
    """nvmlProcessInfo_t"""

    _fields_ = (("pid", ctypes.c_uint), ("memory", ctypes.c_ulonglong),
                ("instance", ctypes.c_uint), ("part", ctypes.c_uint))


class _Use(ctypes.Structure):
    """nvmlProcessUtilizationSample_t"""

    _fields_ = (("pid", ctypes.c_uint), ("when", ctypes.c_ulonglong), ("sm", ctypes.c_uint),
                ("memory", ctypes.c_uint), ("encoder", ctypes.c_uint), ("decoder", ctypes.c_uint))


class Gpu:
    """One GPU, from the driver's management library."""

    def __init__(self, uuid: str, library: str = NVML) -> None:
        self._handle = ctypes.c_void_p()
        try:
            self._nvml = ctypes.CDLL(library)
            started = self._nvml.nvmlInit_v2() == 0
            self._works = started and not self._nvml.nvmlDeviceGetHandleByUUID(
                uuid.encode(), ctypes.byref(self._handle)
            )
        except (OSError, AttributeError):
            self._works = False

    def mhz(self) -> float:
        """0.0 where the driver does not say."""
        value = ctypes.c_uint()
        if not self._works:
            return 0.0
        failed = self._nvml.nvmlDeviceGetClockInfo(self._handle, _SM, ctypes.byref(value))
        return 0.0 if failed else float(value.value)

    def watch(self) -> Callable[[], Conditions]:
        """From now on; what it returns says how it was."""
        moment = int(time.time() * 1e6)  # as the driver counts

        def conditions() -> Conditions:
            pids = self._pids()
            return Conditions(self._busy(moment, pids), len(_without_us(pids)), self.mhz())

        return conditions

    def _pids(self) -> list[int]:
        """Of all that compute here."""
        count, listed = ctypes.c_uint(_MOST), (_Holder * _MOST)()
        return [listed[i].pid for i in range(count.value)] if self._answers(
            ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"),
            ctypes.byref(count), listed,
        ) else []

    def _busy(self, moment: int, pids: list[int]) -> float:
        """The driver looks a few times a second, and not every user may ask."""
        count, used = ctypes.c_uint(_MOST), (_Use * _MOST)()
        if not self._answers(("nvmlDeviceGetProcessUtilization",), used, ctypes.byref(count),
                             ctypes.c_ulonglong(moment)):
            return 0.0
        most: dict[int, int] = {}
        for use in used[: count.value]:
            if use.when >= moment:
                most[use.pid] = max(most.get(use.pid, 0), use.sm)
        us = os.getpid() if os.getpid() in pids else max(most, key=lambda p: most[p], default=0)
        return min(1.0, sum(sm for pid, sm in most.items() if pid != us) / 100)

    def _answers(self, names: tuple[str, ...], *arguments: object) -> bool:
        """The first of these entry points that this driver has."""
        for name in names if self._works else ():
            if ask := getattr(self._nvml, name, None):
                return int(ask(self._handle, *arguments)) == 0
        return False


def _without_us(pids: list[int]) -> list[int]:
    """In a container the numbers are the host's, and ours is one of them all the same."""
    return [p for p in pids if p != os.getpid()] if os.getpid() in pids else pids[1:]


class Host:
    """The cores that this process may use. Time is counted in ticks, so that a share is the least
    that it can have been."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat, self._cores = stat, os.sched_getaffinity(0)
        self._tick = 1 / os.sysconf("SC_CLK_TCK")

    def mhz(self) -> float:
        return 0.0

    def watch(self) -> Callable[[], Conditions]:
        """From now on; what it returns says how it was."""
        before = self._now()

        def conditions() -> Conditions:
            busy, ours, passed = (b - a for a, b in zip(before, self._now(), strict=True))
            room = passed * len(self._cores)
            others = busy - ours - self._tick * len(self._cores)
            return Conditions(min(1.0, max(0.0, others / room)) if room > 0 else 0.0)

        return conditions

    def _now(self) -> tuple[float, float, float]:
        """Seconds that the cores were busy, that we used, and the time."""
        ours = os.times()
        return self._busy(), ours.user + ours.system, time.monotonic()

    def _busy(self) -> float:
        """User, nice, system, interrupts, and what a hypervisor took; not idle, not waiting."""
        ticks = 0
        try:
            text = self._stat.read_text()
        except OSError:
            return 0.0
        for line in text.splitlines():
            name, *counts = line.split() or [""]
            if name[3:].isdigit() and name[:3] == "cpu" and int(name[3:]) in self._cores:
                user, nice, system, _idle, _waiting, hard, soft, stolen = map(int, counts[:8])
                ticks += user + nice + system + hard + soft + stolen
        return ticks * self._tick
