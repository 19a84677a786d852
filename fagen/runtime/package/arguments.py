"""Every wrong argument becomes an error in words here, before any kernel runs."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from .errors import BadArgument, BadType
from .selection import DTYPES, UNBOUNDED, Pattern

_LAYOUTS = ("bhsd", "bshd")
_FALLBACKS = (None, "sdpa", "fastest")
_NAME = re.compile(r"[a-z0-9_-]{1,200}")
_WINDOW = re.compile(r"window(\d{1,9})(?:x(\d{1,9}))?", re.ASCII)
OF_THE_CALL = re.compile(r"(?:blocks(\d+)(?:x(\d+))?|documents)(-causal)?", re.ASCII)
_BANDS = {
    "dense": Pattern(),
    "causal": Pattern(right=0),
    "causal-topleft": Pattern(right=0, top_left=True),
}
_MOST = 2**31 - 1  # batch, heads and rows are 32-bit numbers to the kernels; strides are 64-bit
MOST_SCALE = 3e38  # as fp32


def check_options(layout: Any, fallback: Any, deterministic: Any, return_lse: Any) -> None:
    if layout not in _LAYOUTS:
        raise BadArgument(f"layout {layout!r} is unknown; one of: {', '.join(_LAYOUTS)}")
    if fallback not in _FALLBACKS:
        raise BadArgument(
            f'fallback {fallback!r} is unknown; None, "sdpa" or "fastest"'
        )
    for name, value in (("deterministic", deterministic), ("return_lse", return_lse)):
        if not isinstance(value, bool):
            raise BadType(f"{name} is {value!r}; True or False is expected")


def pattern_of(causal: Any, window: Any, pattern: Any) -> Pattern:
    if pattern is None:
        return _band(causal, window)
    if causal is not False or window is not None:
        raise BadArgument("pattern is given, and causal or window as well; it says it all")
    if not isinstance(pattern, str):
        raise BadType(f"pattern is {pattern!r}; a name is expected, see kernels()")
    if not _NAME.fullmatch(pattern):
        raise BadArgument(f"pattern is {pattern!r}; see kernels() for those inside")
    if OF_THE_CALL.fullmatch(pattern):
        raise BadArgument(f"the pattern {pattern} is what its mask says; pass mask=, a "
                          "BlockSparseMask or a DocumentMask")
    window_of = _WINDOW.fullmatch(pattern)
    if window_of:
        return Pattern(int(window_of[1]), int(window_of[2] or 0))
    return _BANDS.get(pattern) or Pattern(name=pattern)


def _band(causal: Any, window: Any) -> Pattern:
    if causal not in (True, False, "top-left"):
        raise BadArgument(f'causal is {causal!r}; True, False or "top-left" is expected')
    if window is None:
        return Pattern(right=0 if causal else UNBOUNDED, top_left=causal == "top-left")
    sides = (window, 0) if isinstance(window, int) else window
    if not (isinstance(sides, (tuple, list)) and len(sides) == 2
            and all(isinstance(n, int) and not isinstance(n, bool) for n in sides)):
        raise BadType(f"window is {window!r}; keys on the left, or (left, right), is expected")
    left, right = sides
    if left < 0 or right < 0:
        raise BadArgument(f"window is {window!r}; neither side may be negative")
    return Pattern(left, 0 if causal else right, causal == "top-left")


def check_tensors(q: Any, k: Any, v: Any) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise BadType(f"{name} is {type(tensor).__name__}, a torch.Tensor is expected")
        if tensor.dim() != 4:
            raise BadArgument(f"{name} has shape {list(tensor.shape)}, four dimensions expected")
    if not q.dtype == k.dtype == v.dtype:
        raise BadType(f"q, k and v differ in type: {q.dtype}, {k.dtype}, {v.dtype}")
    if q.dtype not in DTYPES and q.dtype is not torch.float64:
        raise BadType(f"q, k and v are {q.dtype}; float32, float16 or bfloat16 is expected")
    if not q.device == k.device == v.device:
        raise BadArgument(f"q, k and v differ in device: {q.device}, {k.device}, {v.device}")


def check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """As [batch, heads, rows, dim]."""
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise BadArgument(
            f"q, k and v differ in batch: {q.shape[0]}, {k.shape[0]}, {v.shape[0]}"
        )
    for name, size in (("batch", q.shape[0]), ("heads", q.shape[1]), ("rows of q", q.shape[2]),
                       ("rows of k", k.shape[2])):
        if size > _MOST:
            raise BadArgument(f"{name}: {size}; at most {_MOST} is served")
    if k.shape[1] != v.shape[1] or k.shape[2] != v.shape[2]:
        raise BadArgument(
            f"k and v differ: {k.shape[1]} and {v.shape[1]} heads, "
            f"{k.shape[2]} and {v.shape[2]} rows"
        )
    heads, kv_heads = q.shape[1], k.shape[1]
    if (heads % kv_heads if kv_heads else heads) != 0:
        raise BadArgument(f"q has {heads} heads, which is not a multiple of the {kv_heads} of k")
    if q.shape[3] != k.shape[3]:
        raise BadArgument(f"q has head dimension {q.shape[3]}, k has {k.shape[3]}")
    if q.shape[3] == 0 or v.shape[3] == 0:
        raise BadArgument(f"head dimensions are {q.shape[3]} and {v.shape[3]}; 0 makes no sense")


def scale_of(scale: Any, head_dim: int) -> float:
    if scale is None:
        return 1 / math.sqrt(head_dim)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise BadType(f"scale is {scale!r}; a number is expected")
    if not 0 < scale < MOST_SCALE:
        raise BadArgument(f"scale is {scale!r}; a positive finite number is expected")
    return float(scale)
