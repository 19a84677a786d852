"""What this device reaches on a large matrix product: the ceiling that kernels are compared with.

A measured ceiling, because the nominal peak of a CPU is a guess (units, clocks under AVX-512) and
that of a GPU depends on its power limit. Run as a program: the parent never touches CUDA.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from fagen.errors import RunError

_SECONDS = 180.0  # importing torch from a cold disk, then one second
_SIZES = {"cpu": 2048, "cuda": 8192}


def matmul_tflops(device: str, dtype: str, threads: int = 0) -> float:
    """Measured in a child process; takes a few seconds."""
    command = [sys.executable, "-m", "fagen.ceiling", device, dtype, str(threads)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        return float(json.loads(child.stdout))
    except subprocess.TimeoutExpired:
        raise RunError(f"a {dtype} matrix product did not end within {_SECONDS:g} s") from None
    except ValueError:
        last = (child.stderr.strip().splitlines() or ["no output"])[-1]
        raise RunError(f"the {dtype} matrix product could not be timed: {last}") from None


def _measure(device: str, dtype: str, threads: int) -> float:
    import torch

    if threads:
        torch.set_num_threads(threads)
    size = _SIZES[device.partition(":")[0]]
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in "ab")
    best, end = float("inf"), time.monotonic() + 1.0
    while time.monotonic() < end:
        start = time.perf_counter()
        torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best * 1e-12


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
