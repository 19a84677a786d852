"""From nothing to a tuned package: what ``make demo`` runs, with the command line alone.

Tunes forward and backward on the GPU if there is one, else on the host CPU, emits a package,
imports it in a process of its own, and prints its times against torch's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path("demo")
NAME = "my_attention"
# Per device kind: dtype, head dimension, heads, the length that is tuned, the lengths compared.
SIZES: dict[str, tuple[str, int, int, int, tuple[int, ...]]] = {
    "cpu": ("fp32", 64, 8, 1024, (512, 1024, 2048)),
    "cuda": ("bf16", 128, 16, 4096, (1024, 4096, 16384)),
}
MINUTES = "0.3"  # per problem
ROUNDS = 11


def fagen(*words: str) -> str:
    """Run a command, showing it; its stdout."""
    print("$ fagen " + " ".join(words), flush=True)
    ran = subprocess.run(
        [sys.executable, "-m", "fagen", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if ran.returncode:
        sys.exit(ran.returncode)
    return ran.stdout


def main() -> None:
    started = time.monotonic()
    device = json.loads(fagen("devices", "--json"))["devices"][0]
    kind = device["target"]["kind"]
    dtype, dim, heads, seqlen, _ = SIZES[kind]
    problems = [f"{op}-{dtype}-d{dim}-{p}" for p in ("causal", "dense") for op in ("fwd", "bwd")]
    sizes = ("--heads", str(heads), "--seqlen", str(seqlen))
    print(fagen("tune", *problems, *sizes, "--effort", "quick", "--minutes", MINUTES))
    ours = [word for problem in problems for word in ("--problem", problem)]
    print(fagen("emit", "-o", str(FOLDER / NAME), *ours))
    # The package needs torch and nothing of fagen: a fresh process, started in the folder.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FAGEN", "PYTHONPATH"))}
    script = str(Path(__file__).resolve())
    subprocess.run([sys.executable, script, kind], cwd=FOLDER, env=clean, check=True)
    print(f"\n{device['says']}; {time.monotonic() - started:.0f} s in all; the package is "
          f"{FOLDER / NAME}")


# --- the comparison, in the process that imports the package ------------------------------------


def compare(kind: str) -> None:
    sys.path.insert(0, ".")
    import torch
    import torch.nn.functional as F  # noqa: N812

    ours = __import__(NAME)
    dtype, dim, heads, _, lengths = SIZES[kind]
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    print(f"{'':<26}{'torch ms':>10}{'ours ms':>10}{'ratio':>8}{'max difference':>17}")
    for causal in (False, True):
        for seqlen in lengths:
            shape = (1, heads, seqlen, dim)
            q, k, v, gradient = (
                torch.randn(shape, device=kind, dtype=torch_dtype) for _ in range(4)
            )
            calls = (
                lambda q, k, v, c=causal: F.scaled_dot_product_attention(q, k, v, is_causal=c),
                lambda q, k, v, c=causal: ours.attention(q, k, v, causal=c),
            )
            mask = "causal" if causal else "full"
            for mode in ("fwd", "fwd+bwd"):
                steps = [_step(call, q, k, v, gradient, mode) for call in calls]
                peer, mine = _times(steps, kind)
                results = [step() for step in steps]
                worst = max(
                    (a - b).abs().max().item() for a, b in zip(*results, strict=True)
                )
                print(f"{f'{mode} {mask} S{seqlen}':<26}{peer:>10.2f}{mine:>10.2f}"
                      f"{peer / mine:>8.2f}{worst:>17.1e}", flush=True)


def _step(
    call: Callable[..., Any], q: Any, k: Any, v: Any, gradient: Any, mode: str
) -> Callable[[], list[Any]]:
    """The output; with a backward also the three gradients."""
    import torch

    if mode == "fwd":
        def forward() -> list[Any]:
            with torch.no_grad():
                return [call(q, k, v)]
        return forward
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]

    def both() -> list[Any]:
        out = call(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]

    return both


def _times(steps: list[Callable[[], Any]], kind: str) -> list[float]:
    """Median milliseconds; the steps take turns, so that drift hits each alike."""
    import torch

    samples: list[list[float]] = [[] for _ in steps]
    for number in range(ROUNDS + 1):
        for step, kept in zip(steps, samples, strict=True):
            step()  # the other one's data are in the caches, and its threads may still spin
            if kind == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if kind == "cuda":
                torch.cuda.synchronize()
            if number:  # the first one warms up
                kept.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(kept) for kept in samples]


if __name__ == "__main__":
    if sys.argv[1:]:
        compare(sys.argv[1])
    else:
        main()
