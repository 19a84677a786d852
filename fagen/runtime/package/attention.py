"""The functions users call.

What a call asks for is worked out once per kind of call and remembered: a later eager call with the
same shapes, strides, types and options only looks it up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as torchs

from . import arguments, fallback, maskops
from .errors import BadArgument, NoKernel
from .launch import Options
from .ops import is_plain, wants_gradient
from .plan import Plan
from .selection import DEVICES, Pattern
from .transforms import dispatched

# Takes q, k and v as given; returns the output and, where that is wanted, the log-sum-exp.
Work = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
_REMEMBERED = 4096  # kinds of call; beyond that the memory starts over
_works: dict[Hashable, Work] = {}


class Asked(NamedTuple):
    """The options of ``attention``, as given."""

    causal: Any
    window: Any
    pattern: Any
    scale: Any
    layout: Any
    deterministic: Any
    return_lse: Any
    fallback: Any


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool | str = False,
    window: int | tuple[int, int] | None = None,
    pattern: str | None = None,
    scale: float | None = None,
    layout: str = "bhsd",
    deterministic: bool = False,
    return_lse: bool = False,
    fallback: str | None = None,
    mask: maskops.Mask | None = None,
) -> Any:
    """softmax(q k^T * scale) v, exactly, without the matrix of scores in memory.

    q [batch, heads, seqlen_q, dim], k and v [batch, kv_heads, seqlen_kv, dim or dim_v], or with
    ``layout="bshd"`` [batch, seqlen, heads, dim]. Query head h reads key/value head
    h // (heads // kv_heads). Any strides; no copy is made where the last one is 1.

    ``causal=True`` lines the diagonal up with the last query and the last key (bottom-right), as
    decoding wants it; ``causal="top-left"`` with the first ones, as torch's ``is_causal`` does.
    They differ only where seqlen_q and seqlen_kv do. ``window=(left, right)`` keeps that many keys
    on either side of the (bottom-right) diagonal; ``window=left`` means (left, 0).
    ``pattern`` names one that is compiled into kernels of this package instead, for example
    ``"longformer-w256-g64"``; ``kernels()`` lists them. ``mask``, a ``BlockSparseMask`` or a
    ``DocumentMask``, says instead of them which scores stay.

    Returns the output, and with ``return_lse`` also the natural log-sum-exp of each row's scores,
    fp32 [batch, heads, seqlen_q]; both are differentiable. A row that attends to nothing gives 0
    and -inf. ``deterministic`` asks for a backward that repeats bit by bit; so does
    ``torch.use_deterministic_algorithms``.

    Raises NoKernel where no kernel in this package serves the call; ``fallback="sdpa"`` lets torch
    compute it instead, and ``fallback="fastest"`` also where tuning could not beat it.
    """
    asked = (causal, window, pattern, scale, layout, deterministic, return_lse, fallback)
    if _any_autocast():
        q, k, v = autocast(q, k, v)
    if mask is None:
        out, lse = _remembered(q, k, v, asked, _work)(q, k, v)
    else:
        out, lse = _masked(q, k, v, mask, Asked(*asked))
    return (out, lse) if return_lse else out


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's function of this name, served by this package's kernels where they can.

    Same arguments, same results; the rest goes to torch, and ``fell_back()`` counts it with the
    reason. ``is_causal`` is aligned top-left, as torch has it.
    """
    if attn_mask is not None or not isinstance(query, Tensor):
        return _torch(query, key, value, "attn_mask is given", attn_mask, dropout_p, is_causal,
                      scale, enable_gqa)[0]
    if _any_autocast():
        query, key, value = autocast(query, key, value)
    asked = (dropout_p, is_causal, scale, enable_gqa)
    return _remembered(query, key, value, asked, _sdpa_work)(query, key, value)[0]


def _remembered(
    q: Tensor, k: Tensor, v: Tensor, asked: tuple[Any, ...],
    make: Callable[[Tensor, Tensor, Tensor, Any], Work],
) -> Work:
    if not is_plain(q, k, v):
        return make(q, k, v, asked)
    key = (
        q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(), q.dtype, k.dtype, v.dtype,
        q.device, k.device, v.device, wants_gradient(q, k, v),
        torch.are_deterministic_algorithms_enabled(), asked,
    )
    try:
        work = _works.get(key)
    except TypeError:  # an option that cannot be hashed, such as a list
        return make(q, k, v, asked)
    if work is None:
        if len(_works) >= _REMEMBERED:
            _works.clear()
        work = _works[key] = make(q, k, v, asked)
    return work


