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

from fagen.masks import Drawn
from fagen.patterns import StaticPattern
from fagen.pieces import Group

_CHUNK_ELEMENTS = 1 << 24  # scores held at once
_OFF_THE_MAXIMUM = 0.3


@dataclass(frozen=True)
class Arithmetic:
    """What numbers are computed in, and the type that a kernel would have to store them in."""

    compute: torch.dtype
    storage: torch.dtype | None = None  # None: no rounding
    late: bool = False  # dS is made from P before P is rounded

    def of(self, x: Tensor) -> Tensor:
        return x.to(self.compute)

    def rounded(self, x: Tensor) -> Tensor:
        return x if self.storage is None else x.to(self.storage).to(self.compute)


EXACT = Arithmetic(torch.float64)
FAST = Arithmetic(torch.float32)  # what feeds heads that are run and not compared


def plain(storage: torch.dtype, late: bool = False) -> Arithmetic:
    return Arithmetic(torch.float32, None if storage is torch.float32 else storage, late)


class Mask:
    """Which keys each query row keeps, some rows at a time."""

    def __init__(
        self, pattern: StaticPattern, seqlen_q: int, seqlen_kv: int, device: str
    ) -> None:
        self.pattern, self.shape = pattern, (seqlen_q, seqlen_kv)
        self.positions = torch.arange(seqlen_q, device=device) + pattern.shift(seqlen_q, seqlen_kv)
        self.keys = torch.arange(seqlen_kv, device=device)

    def drops(self, rows: slice) -> Tensor:
        i = self.positions[rows, None]
        kept = torch.as_tensor(self.pattern.keep(i, self.keys, self.shape[1]), device=i.device)
        return ~kept.expand(len(i), self.shape[1])


@dataclass(frozen=True)
class DataMask:
    """The same for a mask that comes with the call: of one key/value head."""

    drawn: Drawn
    group: Group
    heads: int  # query heads that share the key/value head
    device: str

    def drops(self, rows: slice) -> Tensor:
        return ~self.drawn.keeps(self.group, self.heads, rows, self.device)


@dataclass(frozen=True)
class HeadMasks:
    """Of query heads that follow different patterns."""

    heads: tuple[Mask, ...]

    def drops(self, rows: slice) -> Tensor:
        return torch.stack([mask.drops(rows) for mask in self.heads])


AnyMask = Mask | DataMask | HeadMasks


def row_chunks(group: int, seqlen_q: int, seqlen_kv: int) -> list[slice]:
    size = max(1, _CHUNK_ELEMENTS // (group * seqlen_kv))
    return [slice(r, min(r + size, seqlen_q)) for r in range(0, seqlen_q, size)]


def scores(q: Tensor, k: Tensor, mask: AnyMask, rows: slice, scale: float) -> Tensor:
    """Scaled scores of some rows of one group of query heads; what the pattern drops is -inf."""
    return (q[:, rows] @ k.mT * scale).masked_fill(mask.drops(rows), -math.inf)


def probabilities(s: Tensor, lse: Tensor) -> Tensor:
    """A row that keeps nothing has lse -inf and probabilities 0."""
    return torch.exp(s - lse.where(lse != -math.inf, 0)[..., None])


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: AnyMask, scale: float, math_: Arithmetic
) -> tuple[Tensor, Tensor, float]:
    """One key/value head: q [group, sq, d], k [sk, d], v [sk, dv] -> o, lse, largest finite |s|."""
    q, k, v = math_.of(q), math_.of(k), math_.of(v)
    group, seqlen_q = q.shape[:2]
    o = q.new_zeros(group, seqlen_q, v.shape[1])
    lse = q.new_full((group, seqlen_q), -math.inf)
    largest = 0.0
    if not k.numel():
        return o, lse, largest
    for rows in row_chunks(group, seqlen_q, k.shape[0]):
        s = scores(q, k, mask, rows, scale)
        lse[:, rows] = torch.logsumexp(s, -1)
        # Probabilities are rounded before the division by their sum, as every flash kernel does.
        top = s.amax(-1, keepdim=True)
        # Kernels need not divide by the largest: it would be 1, which rounds to itself.
        p = torch.exp(s - top.where(top != -math.inf, 0) + _OFF_THE_MAXIMUM)
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
    mask: AnyMask, scale: float, math_: Arithmetic,
) -> Gradients:
    """One key/value head: shapes as in forward, dout as o, dlse as lse."""
    q, k, v, o, lse, dout = (math_.of(x) for x in (q, k, v, o, lse, dout))
    delta = (o * dout).sum(-1)
    if dlse is not None:
        delta = delta - math_.of(dlse)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    largest = 0.0
    for rows in row_chunks(q.shape[0], q.shape[1], k.shape[0]) if k.numel() else ():
        exact_p = probabilities(scores(q, k, mask, rows, scale), lse[:, rows])
        p = math_.rounded(exact_p)
        dp = dout[:, rows] @ v.mT
        # A dropped score has no gradient, whatever its dP.
        ds = (exact_p if math_.late else p) * (dp - delta[:, rows, None])
        ds = ds.masked_fill(mask.drops(rows), 0)
        ds = math_.rounded(ds)
        dq[:, rows] = ds @ k * scale
        dk += (ds.mT @ q[:, rows]).sum(0) * scale
        dv += (p.mT @ dout[:, rows]).sum(0)
        largest = max(largest, float(dp.abs().nan_to_num(0, 0, 0).amax()))
    return Gradients(math_.rounded(dq), math_.rounded(dk), math_.rounded(dv), largest)
