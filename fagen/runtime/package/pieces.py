"""A mask of booleans as pieces: runs of query rows whose keys are a band.

Padding on either side, causal attention in a cache that is partly filled, sliding windows and
packed sequences all come to this: runs of query rows whose keys lie in one run each, with ends that
stand still or move by one from row to row.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .selection import UNBOUNDED, Pattern

_CUT, _EMPTY = -1, 4  # what lies between two rows, beside 2 * (last moves) + (first moves)


class Piece(NamedTuple):
    """Rows and the keys they see, both as [begin, end); no keys where the rows see nothing.

    The band is aligned to the last row and the last key.
    """

    rows: tuple[int, int]
    keys: tuple[int, int]
    band: Pattern = Pattern()

    @property
    def is_empty(self) -> bool:
        """Do the rows see nothing?"""
        return self.keys[0] == self.keys[1]

    def without_bend(self) -> tuple[Piece, ...]:
        """Where the last key stops moving, cut in two: most packages have causal kernels."""
        (begin, end), (first, last), (left, right, *_) = self
        if right <= 0:
            return (self,)
        bend = end - right
        unbounded = left == UNBOUNDED
        reach = first if unbounded else max(first, last - right - left)
        return (
            Piece((begin, bend), self.keys, Pattern(left if unbounded else left + right, 0)),
            Piece((bend, end), (reach, last), Pattern(left)),
        )


Pieces = tuple[Piece, ...]


# --- from a mask to pieces -----------------------------------------------------------------------


def pieces_of(mask: Tensor) -> tuple[Pieces, ...] | None:
    """For each sequence of a mask [batch, rows, keys]; None where the keys of a row have holes."""
    bits = mask.to(torch.uint8)
    counts = bits.sum(-1, dtype=torch.int64)
    first = bits.argmax(-1)
    last = mask.shape[-1] - 1 - bits.flip(-1).argmax(-1)
    counts, first, last = torch.stack((counts, first, last)).cpu()
    empty = counts == 0
    if not ((last - first + 1 == counts) | empty).all():
        return None
    return tuple(
        tuple(_sequence(*ends)) for ends in zip(first, last, empty, strict=True)
    )


def _sequence(first: Tensor, last: Tensor, empty: Tensor) -> Iterator[Piece]:
    begin, grown = 0, (1, 0)
    for code, end in _gaps(first, last, empty):
        # Inside a band the last key first moves and then stands; the first key the other way.
        moves = code >> 1, code & 1
        fits = code == _EMPTY or (code >= 0 and moves[0] <= grown[0] and moves[1] >= grown[1])
        if fits:
            grown = moves if code != _EMPTY else grown
        else:
            yield _piece(begin, end, first, last, empty)
            begin, grown = end, (1, 0)
    yield _piece(begin, len(first), first, last, empty)


def _gaps(first: Tensor, last: Tensor, empty: Tensor) -> Iterator[tuple[int, int]]:
    """Each change of what lies between neighbouring rows, and the row it comes before."""
    moved_first, moved_last = first.diff(), last.diff()
    codes = 2 * moved_last + moved_first
    codes[(moved_first >> 1 != 0) | (moved_last >> 1 != 0)] = _CUT
    codes[empty[1:] & empty[:-1]] = _EMPTY
    codes[empty[1:] ^ empty[:-1]] = _CUT
    kinds, counts = torch.unique_consecutive(codes, return_counts=True)
    at = 1
    for code, count in zip(kinds.tolist(), counts.tolist(), strict=True):
        # The second of a run may belong to the piece that the first one has begun.
        for i in range(count if code == _CUT else min(count, 2)):
            yield code, at + i
        at += count


def _piece(begin: int, end: int, first: Tensor, last: Tensor, empty: Tensor) -> Piece:
    if empty[begin]:
        return Piece((begin, end), (0, 0))
    ends = [int(x) for x in (first[begin], first[end - 1], last[begin], last[end - 1])]
    keys = ends[0], ends[3] + 1
    right = UNBOUNDED if ends[2] == ends[3] else end - begin - 1 - (ends[3] - ends[2])
    left = UNBOUNDED if ends[0] == ends[1] else ends[3] - ends[1]
    return Piece((begin, end), keys, Pattern(left, right))


# --- remembered ----------------------------------------------------------------------------------


class Reading(NamedTuple):
    """What was read from a mask; None for pieces where the keys of a row have holes."""

    pieces: tuple[Pieces, ...] | None
    plans: dict[Any, Any]  # how to compute them, by whoever does


_known: dict[int, tuple[Any, int, Reading]] = {}


def reading_of(mask: Tensor) -> Reading:
    """One mask serves every layer of a model; reading it waits for the device."""
    if mask.is_inference():  # nobody counts its changes
        return Reading(pieces_of(mask[:, 0]), {})
    key = id(mask)
    known = _known.get(key)
    if known is not None and known[0]() is mask and known[1] == mask._version:
        return known[2]
    found = Reading(pieces_of(mask[:, 0]), {})
    _known[key] = weakref.ref(mask, lambda _: _known.pop(key, None)), mask._version, found
    return found
