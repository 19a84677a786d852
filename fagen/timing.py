"""How long calls take, in microseconds: cold caches, warm clocks, medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fagen.neighbours import Conditions, Gpu, Host

Call = Callable[[], Any]

CPU_FOOTPRINT_BYTES = 64 << 20  # rotate over at least this much, so that no cache holds all
CPU_ROTATION = 8  # copies at most
_BATCH = 32  # launches in flight before their events are read
_MIN_SAMPLES = 3
_MAX_SAMPLES = 2000
_WARM_UP_SHARE = 0.3


class Timer:
    """Times calls on one device."""

    def __init__(self, device: str) -> None:
        self.gpu = device.startswith("cuda")
        self._device = Gpu(_uuid()) if self.gpu else Host()
        if self.gpu:
            l2 = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(2 * l2, dtype=torch.uint8, device=device)

    def once(self, calls: Sequence[Call]) -> list[float]:
        """One sample of each call, in turn."""
        return self._gpu(calls) if self.gpu else self._cpu(calls)

    def _gpu(self, calls: Sequence[Call]) -> list[float]:
        events = []
        for call in calls:
            begin, end = _event(), _event()
            self._flush.zero_()
            begin.record()
            call()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) * 1e3 for begin, end in events]

    def _cpu(self, calls: Sequence[Call]) -> list[float]:
        samples = []
        for call in calls:
            start = time.perf_counter()
            call()
            samples.append((time.perf_counter() - start) * 1e6)
        return samples

    def sample(self, calls: Sequence[Call], seconds: float) -> list[float]:
        """Warm up, then time the calls in rotation until the time is used up."""
        self._until(calls, time.monotonic() + seconds * _WARM_UP_SHARE, least=1)
        return self._until(calls, time.monotonic() + seconds * (1 - _WARM_UP_SHARE), _MIN_SAMPLES)

    def _until(self, calls: Sequence[Call], deadline: float, least: int) -> list[float]:
        samples: list[float] = []
        batch = 1
        while len(samples) < least or (
            time.monotonic() < deadline and len(samples) < _MAX_SAMPLES
        ):
            turn = [calls[(len(samples) + i) % len(calls)] for i in range(batch)]
            samples += self.once(turn)
            # Few at first: one launch may be all there is time for.
            left = (deadline - time.monotonic()) * 1e6
            batch = max(1, min(_BATCH, int(left / 2 / max(statistics.median(samples), 1.0))))
        return samples

    def mhz(self) -> float:
        return self._device.mhz()

    def watch(self) -> Callable[[], Conditions]:
        """Who else is on the device from now until the answer is asked for."""
        return self._device.watch()


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _uuid() -> str:
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}"


@dataclass(frozen=True)
class Summary:
    """The middle and the quartiles."""

    median_us: float
    low_us: float
    high_us: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(round(middle, 3), round(low, 3), round(high, 3), len(samples))