def _work(q: Tensor, k: Tensor, v: Tensor, given: tuple[Any, ...]) -> Work:
    """What ``attention`` has to do."""
    asked = Asked(*given)
    arguments.check_options(asked.layout, asked.fallback, asked.deterministic, asked.return_lse)
    pattern = arguments.pattern_of(asked.causal, asked.window, asked.pattern)
    arguments.check_tensors(q, k, v)
    tensors = q, k, v
    if asked.layout == "bshd":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    arguments.check_shapes(q, k, v)
    scale = arguments.scale_of(asked.scale, q.shape[3])
    deterministic = asked.deterministic or torch.are_deterministic_algorithms_enabled()
    if asked.fallback:
        reason = fallback.cannot_serve(q, k, v, pattern, deterministic)
        if asked.fallback == "fastest" and not asked.return_lse:
            reason = reason or fallback.is_not_beaten(q, k, v, pattern, deterministic)
        if reason and pattern.name:
            raise NoKernel(f"{reason}; torch cannot compute the pattern {pattern.name} instead")
        if reason:
            return _laid_out(asked.layout, functools.partial(
                fallback.textbook, reason=reason, pattern=pattern, scale=scale,
                with_lse=asked.return_lse,
            ))
    rows_first = asked.layout == "bshd" or q.stride(1) < q.stride(2)
    options = Options(*pattern, scale, rows_first, deterministic)
    return _ours(*tensors, options, asked.layout, asked.return_lse)


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Any, asked: Asked) -> tuple[Tensor, Tensor]:
    arguments.check_options(asked.layout, asked.fallback, asked.deterministic, asked.return_lse)
    if asked.causal is not False or asked.window is not None or asked.pattern is not None:
        raise BadArgument("mask is given, and causal, window or pattern as well; it says it all")
    return maskops.attend(
        q, k, v, mask, scale=asked.scale, layout=asked.layout, deterministic=asked.deterministic,
        may_fall_back=bool(asked.fallback), with_lse=asked.return_lse,
    )


def _sdpa_work(q: Tensor, k: Tensor, v: Tensor, asked: tuple[Any, ...]) -> Work:
    """What torch's function has to do."""
    dropout_p, is_causal, scale, enable_gqa = asked
    pattern = Pattern(right=0, top_left=True) if is_causal else Pattern()
    deterministic = torch.are_deterministic_algorithms_enabled()
    reason = not_ours(q, k, v, dropout_p, scale, enable_gqa) or fallback.cannot_serve(
        q, k, v, pattern, deterministic
    )
    if reason is not None:
        return functools.partial(
            _torch, reason=reason, attn_mask=None, dropout_p=dropout_p, is_causal=is_causal,
            scale=scale, enable_gqa=enable_gqa,
        )
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
    options = Options(*pattern, scale, q.stride(1) < q.stride(2), deterministic)
    return _ours(q, k, v, options, "bhsd", with_lse=False)


def _ours(
    q: Tensor, k: Tensor, v: Tensor, options: Options, layout: str, with_lse: bool
) -> Work:
    if is_plain(q, k, v):
        return Plan(q, k, v, options, layout, with_lse)
    return _laid_out(layout, functools.partial(dispatched, options=options))


def _laid_out(layout: str, work: Work) -> Work:
    """For work that takes [batch, heads, rows, dim] and gives the output as that."""
    if layout == "bhsd":
        return work

    def turned(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        out, lse = work(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2), lse

    return turned


def _torch(
    q: Tensor, k: Tensor, v: Tensor, reason: str, attn_mask: Tensor | None, dropout_p: float,
    is_causal: bool, scale: float | None, enable_gqa: bool,
) -> tuple[Tensor, Tensor]:
    """torch's own attention, counted."""
    fallback.count(reason)
    out = torchs(
        q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return out, out


def not_ours(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, scale: float | None, enable_gqa: bool
) -> str | None:
    """What speaks against our kernels; torch has its own words for what is wrong altogether."""
    if dropout_p:
        return "dropout_p is not 0"
    if not q.dim() == k.dim() == v.dim() == 4:
        return "the tensors are not four-dimensional"
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        return "types or devices differ"
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        return "shapes are broadcast"
    if q.shape[1] != k.shape[1] and not (enable_gqa and k.shape[1] and not q.shape[1] % k.shape[1]):
        return "heads differ without enable_gqa"
    if scale is not None and not 0 < scale < arguments.MOST_SCALE:
        return "scale is not a positive number"
    return None


def autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What torch does with its own attention under autocast."""
    if not isinstance(q, Tensor) or q.device.type not in DEVICES or (
            not torch.is_autocast_enabled(q.device.type)):
        return q, k, v
    dtype = torch.get_autocast_dtype(q.device.type)
    given = (q, k, v)
    if any(not isinstance(t, Tensor) or t.dtype not in _LOWERED for t in given):
        return given
    return q.to(dtype), k.to(dtype), v.to(dtype)


_any_autocast = torch._C._is_any_autocast_enabled
_LOWERED = (torch.float32, torch.float16, torch.bfloat16)
