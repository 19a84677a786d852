"""Blocks that are kept -> the arrays that kernels read: struct fagen_blocks in include/params.h.

A table has a row per block of queries (or keys) and, per 32 blocks of keys (or queries), a cell of
four 32-bit numbers: which blocks keep anything, which everything, how many blocks with holes come
before, and which cell of the row is the next that is not empty. Everything is made with torch on
the device where the mask is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CELL = 32  # blocks
_COUNTS = torch.tensor([bin(n).count("1") for n in range(256)], dtype=torch.uint8)


class Table(NamedTuple):
    """One direction of a mask."""

    cells: Tensor  # int32 [batch, heads, rows of blocks, cells, 4]
    holes: Tensor  # int32: for each block with holes, in the order of the cells, its bitmap
    bitmaps: Tensor  # int16 [bitmaps, rows of a block, columns / 16]

    @property
    def pointers(self) -> tuple[int, int, int]:
        return self.cells.data_ptr(), self.holes.data_ptr(), self.bitmaps.data_ptr()


class Holes(NamedTuple):
    """The elements of the blocks that keep some but not all."""

    ids: Tensor  # int32, in the order of the blocks
    bitmaps: Tensor  # int16 [bitmaps, rows, columns / 16]


def no_holes(device: torch.device) -> Holes:
    return Holes(*(torch.empty(0, dtype=d, device=device) for d in (torch.int32, torch.int16)))


def holes_of(elements: Tensor) -> Holes:
    """Of blocks with holes, bool [blocks, rows, columns]; equal ones are kept once."""
    if not len(elements):
        return no_holes(elements.device)
    packed = packed_bits(elements).flatten(1)
    first, ids = _distinct(packed.view(torch.int64))
    return Holes(ids.int(), packed[first].view(torch.int16).view(-1, elements.shape[1],
                                                               elements.shape[2] // 16))


def table(some: Tensor, full: Tensor, holes: Holes) -> Table:
    """``some`` and ``full``: bool [batch, heads, rows, columns] of blocks."""
    cells = -(-some.shape[3] // CELL)
    pad = (0, cells * CELL - some.shape[3])
    some_bits, full_bits = (
        packed_bits(torch.nn.functional.pad(x, pad)) for x in (some, full & some)
    )
    counts = _COUNTS.to(some.device)[(some_bits ^ full_bits).long()]
    in_cell = counts.view(-1, 4).sum(-1, dtype=torch.int64)
    before = (in_cell.cumsum(0) - in_cell).view(*some.shape[:3], cells)
    words = [bits.view(torch.int32) for bits in (some_bits, full_bits)]
    at = torch.arange(cells, device=some.device).expand_as(words[0])
    filled = at.masked_fill(words[0] == 0, cells)
    after = filled.flip(-1).cummin(-1).values.flip(-1)
    after = torch.nn.functional.pad(after[..., 1:], (0, 1), value=cells)
    found = torch.stack((*words, before.int(), after.int()), -1)
    return Table(found.contiguous(), *holes)


def transposed(some: Tensor, full: Tensor, holes: Holes) -> Table:
    """The same mask by blocks of keys."""
    turned = some.mT, full.mT
    if not len(holes.ids):
        return table(*turned, holes)
    where = (some & ~full).nonzero()  # in the order of the blocks
    order = torch.full_like(some, 0, dtype=torch.int32)
    order[tuple(where.T)] = holes.ids
    ids = order.mT[turned[0] & ~turned[1]]
    bits = unpacked_bits(holes.bitmaps.view(torch.uint8))
    bitmaps = packed_bits(bits.mT).view(torch.int16)
    return table(*turned, Holes(ids, bitmaps))


def packed_bits(bits: Tensor) -> Tensor:
    """bool [..., 8 n] -> uint8 [..., n], the first in the lowest bit."""
    powers = torch.tensor([1 << n for n in range(8)], dtype=torch.uint8, device=bits.device)
    bytes_ = bits.contiguous().view(torch.uint8).view(*bits.shape[:-1], -1, 8)
    return (bytes_ * powers).sum(-1, dtype=torch.uint8)


def unpacked_bits(packed: Tensor) -> Tensor:
    """The inverse."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).bool().flatten(-2)


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows of int64 come first of their kind, and for each row which of those it equals."""
    made = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (rows.shape[1],), generator=made) | 1
    sums, ids = torch.unique((rows * factors.to(rows.device)).sum(-1), return_inverse=True)
    first = _first_of(ids, len(sums))
    if not torch.equal(rows[first][ids], rows):  # two kinds with one sum
        kinds, ids = torch.unique(rows, dim=0, return_inverse=True)
        first = _first_of(ids, len(kinds))
    return first, ids


def _first_of(ids: Tensor, count: int) -> Tensor:
    at = torch.arange(len(ids), device=ids.device)
    return torch.full((count,), len(ids), device=ids.device).scatter_reduce(0, ids, at, "amin")
