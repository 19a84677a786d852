"""Host time of a call that hardly computes: a package, or several, against torch's own attention.

    python bench/host.py PACKAGE_DIR [OLDER_PACKAGE_DIR ...] bench/results/host-overhead-cpu.json

Fp32, B1 H2 S4 D64, one thread, so that the kernel itself is over at once. The time is that of the
calling thread, the best of many short runs, so that other work on the machine hardly shows. Forward
and backward is one call of torch.autograd.grad, whose own machinery is most of it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNS, CALLS = 60, 200


def microseconds(call: Callable[[], Any]) -> float:
    best = float("inf")
    for _ in range(RUNS):
        start = time.thread_time_ns()
        for _ in range(CALLS):
            call()
        best = min(best, time.thread_time_ns() - start)
    return round(best / CALLS / 1e3, 1)


def measure(attend: Callable[..., Any], options: dict[str, Any], rows_first: bool) -> list[float]:
    """A forward without, and a forward and backward with gradients."""
    import torch

    shape = (1, 4, 2, 64) if rows_first else (1, 2, 4, 64)
    given = [torch.randn(shape) for _ in range(3)]
    leaves = [x.clone().requires_grad_() for x in given]
    dout = torch.randn(shape)
    return [microseconds(lambda: attend(*given, **options)),
            microseconds(lambda: torch.autograd.grad(attend(*leaves, **options), leaves, dout))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE_DIR")
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    def turned(*x: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(*(t.transpose(1, 2) for t in x)).transpose(1, 2)

    torch.set_num_threads(1)
    rows = [("torch", "scaled_dot_product_attention", scaled_dot_product_attention, {}, False),
            ("torch", "the same on [batch, seqlen, heads, dim]", turned, {}, True)]
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
        forward, both = measure(attend, options, rows_first)
        found.append({"of": who, "call": what, "forward_us": forward,
                      "forward_and_backward_us": both})
        print(f"{who:<20} {what:<42} forward {forward:5.1f} us, with backward {both:5.1f} us")
    result = {
        "what": "host time of one eager call, fp32 B1 H2 S4 D64, one thread",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "command": "python bench/host.py attention attention_before "
                   "bench/results/host-overhead-cpu.json",
        "note": "attention_before was emitted by fagen at commit 78cfe5f",
        "rows": found,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
