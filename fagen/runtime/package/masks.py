"""Attention under a mask of booleans: the mask is taken apart into bands, which kernels serve.

What is computed is what the mask says, for every row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import launch
from .attention import attention
from .fallback import count
from .ops import wants_gradient
from .pieces import Piece, Pieces, reading_of
from .selection import UNBOUNDED, find, problems
from .together import together

MOST_PIECES = 256  # calls of kernels for one call of attention


def masked(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None
) -> tuple[Tensor | None, str]:
    """The output, or None and what speaks against it. A row that sees nothing gives 0.

    The mask is [batch or 1, heads or 1, rows, keys], True where a query may look.
    """
    batch, heads, rows, _ = q.shape
    if mask.dtype is not torch.bool or mask.dim() != 4 or not mask.numel():
        return None, "the mask is not one of booleans in four dimensions"
    if mask.shape[0] not in (1, batch) or tuple(mask.shape[2:]) != (rows, k.shape[2]):
        return None, "the mask is of another shape than the scores"
    if mask.shape[1] != 1 and not (mask.shape[1] == heads and mask.stride(1) == 0):
        return None, "the mask differs from head to head"
    reading = reading_of(mask)
    found = reading.pieces
    if found is None:
        return None, "the mask has holes"
    if len(set(found)) == 1:
        found = found[:1]
    if sum(not piece.is_empty for pieces in found for piece in pieces) > 1:
        out, why = together(q, k, v, found, reading.plans, scale, _whole)
        if out is not None:
            return out, ""
        if why:
            count(f"packed sequences, one after another: {why}")
    if sum(map(len, found)) > MOST_PIECES:
        return None, f"the mask falls into more than {MOST_PIECES} pieces"
    if len(found) == 1:
        return _whole(q, k, v, found[0], scale), ""
    sequences = zip(q.unbind(), k.unbind(), v.unbind(), found, strict=True)
    outs = [_whole(q[None], k[None], v[None], pieces, scale) for q, k, v, pieces in sequences]
    return torch.cat(outs), ""


def _whole(q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scale: float | None) -> Tensor:
    parts = [
        _part(q, k, v, cut, scale)
        for piece in pieces
        for cut in ((piece,) if _fits(q, k, v, piece) else piece.without_bend())
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _part(q: Tensor, k: Tensor, v: Tensor, piece: Piece, scale: float | None) -> Tensor:
    (begin, end), (first, last), (left, right, *_) = piece
    q, k, v = q[:, :, begin:end], k[:, :, first:last], v[:, :, first:last]
    everything = last - first
    if not everything:
        return q.new_zeros((*q.shape[:3], v.shape[3]))
    out: Tensor
    if left == UNBOUNDED and right <= 0:
        out = attention(q, k, v, causal=right == 0, scale=scale, fallback="sdpa")
    else:
        window = (everything if left == UNBOUNDED else left,
                  everything if right == UNBOUNDED else right)
        out = attention(q, k, v, window=window, scale=scale, fallback="sdpa")
    return out


def _fits(q: Tensor, k: Tensor, v: Tensor, piece: Piece) -> bool:
    """Is there a kernel for the piece as it is? Only asked where it could be cut."""
    if piece.band.right <= 0:
        return True
    q, k, v = q[:, :, slice(*piece.rows)], *(x[:, :, slice(*piece.keys)] for x in (k, v))
    deterministic = torch.are_deterministic_algorithms_enabled()
    return all(
        find(problems(call), call.device, call.sizes) is not None
        for op in (("fwd", "bwd") if wants_gradient(q, k, v) else ("fwd",))
        for call in (launch.call_of(op, q, k, v, piece.band, deterministic),)
    )
