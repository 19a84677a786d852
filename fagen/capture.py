"""Which attention does a program run? Its shapes, counted while it runs, become a spec to tune.

    with fagen.capture.capture("shapes.jsonl"):
        train()

Without a path the environment decides: ``FAGEN_CAPTURE=shapes.jsonl``, and nothing happens where it
is not set. Every process that ends a capture appends its counts, so ranks and runs add up. As a
program, ``python -m fagen.capture FILE PROGRAM ARGS`` captures one that knows nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fagen.errors import FagenError, UsageError
from fagen.model import DTYPES, Problem
from fagen.patterns import parse_pattern
from fagen.workload import Workload

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "FAGEN_CAPTURE"
_DTYPES = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
assert set(_DTYPES.values()) == set(DTYPES)


class Unserved(Exception):
    """No kernel of fagen does this; the text says what."""


class Counts:
    """How often each problem was computed at each size, and what was seen that cannot be tuned."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.unserved: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, backward: bool, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        try:
            problem, workload = _recognise(*arguments, **options)
        except Unserved as error:
            with self._lock:
                self.unserved[str(error)] += 1
            return
        with self._lock:
            self.calls[f"fwd-{problem}", workload] += 1
            if backward:
                self.calls[f"bwd-{problem}", workload] += 1

    def lines(self) -> list[dict[str, Any]]:
        shapes = [{"problem": p, "workload": w, "calls": n} for (p, w), n in self.calls.items()]
        return shapes + [{"unserved": why, "calls": n} for why, n in self.unserved.items()]


def _recognise(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, **_: Any,
) -> tuple[str, str]:
    """A problem without its op, and a workload."""
    if attn_mask is not None:
        raise Unserved("a mask given as a tensor")
    if dropout_p:
        raise Unserved("dropout")
    if query.dim() == 3:
        query, key, value = (t.unsqueeze(0) for t in (query, key, value))
    if query.dim() != 4 or not query.shape[0] == key.shape[0] == value.shape[0]:
        raise Unserved(f"tensors of shapes {tuple(query.shape)} and {tuple(key.shape)}")
    batch, heads, rows, dim = query.shape
    kv_heads, keys, dim_v = key.shape[1], key.shape[2], value.shape[3]
    # torch lets the first query see the first key, also where there are more keys.
    pattern = "dense" if not is_causal else "causal" if rows == keys else "causal-topleft"
    try:
        problem = Problem("fwd", _dtype(query), dim, parse_pattern(pattern), dim_v)
        workload = Workload(batch, heads, kv_heads, rows, keys)
    except FagenError as error:
        raise Unserved(error.message) from None
    return str(problem).removeprefix("fwd-"), str(workload)


def _dtype(query: Tensor) -> str:
    import torch

    kind, device = query.dtype, query.device.type
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    if str(kind) not in _DTYPES:
        raise Unserved(f"elements of {kind}")
    return _DTYPES[str(kind)]


@contextlib.contextmanager
def capture(path: str | Path | None = None) -> Iterator[Counts]:
    """Count what ``scaled_dot_product_attention`` is called with, in all threads. A program that is
    compiled by torch is counted while it is traced; run it uncompiled to have true weights."""
    given = path or os.environ.get(VARIABLE)
    counts = Counts()
    if not given:
        yield counts
        return
    target = Path(given).absolute()
    _append(target, "")  # a path that cannot be written is said before an hour of training
    try:
        with _watched(counts):
            yield counts
    finally:
        _append(target, "".join(json.dumps(line) + "\n" for line in counts.lines()))


@contextlib.contextmanager
def _watched(counts: Counts) -> Iterator[None]:
    """By the name in torch.nn.functional, which other functions of torch use in all threads; and by
    a mode, for those who took the function out of the module before."""
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    original = functional.scaled_dot_product_attention
    inside = threading.local()

    def attend(*arguments: Any, **options: Any) -> Any:
        outer, inside.now = getattr(inside, "now", False), True
        try:
            out = original(*arguments, **options)
        finally:
            inside.now = outer
        if not outer:
            counts.note(out.requires_grad, arguments, options)
        return out

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            called = attend if func is original else func
            return called(*args, **(kwargs or {}))

    functional.scaled_dot_product_attention = attend
    try:
        with Mode():
            yield
    finally:
        functional.scaled_dot_product_attention = original



def _append(path: Path, text: str) -> None:
    """In one stroke, so that several processes can do it at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(text.encode())
    except OSError as error:
        raise UsageError(f"the capture {path} cannot be written: {error.strerror}") from error


def main(arguments: list[str]) -> None:
    """Run a program, or a module after ``-m``, as Python itself would."""
    path, program, *rest = arguments
    with capture(path):
        if program == "-m":
            sys.argv, sys.path[0] = rest, os.getcwd()
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = [program, *rest], str(Path(program).resolve().parent)
            runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
