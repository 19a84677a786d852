"""The answers to one case, and how far from them a kernel may be: twice the error of the plain
computation, plus what fp32 itself cannot hold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fagen.cases import Case
from fagen.inputs import DTYPES, Buffer
from fagen.masks import drawn
from fagen.model import Problem
from fagen.patterns import Mix, StaticPattern
from fagen.pieces import Group, Pieces
from fagen.reference import (
    EXACT,
    FAST,
    AnyMask,
    Arithmetic,
    DataMask,
    Gradients,
    HeadMasks,
    Mask,
    backward,
    forward,
    plain,
)

TILE_ROWS = 64
_LEAST_ROWS = 16  # of a last tile: the largest error of a few rows says little
_EPS = 2.0**-23

Bound = Callable[..., tuple[Tensor, Tensor]]


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
