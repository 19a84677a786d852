"""Packed sequences of different lengths: in one call, or without a kernel for it one by one."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from . import packed
from .arguments import check_shapes, check_tensors, pattern_of, scale_of
from .attention import autocast
from .compat import band, flash_attn_func, refuse
from .errors import BadArgument, BadType, NoKernel
from .fallback import count, no_kernel
from .ops import wants_gradient
from .packed import FWD, Packing
from .selection import Call


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Any:
    """As in the flash-attn package: [total rows, heads, dim], where the sequences stand one after
    another and ``cu_seqlens`` says where each begins and the last one ends.

    Kernels for packed sequences (``+varlen``) compute it in one call, and lengths on a GPU are not
    waited for. Without one each sequence is a call of its own, which ``fell_back()`` counts. The
    log-sum-exp is [heads, total rows].
    """
    if block_table is not None:
        raise NoKernel("block_table is given; no kernel of this package has it")
    refuse(dropout_p, softcap, alibi_slopes)
    q, k, v = autocast(q, k, v)
    _check(q, k, v, cu_seqlens_q, cu_seqlens_k)
    on_host = not (cu_seqlens_q.is_cuda or cu_seqlens_k.is_cuda or torch.compiler.is_compiling())
    ends = ("q", cu_seqlens_q, max_seqlen_q, q), ("k", cu_seqlens_k, max_seqlen_k, k)
    lengths = [_lengths(*given) for given in ends] if on_host else []
    if q.numel() and k.numel() and v.numel():
        asked = pattern_of(**{"causal": False, "window": None, "pattern": None,
                              **band(causal, window_size, k[None])})
        packing = Packing(
            max_seqlen_q, max_seqlen_k, *asked, scale_of(softmax_scale, q.shape[2]),
            deterministic or torch.are_deterministic_algorithms_enabled(),
        )
        reason = _no_kernel(q, k, v, cu_seqlens_q, packing)
        if reason is None:
            offsets = (_offsets(cu, q) for cu in (cu_seqlens_q, cu_seqlens_k))
            out, lse = FWD(q, k, v, *offsets, *packing)
            return (out, lse, None) if return_attn_probs else out
        count(f"packed sequences, one after another: {reason}")
    rows, keys = lengths or [_lengths(*given) for given in ends]
    options: Any = (0.0, softmax_scale, causal, window_size, 0.0, None, deterministic, True)
    out, lse = _one_by_one(q, k, v, rows, keys, options)
    return (out, lse, None) if return_attn_probs else out


def _one_by_one(
    q: Tensor, k: Tensor, v: Tensor, rows: list[int], keys: list[int], options: Any
) -> tuple[Tensor, Tensor]:
    """A loop: each sequence costs the host one call."""
    sequences = zip(_cut(q, rows), _cut(k, keys), _cut(v, keys), strict=True)
    found = [flash_attn_func(q[None], k[None], v[None], *options) for q, k, v in sequences]
    if not found:
        return (q.new_empty((0, q.shape[1], v.shape[2])),
                q.new_empty((q.shape[1], 0), dtype=torch.float32))
    return torch.cat([out[0] for out, _, _ in found]), torch.cat([lse[0] for _, lse, _ in found], 1)


def _no_kernel(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, packing: Packing) -> str | None:
    """Why no kernel takes the sequences together; None where one does."""
    def call_of(op: str) -> Call:
        return packed.call_of(op, q, k, v, cu_q.numel() - 1, packing)

    return no_kernel(call_of, wants_gradient(q, k, v))


def _offsets(cu: Tensor, q: Tensor) -> Tensor:
    return cu.to(device=q.device, dtype=torch.int32, non_blocking=True).contiguous()


def _check(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any) -> None:
    """What can be seen without reading the offsets."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 3:
            given = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise BadArgument(f"{name} is {given}; a tensor [total rows, heads, dim] is expected")
    for name, ends in (("q", cu_q), ("k", cu_k)):
        if not isinstance(ends, Tensor) or ends.dtype not in (torch.int32, torch.int64):
            kind = ends.dtype if isinstance(ends, Tensor) else type(ends).__name__
            raise BadType(f"cu_seqlens_{name} is {kind}; a tensor of int32 is expected")
        if ends.dim() != 1 or not ends.numel():
            raise BadArgument(
                f"cu_seqlens_{name} has shape {list(ends.shape)}; one dimension expected")
    if cu_q.numel() != cu_k.numel() or k.shape[0] != v.shape[0]:
        raise BadArgument(
            f"q has {cu_q.numel() - 1} sequences, k has {cu_k.numel() - 1}; k has {k.shape[0]} "
            f"rows, v has {v.shape[0]}"
        )
    batched = [packed.as_batch(x) for x in (q, k, v)]
    check_tensors(*batched)
    check_shapes(*batched)


def _cut(tensor: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
    """Views; their gradients are put together once."""
    cut: Any = torch.split
    views: tuple[Tensor, ...] = cut(tensor, lengths)
    return views


def _lengths(name: str, ends: Tensor, longest: int, tensor: Tensor) -> list[int]:
    """Read from where they are, and checked."""
    places, total = ends.tolist(), tensor.shape[0]
    lengths = [after - before for before, after in itertools.pairwise(places)]
    if places[0] or places[-1] != total or min(lengths, default=0) < 0:
        raise BadArgument(
            f"cu_seqlens_{name} goes from {places[0]} to {places[-1]}; it must rise from 0 to the "
            f"{total} rows of {name}"
        )
    if max(lengths, default=0) > longest:
        raise BadArgument(
            f"max_seqlen_{name} is {longest}, the longest sequence has {max(lengths)} rows"
        )
    return lengths
