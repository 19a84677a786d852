"""Attention by the textbook, twice: exactly, and as plainly as the storage type allows.

The exact one runs in fp64. The plain one runs in fp32 and rounds what any kernel with 16-bit
operands must round: probabilities, score gradients, outputs. Its error against the exact one is the
yardstick for a kernel's error. Both go over one key/value head and some rows at a time, so that no
N x N matrix of all heads ever exists.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fagen.cases import Case
from fagen.inputs import DTYPES, Buffer
from fagen.masks import Drawn, drawn
from fagen.model import Problem
from fagen.patterns import Mix, StaticPattern
from fagen.pieces import Group, Pieces

TILE_ROWS = 64
_LEAST_ROWS = 16  # of a last tile: the largest error of a few rows says little
_CHUNK_ELEMENTS = 1 << 24  # scores held at once
_EPS = 2.0**-23
_OFF_THE_MAXIMUM = 0.3

Bound = Callable[..., tuple[Tensor, Tensor]]


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


# --- the answers to one case ---------------------------------------------------------------------


def difference(got: Tensor, want: Tensor, name: str) -> Tensor:
    """Absolute error; infinite where one side is a number and the other is not."""
    same = (got == want) | (got.isnan() & want.isnan())
    if name == "lse":  # where an infinite score makes the row meaningless, any such mark will do
        same |= (want.isnan() | (want == torch.inf)) & ~got.isfinite()
    return (got - want).abs().nan_to_num(torch.inf, torch.inf).masked_fill(same, 0)


def tiles(x: Tensor) -> Tensor:
    """Largest element in each tile of 64 rows: [heads, rows(, dim)] -> [heads, tiles]. A last one
    of a few rows joins the tile before it."""
    rows = x if x.dim() == 2 else x.amax(-1)
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % TILE_ROWS))
    found = padded.view(len(x), padded.shape[1] // TILE_ROWS, TILE_ROWS).amax(-1)
    if found.shape[1] < 2 or not 0 < rows.shape[1] % TILE_ROWS < _LEAST_ROWS:
        return found
    return torch.cat((found[:, :-2], found[:, -2:].amax(-1, keepdim=True)), 1)


class Solver:
    """Exact answers and bounds, one piece at a time."""

    def __init__(
        self, problem: Problem, case: Case, pieces: Pieces, inputs: dict[str, Buffer]
    ) -> None:
        self.storage = DTYPES[problem.dtype]
        self.backward = problem.op == "bwd"
        self.scale, self.inputs = case.scale_for(problem), inputs
        self.pattern, self.pieces = problem.pattern, pieces
        self.drawn = drawn(problem, case)
        self.exact: dict[Group, tuple[Tensor, Tensor, float]] = {}

    def slice(self, name: str, group: Group) -> Tensor:
        found = self.pieces.cut(name, self.inputs[name].values, group)
        return found[0] if name in ("k", "v") else found

    def mask(self, group: Group) -> AnyMask:
        device = str(self.inputs["q"].raw.device)
        if self.drawn is not None:
            return DataMask(self.drawn, group, self.pieces.heads, device)
        lengths = self.pieces.lengths(group)
        if isinstance(self.pattern, Mix):
            first = group[1] * self.pieces.heads
            heads = map(self.pattern.of_head, range(first, first + self.pieces.heads))
            return HeadMasks(tuple(Mask(pattern, *lengths, device) for pattern in heads))
        assert isinstance(self.pattern, StaticPattern)
        return Mask(self.pattern, *lengths, device)

    def forward(
        self, group: Group, arithmetic: Arithmetic
    ) -> tuple[Tensor, Tensor, float]:
        q, k, v = (self.slice(name, group) for name in "qkv")
        return forward(q, k, v, self.mask(group), self.scale, arithmetic)

    def feed(self, group: Group, exact: bool) -> None:
        """Write the o and lse that the backward reads."""
        o, lse, largest = self.forward(group, EXACT if exact else FAST)
        self.slice("o", group).copy_(o)
        self.slice("lse", group).copy_(lse)
        if exact:
            self.exact[group] = o, lse, largest

    def solve(self, group: Group) -> dict[str, tuple[Tensor, Tensor]]:
        """Values and bounds by output."""
        rounding = plain(self.storage)
        k_max, q_max, v_max = (_largest(self.slice(name, group)) for name in "kqv")
        if not self.backward:
            o, lse, largest = self.forward(group, EXACT)
            plain_o, plain_lse, _ = self.forward(group, rounding)
            bound = self._bounds(largest)
            return {
                "o": bound(o, (plain_o,), v_max),
                "lse": bound(lse, (plain_lse,), 1.0, torch.float32),
            }
        o, lse, largest = self.exact.pop(group)
        want = self._gradients(group, o, lse, EXACT)
        # Kernels may hold P in fp32 until dS is made, or not. Where a row sees few keys the errors
        # are few roundings, and one of the two may be lucky: the worse one is the yardstick.
        early, late = (
            self._gradients(group, self.slice("o", group), self.slice("lse", group), rounded)
            for rounded in (rounding, plain(self.storage, late=True))
        )
        bound = self._bounds(largest)
        ds = self.scale * want.largest_dp
        return {
            "dq": bound(want.dq, (early.dq, late.dq), ds * k_max),
            "dk": bound(want.dk[None], (early.dk[None], late.dk[None]), ds * q_max),
            "dv": bound(want.dv[None], (early.dv[None],), _largest(self.slice("dout", group))),
        }

    def _gradients(
        self, group: Group, o: Tensor, lse: Tensor, arithmetic: Arithmetic
    ) -> Gradients:
        q, k, v, dout = (self.slice(name, group) for name in ("q", "k", "v", "dout"))
        dlse = self.slice("dlse", group) if "dlse" in self.inputs else None
        return backward(
            q, k, v, o, lse, dout, dlse, self.mask(group), self.scale, arithmetic
        )

    def _bounds(self, largest_score: float) -> Bound:
        """fp32 holds a score of size s to about s * eps, so its exponential to that share. Tensor
        cores truncate after every 16 products, always to the same side: that adds up."""
        steps = self.inputs["q"].values.shape[-1] / 16
        fp32 = _EPS * (32 + (4 + steps / 2) * largest_score)

        def bound(
            want: Tensor, plain: Sequence[Tensor], magnitude: float,
            stored: torch.dtype = self.storage,
        ) -> tuple[Tensor, Tensor]:
            errors = (difference(x.to(want.dtype), want, "") for x in plain)
            error = functools.reduce(torch.maximum, errors).nan_to_num(0, posinf=0)
            size = want.abs().nan_to_num(0, posinf=0, neginf=0)
            # In a tile of one row the plain result may be spared even the rounding of itself.
            half_step = torch.finfo(stored).eps / 2
            return want, 2 * tiles(error) + fp32 * magnitude + half_step * tiles(size)

        return bound


def _largest(x: Tensor) -> float:
    return 0.0 if not x.numel() else float(x.float().abs().nan_to_num(0, 0, 0).max())
