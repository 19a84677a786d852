"""The child process of `fagen bench`: prepares the contenders of a cell and times them in turn."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fagen.bench import BenchOptions
from fagen.contenders import Contender, contenders
from fagen.passes import Inputs, Unserved
from fagen.suites import Cell

FLUSH_BYTES = 256 << 20  # several times the largest L2
STANDARD_LIMIT = 4 << 30  # the N x N computation is left out above this many bytes of scores


class Clock:
    """Times one call, in microseconds. `start` and `stop` do not wait; `read` does."""

    def __init__(self, device: str) -> None:
        self.gpu = device != "cpu"
        if self.gpu:
            self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def time(self, calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
        """`rounds` samples of each call, the calls taking turns."""
        return self._gpu(calls, rounds) if self.gpu else self._cpu(calls, rounds)

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        """Run it once: the GPU memory it takes on top, its output included."""
        if not self.gpu:
            call()
            return 0
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _gpu(self, calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
        pairs: list[list[tuple[Any, Any]]] = [[] for _ in calls]
        for _ in range(rounds):
            for i, call in enumerate(calls):
                begin, end = _event(), _event()
                self._flush.zero_()
                begin.record()
                call()
                end.record()
                pairs[i].append((begin, end))
        torch.cuda.synchronize()
        return [[begin.elapsed_time(end) * 1e3 for begin, end in each] for each in pairs]

    def _cpu(self, calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
        samples: list[list[float]] = [[] for _ in calls]
        for _ in range(rounds):
            for i, call in enumerate(calls):
                call()  # the other contender left its own data in the caches
                start = time.perf_counter()
                call()
                samples[i].append((time.perf_counter() - start) * 1e6)
        return samples


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _rounds(call: Callable[[], Any], clock: Clock, options: BenchOptions) -> int:
    once = clock.time([call], 2)[0][-1] * 1e-6
    return max(3, min(options.rounds, int(options.seconds / max(once, 1e-9))))


def _time_cell(
    cell: Cell, field: dict[str, Contender], clock: Clock, options: BenchOptions
) -> dict[str, Any]:
    inputs = Inputs.random(cell, options.device)
    calls: dict[str, Callable[[], Any]] = {}
    unserved: dict[str, str] = {}
    peaks: dict[str, int] = {}
    rounds = options.rounds
    for name, prepare in field.items():
        scores = cell.batch * cell.heads_q * cell.seq_q * cell.seq_kv * 4
        try:
            if name == "math" and scores > STANDARD_LIMIT:
                raise Unserved(f"the score matrix alone would take {scores >> 30} GiB")
            call = prepare(cell, inputs)
            peaks[name] = clock.peak_bytes(call)
            rounds = min(rounds, _rounds(call, clock, options))
            calls[name] = call
        except Exception as error:  # a peer that cannot do this cell is no reason to stop
            lines = str(error).splitlines()
            unserved[name] = f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
    samples = dict(zip(calls, clock.time(list(calls.values()), rounds), strict=True))
    record: dict[str, Any] = {
        "us": {name: round(statistics.median(s), 1) for name, s in samples.items()},
        "spread": {name: _spread(s) for name, s in samples.items()},
        "rounds": rounds,
    }
    if clock.gpu:
        record["peak_bytes"] = {name: peaks[name] for name in calls}
    if unserved:
        record["unserved"] = unserved
    return record


def _spread(samples: list[float]) -> float:
    """Half the distance between the quartiles, as a share of the median."""
    low, middle, high = statistics.quantiles(samples, n=4)
    return round((high - low) / 2 / middle, 4)


def _machine(options: BenchOptions) -> dict[str, Any]:
    facts: dict[str, Any] = {"torch": torch.__version__}
    if options.device == "cpu":
        with contextlib.suppress(OSError, StopIteration):
            info = Path("/proc/cpuinfo").read_text().splitlines()
            model = next(line for line in info if line.startswith("model name"))
            flags = next(line for line in info if line.startswith("flags")).split()
            facts["cpu"] = model.split(":", 1)[1].strip()
            facts["isa"] = [f for f in flags if f.startswith(("avx", "fma", "f16c", "amx"))]
        facts["threads"] = torch.get_num_threads()
        return facts
    facts["gpu"] = torch.cuda.get_device_name()
    facts["nvidia-smi"] = _nvidia_smi("name,driver_version,clocks.sm,clocks.max.sm,power.limit")
    facts["cuda"] = torch.version.cuda
    facts["ceilings"] = _ceilings(options.device)
    return facts


def _nvidia_smi(query: str) -> str:
    """Containers with a GPU may lack the program: no reason to measure nothing."""
    try:
        shown = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{query}: {error}"
    return f"{query}: {shown.stdout.strip()}"


def _ceilings(device: str) -> dict[str, float]:
    """What this card does today: a large matmul on random data and a large copy."""
    clock = Clock(device)
    a, b = (torch.randn(8192, 8192, device=device).bfloat16() for _ in "ab")
    source = torch.empty(1 << 30, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    matmul, copy = clock.time([lambda: a @ b, lambda: target.copy_(source)], 10)
    return {
        "matmul_8192_bf16_tflops": round(2 * 8192**3 / statistics.median(matmul) * 1e-6, 1),
        "copy_tb_s": round(2 * source.numel() / statistics.median(copy) * 1e-6, 3),
    }


def main() -> None:
    answers = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    request = json.load(sys.stdin)
    options = BenchOptions(**request["options"])
    if options.threads:
        torch.set_num_threads(options.threads)
    field = contenders(
        options.device,
        Path(options.package) if options.package else None,
        Path(options.fa3) if options.fa3 else None,
    )
    unknown = [name for name in options.only if name not in field]
    if unknown:
        answers.write(json.dumps({"unknown": unknown, "contenders": list(field)}) + "\n")
        return
    if options.only:
        field = {name: c for name, c in field.items() if name in options.only}
    answers.write(json.dumps({"machine": {**_machine(options), "contenders": list(field)}}) + "\n")
    clock = Clock(options.device)
    for facts in request["cells"]:
        answers.write(json.dumps(_time_cell(Cell(**facts), field, clock, options)) + "\n")


if __name__ == "__main__":
    main()
