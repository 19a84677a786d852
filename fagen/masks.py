"""The masks that kernels of data patterns are verified and timed with, and what they keep.

Timed: full blocks, or documents, the same for all heads, as dense as the workload says. Verified:
besides, blocks with holes, rows and columns that keep nothing, and (by the case's layout) another
mask for each head and each entry of the batch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fagen.cases import Case
from fagen.library import Params
from fagen.model import Problem
from fagen.patterns import BlockLists, DataPattern, Documents
from fagen.pieces import Group
from fagen.runtime.package import order, tables
from fagen.runtime.package.runs import keys_to_queries

BLOCKS = ("cells", "holes", "bitmaps")
ARRAYS = tuple(f"{way}.{name}" for way in ("by_query", "by_key") for name in BLOCKS)
RUNS = ("queries", "keys")  # of blocks: the order of their tiles
ORDERS = ("by_query.holes", "by_key.holes")  # of runs, which have no holes
_KINDS_OF_HOLES = 3
_HOLES = 0.3  # of the blocks


@dataclass(frozen=True)
class DrawnBlocks:
    """Blocks of one case, [batches, heads, rows, columns], and the elements of those with holes."""

    pattern: BlockLists
    lengths: tuple[int, int]
    some: Tensor
    full: Tensor
    kind: Tensor  # of the holes of each block
    elements: Tensor  # [kinds, rows of a block, columns of a block]

    @property
    def sharing(self) -> tuple[int, int]:
        return self.some.shape[0], self.some.shape[1]

    def arrays(self, device: str) -> dict[str, Tensor]:
        some, full = self.some.to(device), self.full.to(device)
        holes = tables.holes_of(self.elements[self.kind[self.some & ~self.full]].to(device))
        made = tables.table(some, full, holes), tables.transposed(some, full, holes)
        about = some, self.lengths, (self.pattern.block_q, self.pattern.block_kv)
        orders = (of(*about, self.pattern.causal) for of in (order.of_queries, order.of_keys))
        return dict(zip(ARRAYS + RUNS, (*made[0], *made[1], *orders), strict=True))

    def keeps(self, group: Group, heads: int, rows: slice, device: str) -> Tensor:
        """[heads or 1, rows, keys] of one key/value head."""
        q = torch.arange(self.lengths[0])[rows, None]
        k = torch.arange(self.lengths[1])
        block = q // self.pattern.block_q, k // self.pattern.block_kv
        inside = q % self.pattern.block_q, k % self.pattern.block_kv
        found = []
        for which in _of_group(self.sharing, group, heads):
            some, full, kind = (x[which][block] for x in (self.some, self.full, self.kind))
            found.append(some & (full | self.elements[(kind, *inside)]))
        kept = torch.stack(found)
        if self.pattern.causal:
            kept &= k <= q + self.pattern.shift(*self.lengths)
        return kept.to(device)


@dataclass(frozen=True)
class DrawnRuns:
    """The keys of each query, [batches, queries, 2]."""

    lengths: tuple[int, int]
    runs: Tensor

    @property
    def sharing(self) -> tuple[int, int]:
        return self.runs.shape[0], 1

    def arrays(self, device: str) -> dict[str, Tensor]:
        queries = self.runs.to(device)
        runs = queries.int(), keys_to_queries(queries, self.lengths[1])
        orders = map(order.of_runs, runs)
        return dict(zip(RUNS + ORDERS, (*runs, *orders), strict=True))

    def keeps(self, group: Group, heads: int, rows: slice, device: str) -> Tensor:
        begin, end = self.runs[group[0] % len(self.runs), rows].T[:, :, None]
        k = torch.arange(self.lengths[1])
        kept: Tensor = ((k >= begin) & (k < end))[None]
        return kept.to(device)


Drawn = DrawnBlocks | DrawnRuns


@functools.lru_cache(maxsize=4)
def drawn(problem: Problem, case: Case) -> Drawn | None:
    """None where the pattern says it all."""
    pattern, w = problem.pattern, case.workload
    if not isinstance(pattern, DataPattern):
        return None
    pattern = pattern.drawn_with(w.density)
    batches = w.batch if case.layout == "bshd" and not case.sampled else 1
    heads = w.heads if case.layout != "bhsd" and not case.sampled else 1
    lengths = w.seqlen_q, w.seqlen_kv
    seeds = range(0) if case.sampled else range(1, batches * heads + 1)
    if isinstance(pattern, Documents):
        runs = [torch.from_numpy(pattern.runs(*lengths, seed)) for seed in seeds[::heads] or (0,)]
        return DrawnRuns(lengths, torch.stack(runs))
    assert isinstance(pattern, BlockLists)
    blocks = [torch.from_numpy(pattern.drawn(*lengths, seed)) for seed in seeds or (0,)]
    some = torch.stack(blocks).unflatten(0, (batches, heads))  # type: ignore[no-untyped-call]
    return _with_holes(pattern, lengths, some, 0.0 if case.sampled else _HOLES)


def _with_holes(
    pattern: BlockLists, lengths: tuple[int, int], some: Tensor, share: float
) -> DrawnBlocks:
    made = torch.Generator().manual_seed(some.numel())
    elements = torch.rand(_KINDS_OF_HOLES, pattern.block_q, pattern.block_kv, generator=made) < 0.5
    kind = torch.randint(_KINDS_OF_HOLES, some.shape, generator=made)
    full = some & (torch.rand(some.shape, generator=made) >= share)
    return DrawnBlocks(pattern, lengths, some, full, kind, elements)


def _of_group(sharing: tuple[int, int], group: Group, heads: int) -> list[tuple[int, int]]:
    """Batch and head of the masks of one key/value head's queries."""
    batch, kv_head = group
    first = kv_head * heads
    every = range(first, first + heads) if sharing[1] > 1 else range(1)
    return [(batch % sharing[0], head) for head in every]


def point(params: Params, arrays: dict[str, Any], sharing: tuple[int, int]) -> None:
    """Into ``struct fagen_mask``."""
    params.mask.batches, params.mask.heads = sharing
    for name, address in arrays.items():
        *way, field = name.split(".")
        setattr(getattr(params.mask, way[0]) if way else params.mask, field, address)
