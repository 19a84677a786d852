"""Packed sequences of different lengths: one call of a kernel for each of them, on views."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from .compat import flash_attn_func
from .errors import BadArgument, BadType, NoKernel


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

    No row is padded and nothing is computed twice. It is a loop: each sequence costs the host one
    call, and lengths on a GPU are waited for. The log-sum-exp is [heads, total rows].
    """
    if block_table is not None:
        raise NoKernel("block_table is given; no kernel of this package has it")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 3:
            given = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise BadArgument(f"{name} is {given}; a tensor [total rows, heads, dim] is expected")
    rows = _lengths("q", cu_seqlens_q, max_seqlen_q, q.shape[0])
    keys = _lengths("k", cu_seqlens_k, max_seqlen_k, k.shape[0])
    if len(rows) != len(keys) or k.shape[0] != v.shape[0]:
        raise BadArgument(
            f"q has {len(rows)} sequences, k has {len(keys)}; k has {k.shape[0]} rows, v has "
            f"{v.shape[0]}"
        )
    options: Any = (
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, True,
    )
    sequences = zip(_cut(q, rows), _cut(k, keys), _cut(v, keys), strict=True)
    found = [
        flash_attn_func(q[None], k[None], v[None], *options) for q, k, v in sequences
    ]
    if not found:
        nothing = q.new_empty((0, q.shape[1], v.shape[2]))
        return (nothing, q.new_empty((q.shape[1], 0), dtype=torch.float32), None) if (
            return_attn_probs) else nothing
    out = torch.cat([out[0] for out, _, _ in found])
    if not return_attn_probs:
        return out
    return out, torch.cat([lse[0] for _, lse, _ in found], 1), None


def _cut(tensor: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
    """Views; their gradients are put together once."""
    cut: Any = torch.split
    views: tuple[Tensor, ...] = cut(tensor, lengths)
    return views


def _lengths(name: str, ends: Any, longest: Any, total: int) -> list[int]:
    if not isinstance(ends, Tensor) or ends.dtype not in (torch.int32, torch.int64):
        kind = ends.dtype if isinstance(ends, Tensor) else type(ends).__name__
        raise BadType(f"cu_seqlens_{name} is {kind}; a tensor of int32 is expected")
    if ends.dim() != 1 or not ends.numel():
        raise BadArgument(f"cu_seqlens_{name} has shape {list(ends.shape)}; one dimension expected")
    places = ends.tolist()
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
