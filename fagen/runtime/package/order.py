"""Which tiles of a mask a kernel starts first: those that visit most; short ones fill the end.

A kernel's tiles may be of any of SIZES, so an order of each is made with the mask. Kernels read
them as ``device/longest_first.h`` says: flat, for each size, and each batch and head that has a
mask of its own, the numbers of the tiles.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SIZES = (64, 128, 192, 256)
Lengths = tuple[int, int]
_Work = Callable[[Tensor, Tensor], Tensor]  # of tiles, by their first and last rows


def of_queries(some: Tensor, lengths: Lengths, sizes: Lengths, causal: bool) -> Tensor:
    """``some``: bool [batch, heads, rows, columns] of blocks of ``sizes``, for all elements."""
    last_seen, keys = _corners(some, lengths, sizes)

    def work(first: Tensor, last: Tensor) -> Tensor:
        named = _named(some, first, last, sizes[0])
        if causal:
            named &= keys <= (last + lengths[1] - lengths[0])[:, None]
        return named.sum(-1)

    if causal:
        some = some & (keys <= last_seen[:, None])
    return _longest_first(lengths[0], some.device, work)


def of_keys(some: Tensor, lengths: Lengths, sizes: Lengths, causal: bool) -> Tensor:
    """The transpose."""
    last_seen, keys = _corners(some, lengths, sizes)

    def work(first: Tensor, last: Tensor) -> Tensor:
        named = _named(some.mT, first, last, sizes[1])
        if causal:
            named &= last_seen >= first[:, None]
        return named.sum(-1)

    if causal:
        some = some & (keys <= last_seen[:, None])
    return _longest_first(lengths[1], some.device, work)


def _corners(some: Tensor, lengths: Lengths, sizes: Lengths) -> tuple[Tensor, Tensor]:
    """A row of blocks' last key under a causal mask, and a column's first one, of each."""
    rows, columns = (torch.arange(n, device=some.device) for n in some.shape[2:])
    ends = (rows * sizes[0] + sizes[0]).clamp(max=lengths[0])
    return ends - 1 + lengths[1] - lengths[0], columns * sizes[1]


def of_runs(runs: Tensor) -> Tensor:
    """``runs``: [batch, rows, 2], both ends rising."""

    def work(first: Tensor, last: Tensor) -> Tensor:
        return (runs[:, last, 1] - runs[:, first, 0]).clamp(min=0)

    return _longest_first(runs.shape[1], runs.device, work)


def _named(some: Tensor, first: Tensor, last: Tensor, size: int) -> Tensor:
    """What the rows of blocks that hold the elements first .. last name."""
    first, last = first // size, last // size
    named = some[:, :, first]
    for step in range(1, (SIZES[-1] - 2) // size + 2):
        named = named | some[:, :, torch.minimum(first + step, last)]
    return named


def _longest_first(rows: int, device: torch.device, work: _Work) -> Tensor:
    orders = []
    for size in SIZES:
        first = torch.arange(0, rows, size, device=device)
        works = work(first, (first + size).clamp(max=rows) - 1)
        orders.append(works.sort(dim=-1, descending=True, stable=True).indices.flatten())
    return torch.cat(orders).int()
