"""``python -m`` this package: what is inside, what runs here, whether it is right and how fast."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import NoKernel, attention, flash_attn_varlen_func, kernels, maskops
from .arguments import OF_THE_CALL
from .fallback import textbook
from .library import last_error, library, manifest
from .selection import DTYPES, Pattern

_SECONDS = 0.2  # of timing per kernel
_ROWS = 203  # a length that no tile divides
# Textbook attention with rounded inputs has errors of this size, as a share of the largest value.
_BOUND = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def main(arguments: list[str]) -> int:
    """0 when every kernel that runs here is right."""
    if set(arguments) - {"--json"}:
        sys.stderr.write(f"usage: python -m {__package__} [--json]\n")
        return 2
    rows = [_row(index, kernel) for index, kernel in enumerate(kernels())]
    if arguments:
        about = {key: manifest()[key] for key in ("fagen", "library", "sha256")}
        print(json.dumps({"package": __package__, **about, "kernels": rows}, indent=1))
    else:
        made = f"made by fagen {manifest()['fagen']}"
        print(f"{__package__}: {len(rows)} kernels, {made}, torch {torch.__version__}")
        for row in rows:
            print(_line(row))
    return int(any(row.get("right") is False for row in rows))


def _line(row: dict[str, Any]) -> str:
    head = f"  {row['problem']:<34} {row['target']:<16} {row['workload']:<20}"
    if "here" not in row:
        return f"{head} not here: {row['reason']}"
    verdict = {True: "right", None: "not checked", False: f"WRONG (error {row['error']:.1e})"}[
        row["right"]]
    return f"{head} {verdict}, {row['us']:.0f} us here, {row['tuned_us']:.0f} us when tuned"


def _row(index: int, kernel: dict[str, Any]) -> dict[str, Any]:
    row = {
        "problem": kernel["problem"],
        "target": kernel["target"]["name"],
        "workload": kernel["workload"],
        "tuned_us": kernel["speed"]["median_us"],
    }
    on_host = kernel["target"]["kind"] == "cpu"
    if library().fagen_serves(index, -1 if on_host else 0):
        return {**row, "reason": last_error()}
    device = "cpu" if on_host else "cuda"
    # The formula of a named pattern is not in this package, unless the call brings the mask.
    known = not kernel["options"]["pattern"] or OF_THE_CALL.fullmatch(kernel["options"]["pattern"])
    try:
        error, bound = _check(kernel, device) if known else (0.0, 0.0)
        microseconds = _time(kernel, device)
    except NoKernel as reason:  # a backward alone, without the forward before it
        return {**row, "reason": str(reason).splitlines()[0]}
    right = error <= bound if known else None
    return {**row, "here": device, "right": right, "error": error, "us": microseconds}


# --- one kernel ----------------------------------------------------------------------------------


class _Case:
    """Inputs for one kernel, and the call that runs it: forward, or forward and backward."""

    def __init__(
        self, kernel: dict[str, Any], device: str, sizes: tuple[int, int, int, int, int]
    ) -> None:
        options = kernel["options"]
        batch, heads, kv_heads, seqlen_q, seqlen_kv = sizes
        self.dtype = next(t for t, name in DTYPES.items() if name == options["dtype"])
        self.pattern = Pattern(
            options["left"], options["right"], options["top_left"], options["pattern"]
        )
        self.mask = maskops.sample(self.pattern.name, seqlen_q, seqlen_kv, device)
        self.backward = options["op"] == "bwd"
        self.deterministic, self.varlen = options["deterministic"], options["varlen"]
        made = torch.Generator().manual_seed(0)
        d, dv = options["head_dim"], options["head_dim_v"]
        self.given = [
            torch.randn(shape, generator=made).to(device, self.dtype).requires_grad_(self.backward)
            for shape in ((batch, heads, seqlen_q, d), (batch, kv_heads, seqlen_kv, d),
                          (batch, kv_heads, seqlen_kv, dv))
        ]

    def ours(self) -> Tensor:
        left, right, top_left, name = self.pattern
        if self.varlen:
            return self._packed()
        causal: bool | str = "top-left" if top_left else right == 0
        out: Tensor = attention(
            *self.given, causal=causal, window=(left, right) if left >= 0 else None,
            pattern=name if name and self.mask is None else None, mask=self.mask,
            deterministic=self.deterministic,
        )
        return out

    def _packed(self) -> Tensor:
        """The batch as packed sequences, which happen to be of one length."""
        left, right, top_left, name = self.pattern
        if top_left or name:
            raise NoKernel("flash_attn_varlen_func has no way to ask for this pattern")
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in self.given)
        batch, _, rows, _ = self.given[0].shape
        keys = self.given[1].shape[2]
        counts = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
        out: Tensor = flash_attn_varlen_func(
            q, k, v, counts * rows, counts * keys, rows, keys, window_size=(left, right),
            deterministic=self.deterministic,
        )
        return out.reshape(batch, rows, *out.shape[1:]).transpose(1, 2)

    def results(self, out: Tensor) -> list[Tensor]:
        if not self.backward:
            return [out]
        return [out, *torch.autograd.grad(out.float().square().sum(), self.given)]


def _check(kernel: dict[str, Any], device: str) -> tuple[float, float]:
    """The largest error, as a share of the largest value, and its bound."""
    case = _Case(kernel, device, (1, 4, 2, _ROWS, _ROWS))
    found = case.results(case.ours())
    exact = [x.detach().double().requires_grad_(case.backward) for x in case.given]
    scale = exact[0].shape[3] ** -0.5
    out, _ = textbook(*exact, reason="self-test", pattern=case.pattern, scale=scale, with_lse=True,
                      keep=case.mask.dense() if case.mask is not None else None)
    case.given = exact
    expected = case.results(out)
    errors = (
        float(((x - y).abs().max() / y.abs().max()).detach())
        for x, y in zip(found, expected, strict=True)
    )
    return max(errors), _BOUND[case.dtype]


def _time(kernel: dict[str, Any], device: str) -> float:
    """Median microseconds at the sizes the kernel was tuned for."""
    case = _Case(kernel, device, tuple(kernel["options"]["sizes"]))
    if not case.backward:
        return _median(case.ours, device)
    out = case.ours()
    dout = torch.ones_like(out)
    return _median(lambda: torch.autograd.grad(out, case.given, dout, retain_graph=True), device)


def _median(run: Callable[[], object], device: str) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = once()
    count = min(200, max(3, int(_SECONDS / max(once(), 1e-6)))) if first < _SECONDS else 1
    return 1e6 * statistics.median(once() for _ in range(count))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
