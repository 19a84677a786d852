"""The pieces of a mask in few calls: kernels for packed sequences take those of one band at once.

The rows of all sequences stand one after another, as they lie in memory, and so do the keys. Every
call is given all of them: what is not of its band is a sequence without keys, or one without rows,
for which a kernel writes zeros. So nothing is gathered or scattered, and the results add up.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import packed
from .arguments import scale_of
from .fallback import no_kernel
from .ops import wants_gradient
from .packed import FWD, Packing
from .pieces import Piece, Pieces
from .selection import UNBOUNDED, Pattern

# One row for so many keys: a cache, which is better read by a call for each sequence than copied.
KEYS_OF_A_ROW = 8


class Member(NamedTuple):
    """A piece of one of the sequences."""

    sequence: int
    piece: Piece


class Together(NamedTuple):
    """One call: where its sequences begin, those that only fill gaps among them."""

    cu_q: Tensor
    cu_kv: Tensor
    packing: Packing


class Plan(NamedTuple):
    calls: tuple[Together, ...]
    alone: tuple[Member, ...]  # of bands that no kernel for packed sequences has
    rows: Tensor  # theirs
    reason: str


def together(
    q: Tensor, k: Tensor, v: Tensor, found: tuple[Pieces, ...], plans: dict[Hashable, Plan],
    scale: float | None, one: Callable[..., Tensor],
) -> tuple[Tensor | None, str]:
    """The output, [batch, heads, rows, dim], or None and why each piece had better go alone;
    ``one`` computes pieces of one sequence."""
    batch, _, rows, _ = q.shape
    if rows * KEYS_OF_A_ROW < k.shape[2] and not (_lies_flat(k) and _lies_flat(v)):
        return None, "keys and values would have to be copied"
    differentiable = wants_gradient(q, k, v)
    deterministic = torch.are_deterministic_algorithms_enabled()
    key = q.shape, k.shape, v.shape, q.dtype, q.device, differentiable, deterministic
    plan = plans.get(key)
    if plan is None:
        why_not = functools.partial(_no_kernel, _flat(q, k, v), differentiable)
        sizes = rows, k.shape[2], deterministic
        plan = plans[key] = _plan(found if len(found) == batch else found * batch, *sizes, why_not,
                                  1 if len(found) == batch else batch, q.device)
    if not plan.calls:
        return None, plan.reason
    flat, exactly = _flat(q, k, v), scale_of(scale, q.shape[3])
    outs = [FWD(*flat, call.cu_q, call.cu_kv, *call.packing._replace(scale=exactly))[0]
            for call in plan.calls]
    out = functools.reduce(torch.add, outs)
    if plan.alone:
        single = [one(q[n:n + 1], k[n:n + 1], v[n:n + 1], (piece,), scale)
                  for n, piece in plan.alone]
        out = out.index_copy(0, plan.rows, torch.cat([x[0].transpose(0, 1) for x in single]))
    return out.unflatten(0, (batch, rows)).transpose(1, 2), ""


def _flat(*tensors: Tensor) -> list[Tensor]:
    """[batch, heads, rows, dim] as [all rows, heads, dim]: views where the rows lie so."""
    return [x.transpose(1, 2).flatten(0, 1) for x in tensors]


def _lies_flat(x: Tensor) -> bool:
    return x.shape[0] == 1 or x.stride(0) == x.shape[2] * x.stride(2)


def _no_kernel(
    flat: list[Tensor], differentiable: bool, count: int, packing: Packing
) -> str | None:
    q, k, v = flat
    return no_kernel(lambda op: packed.call_of(op, q, k, v, count, packing), differentiable)


# --- from pieces to calls ------------------------------------------------------------------------


def _plan(
    sequences: tuple[Pieces, ...], rows: int, keys: int, deterministic: bool,
    why_not: Callable[[int, Packing], str | None], alike: int, device: torch.device,
) -> Plan:
    """``alike`` sequences would share one call of a kernel for the whole batch."""
    def packing(band: Pattern, longest: tuple[int, int] = (rows, keys)) -> Packing:
        return Packing(*longest, band.left, band.right, band.top_left, band.name, 1.0,
                       deterministic)

    def cut(piece: Piece) -> tuple[Piece, ...]:
        """In two where only a half has a kernel."""
        whole, *halves = (why_not(len(sequences), packing(x.band))
                          for x in (piece, *piece.without_bend()))
        return (piece,) if whole is None or all(halves) else piece.without_bend()

    members = [Member(n, part) for n, pieces in enumerate(sequences)
               for piece in pieces if not piece.is_empty for part in cut(piece)]
    calls: list[Together] = []
    alone: list[Member] = []
    reason = ""
    for band, layer in _layers(_with_windows(members)):
        ends_q, ends_kv = _ends(layer, rows, keys, len(sequences))
        asked = packing(band, (_longest(ends_q), _longest(ends_kv)))
        why = why_not(len(ends_q) - 1, asked)
        if why:
            alone, reason = alone + layer, reason or why
        else:
            calls.append(Together(_tensor(ends_q, device), _tensor(ends_kv, device), asked))
    if len(calls) + len(alone) >= len(members) // alike:
        calls = []  # nothing is saved
    theirs = [n * rows + row for n, piece in alone for row in range(*piece.rows)]
    return Plan(tuple(calls), tuple(alone), _tensor(theirs, device, torch.int64), reason)


def _tensor(numbers: list[int], device: torch.device, dtype: torch.dtype = torch.int32) -> Tensor:
    with torch.inference_mode(False):  # a plan made there may be used in training
        return torch.tensor(numbers, dtype=dtype, device=device)


def _with_windows(members: list[Member]) -> Iterator[Member]:
    """A sequence that is shorter than the others' window joins them."""
    widest = max((m.piece.band.left for m in members if m.piece.band.right == 0),
                 default=UNBOUNDED)
    for sequence, piece in members:
        first, last = piece.keys
        if piece.band == Pattern(right=0) and last - first <= widest + 1:
            piece = piece._replace(band=Pattern(widest, 0))
        yield Member(sequence, piece)


def _layers(members: Iterable[Member]) -> Iterator[tuple[Pattern, list[Member]]]:
    """The pieces by band, and of one band as many layers as it takes for their keys to ascend."""
    layers: dict[Pattern, list[list[Member]]] = {}
    for member in members:
        of_band = layers.setdefault(member.piece.band, [])
        for layer in of_band:
            before = layer[-1]
            if before.sequence < member.sequence or before.piece.keys[1] <= member.piece.keys[0]:
                layer.append(member)
                break
        else:
            of_band.append([member])
    return ((band, layer) for band, of_band in layers.items() for layer in of_band)


def _ends(
    layer: list[Member], rows: int, keys: int, sequences: int
) -> tuple[list[int], list[int]]:
    """Where sequences begin and the last one ends, among all rows and among all keys."""
    ends_q, ends_kv = [0], [0]

    def upto(row: int, key: int) -> None:
        if row > ends_q[-1] or key > ends_kv[-1]:
            ends_q.append(row)
            ends_kv.append(key)

    for n, piece in layer:
        (begin, end), (first, last) = piece.rows, piece.keys
        upto(n * rows + begin, ends_kv[-1])  # rows without keys
        upto(ends_q[-1], n * keys + first)  # keys without rows
        upto(n * rows + end, n * keys + last)
    upto(sequences * rows, ends_kv[-1])
    upto(ends_q[-1], sequences * keys)
    return ends_q, ends_kv


def _longest(ends: list[int]) -> int:
    return max(after - before for before, after in itertools.pairwise(ends))
