"""Attention by the textbook, twice: exactly, and as plainly as the storage type allows.

The exact one runs in fp64. The plain one runs in fp32 and rounds what any kernel with 16-bit
operands must round: probabilities, score gradients, outputs. Its error against the exact one is the
yardstick for a kernel's error. Both go over one key/value head and some rows at a time, so that no
N x N matrix of all heads ever exists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fagen.patterns import Pattern

_CHUNK_ELEMENTS = 1 << 24  # scores held at once


@dataclass(frozen=True)
class Arithmetic:
    """What numbers are computed in, and the type that a kernel would have to store them in."""

    compute: torch.dtype
    storage: torch.dtype | None = None  # None: no rounding

    def of(self, x: Tensor) -> Tensor:
        return x.to(self.compute)

    def rounded(self, x: Tensor) -> Tensor:
        return x if self.storage is None else x.to(self.storage).to(self.compute)


EXACT = Arithmetic(torch.float64)
FAST = Arithmetic(torch.float32)  # what feeds heads that are run and not compared


def plain(storage: torch.dtype) -> Arithmetic:
    return Arithmetic(torch.float32, None if storage is torch.float32 else storage)


class Mask:
    """The keys that each query row keeps, as intervals."""

    def __init__(self, pattern: Pattern, seqlen_q: int, seqlen_kv: int, device: str) -> None:
        rows = [pattern.row(q, seqlen_q, seqlen_kv) for q in range(seqlen_q)]
        self.begin, self.end = torch.tensor(rows, device=device).unbind(1)
        self.keys = torch.arange(seqlen_kv, device=device)

    def drops(self, rows: slice) -> Tensor:
        begin, end = self.begin[rows, None], self.end[rows, None]
        return (self.keys < begin) | (self.keys >= end)


def row_chunks(group: int, seqlen_q: int, seqlen_kv: int) -> list[slice]:
    size = max(1, _CHUNK_ELEMENTS // (group * seqlen_kv))
    return [slice(r, min(r + size, seqlen_q)) for r in range(0, seqlen_q, size)]


def scores(q: Tensor, k: Tensor, mask: Mask, rows: slice, scale: float) -> Tensor:
    """Scaled scores of some rows of one group of query heads; what the pattern drops is -inf."""
    return (q[:, rows] @ k.mT * scale).masked_fill(mask.drops(rows), -math.inf)


def probabilities(s: Tensor, lse: Tensor) -> Tensor:
    """A row that keeps nothing has lse -inf and probabilities 0."""
    return torch.exp(s - lse.where(lse != -math.inf, 0)[..., None])


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, math_: Arithmetic
) -> tuple[Tensor, Tensor, float]:
    """One key/value head: q [group, sq, d], k [sk, d], v [sk, dv] -> o, lse, largest finite |s|."""
    q, k, v = math_.of(q), math_.of(k), math_.of(v)
    group, seqlen_q = q.shape[:2]
    o = q.new_empty(group, seqlen_q, v.shape[1])
    lse = q.new_empty(group, seqlen_q)
    largest = 0.0
    for rows in row_chunks(group, seqlen_q, k.shape[0]):
        s = scores(q, k, mask, rows, scale)
        lse[:, rows] = torch.logsumexp(s, -1)
        # Probabilities are rounded before the division by their sum, as every flash kernel does.
        top = s.amax(-1, keepdim=True)
        p = torch.exp(s - top.where(top != -math.inf, 0))
        total = p.sum(-1, keepdim=True)
        o[:, rows] = math_.rounded(p) @ v / total.where(total != 0, 1)
        largest = max(largest, float(s.abs().nan_to_num(0, 0, 0).amax()))
    return math_.rounded(o), lse, largest


@dataclass(frozen=True)
class Gradients:
    """One key/value head's gradients, and the largest |dP|, which sets the scale of rounding."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    largest_dp: float


def backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None,
    mask: Mask, scale: float, math_: Arithmetic,
) -> Gradients:
    """One key/value head: shapes as in forward, dout as o, dlse as lse."""
    q, k, v, o, lse, dout = (math_.of(x) for x in (q, k, v, o, lse, dout))
    delta = (o * dout).sum(-1)
    if dlse is not None:
        delta = delta - math_.of(dlse)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    largest = 0.0
    for rows in row_chunks(q.shape[0], q.shape[1], k.shape[0]):
        p = probabilities(scores(q, k, mask, rows, scale), lse[:, rows])
        dp = dout[:, rows] @ v.mT
        # A dropped score has no gradient, whatever its dP.
        ds = (p * (dp - delta[:, rows, None])).masked_fill(mask.drops(rows), 0)
        p, ds = math_.rounded(p), math_.rounded(ds)
        dq[:, rows] = ds @ k * scale
        dk += (ds.mT @ q[:, rows]).sum(0) * scale
        dv += (p.mT @ dout[:, rows]).sum(0)
        largest = max(largest, float(dp.abs().nan_to_num(0, 0, 0).amax()))
    return Gradients(math_.rounded(dq), math_.rounded(dk), math_.rounded(dv), largest)
