"""Host time of a call that hardly computes: a package, or several, against torch's own attention.

    python bench/host.py PACKAGE_DIR [OLDER_PACKAGE_DIR ...] bench/results/host-overhead-cpu.json
    python bench/host.py --device cuda PACKAGE_DIR bench/results/h200-host.json

B1 H2 S4 D64, fp32 on one thread of the host, bf16 on a GPU (there S64, and torch through cuDNN),
so that the kernel itself is over at once. The time is that of the calling thread, the best of many
short runs, so that other work on the machine hardly shows; a GPU's queue is empty when one begins.
Forward and backward is one call of torch.autograd.grad, whose own machinery is most of it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNS, CALLS = 60, 200
FIRST_CALL = """
import sys, time, torch
device, rows = sys.argv[2], 64
q = torch.randn(1, 2, rows, 64, device=device,
                dtype=torch.float32 if device == "cpu" else torch.bfloat16)
q = q + q  # the device is awake
package = __import__(sys.argv[1])
start = time.perf_counter()
out = package.attention(q, q, q)
float(out.sum())
print(round(1e3 * (time.perf_counter() - start), 1))
"""


def first_call(folder: Path, device: str) -> float:
    """Milliseconds of the first call after the import, its result read: the best of three
    processes."""
    return min(float(subprocess.run(
        [sys.executable, "-c", FIRST_CALL, folder.name, device], cwd=folder.resolve().parent,
        check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout) for _ in range(3))


def microseconds(call: Callable[[], Any], device: str) -> float:
    import torch

    best = float("inf")
    for _ in range(RUNS):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.thread_time_ns()
        for _ in range(CALLS):
            call()
        best = min(best, time.thread_time_ns() - start)
    return round(best / CALLS / 1e3, 1)


def measure(
    attend: Callable[..., Any], options: dict[str, Any], rows_first: bool, device: str
) -> list[float]:
    """A forward without, and a forward and backward with gradients."""
    import torch

    rows, dtype = (4, torch.float32) if device == "cpu" else (64, torch.bfloat16)
    shape = (1, rows, 2, 64) if rows_first else (1, 2, rows, 64)
    given = [torch.randn(shape, device=device, dtype=dtype) for _ in range(3)]
    leaves = [x.clone().requires_grad_() for x in given]
    dout = torch.randn_like(given[0])

    def both() -> Any:
        return torch.autograd.grad(attend(*leaves, **options), leaves, dout)

    return [microseconds(lambda: attend(*given, **options), device), microseconds(both, device)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE_DIR")
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def turned(*x: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(*(t.transpose(1, 2) for t in x)).transpose(1, 2)

    torch.set_num_threads(1)
    on_host = given.device == "cpu"
    who = "torch" if on_host else "torch with cuDNN"
    rows = [(who, "scaled_dot_product_attention", scaled_dot_product_attention, {}, False),
            (who, "the same on [batch, seqlen, heads, dim]", turned, {}, True)]
    for folder in given.packages:
        sys.path.insert(0, str(folder.resolve().parent))
        package = __import__(folder.name)
        rows += [
            (folder.name, "attention", package.attention, {}, False),
            (folder.name, "attention, layout bshd", package.attention, {"layout": "bshd"}, True),
            (folder.name, "scaled_dot_product_attention", package.scaled_dot_product_attention, {},
             False),
        ]
    found = []
    for who, what, attend, options, rows_first in rows:
        with contextlib.nullcontext() if on_host else sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            forward, both = measure(attend, options, rows_first, given.device)
        found.append({"of": who, "call": what, "forward_us": forward,
                      "forward_and_backward_us": both})
        print(f"{who:<20} {what:<42} forward {forward:5.1f} us, with backward {both:5.1f} us")
    first = {folder.name: first_call(folder, given.device) for folder in given.packages}
    print(f"first call after the import, ms: {first}")
    result = {
        "what": "host time of one eager call, "
                + ("fp32 B1 H2 S4 D64, one thread" if on_host else
                   f"bf16 B1 H2 S64 D64, {torch.cuda.get_device_name()}"),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "command": " ".join(["python bench/host.py", *sys.argv[1:]]),
        "rows": found,
        "first_call_ms": first,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
