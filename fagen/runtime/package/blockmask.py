"""Masks made of blocks, for kernels of the patterns ``blocksB`` and ``blocksBQxBKV``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import order, tables
from .errors import BadArgument, BadType
from .tables import Holes, Table

_STEP, _LARGEST = 16, 4096
_AT_ONCE = 1 << 22  # elements of blocks that a mask_mod is asked for


class BlockSparseMask:
    """Which blocks of queries and keys stay, and which elements of those that stay in part.

    For all batches and heads, or for each: dimensions 0 and 1 of what it is made from are 1 or the
    number of batches and query heads. What kernels read is made once, on the device where the mask
    is, the backward's part when a backward is first wanted. Make the mask once and use it often.
    """

    def __init__(
        self, some: Tensor, full: Tensor, holes: Holes, lengths: tuple[int, int],
        block_size: tuple[int, int], causal: bool,
    ) -> None:
        """Use one of the constructors below."""
        self.some, self.full, self.holes = some, full & some, holes
        self.lengths, self.block_size, self.causal = lengths, block_size, causal

    def __repr__(self) -> str:
        return (f"BlockSparseMask({self.name}, {self.lengths[0]} x {self.lengths[1]}, "
                f"{self.density:.1%} of the blocks)")

    # --- made from -------------------------------------------------------------------------------

    @classmethod
    def from_blocks(
        cls, blocks: Any, seqlen_q: int, seqlen_kv: int, *,
        block_size: int | tuple[int, int] = 128, causal: bool = False,
    ) -> BlockSparseMask:
        """Booleans [rows of blocks, columns of blocks], or with batch and head before them."""
        sizes, lengths = _sizes(block_size), _lengths(seqlen_q, seqlen_kv)
        some = _matrix(blocks, "blocks")
        rows, columns = _counts(lengths, sizes)
        if tuple(some.shape[2:]) != (rows, columns):
            raise BadArgument(
                f"blocks are {some.shape[2]} x {some.shape[3]}; {lengths[0]} x {lengths[1]} in "
                f"blocks of {sizes[0]} x {sizes[1]} are {rows} x {columns}"
            )
        return cls(some, some, tables.no_holes(some.device), lengths, sizes, bool(causal))

    @classmethod
    def from_elements(
        cls, mask: Any, *, block_size: int | tuple[int, int] = 128, causal: bool = False
    ) -> BlockSparseMask:
        """Booleans [queries, keys], or with batch and head before them."""
        sizes, kept = _sizes(block_size), _matrix(mask, "mask")
        lengths = _lengths(*kept.shape[2:])
        rows, columns = _counts(lengths, sizes)
        pad = (0, columns * sizes[1] - lengths[1], 0, rows * sizes[0] - lengths[0])
        split = torch.nn.functional.pad(kept, pad).reshape(
            *kept.shape[:2], rows, sizes[0], columns, sizes[1]).transpose(3, 4)
        count = split.sum((-2, -1))
        some, full = count > 0, count == _areas(lengths, sizes, kept.device)
        holes = tables.holes_of(split[some & ~full])
        return cls(some, full, holes, lengths, sizes, bool(causal))

    @classmethod
    def from_lists(
        cls, kv_num_blocks: Any, kv_indices: Any, seqlen_q: int, seqlen_kv: int, *,
        block_size: int | tuple[int, int] = 128, causal: bool = False,
    ) -> BlockSparseMask:
        """Counts [..., rows of blocks] and ascending columns [..., rows of blocks, columns]."""
        sizes, lengths = _sizes(block_size), _lengths(seqlen_q, seqlen_kv)
        blocks = _listed(kv_num_blocks, kv_indices, *_counts(lengths, sizes))
        return cls.from_blocks(
            blocks, *lengths, block_size=sizes, causal=causal)

    @classmethod
    def from_block_mask(cls, mask: Any) -> BlockSparseMask:
        """A torch BlockMask: its full blocks, and its mask_mod on every element of the others."""
        try:
            given = mask.kv_num_blocks, mask.kv_indices
            full_given = mask.full_kv_num_blocks, mask.full_kv_indices
            sizes, lengths = _sizes(tuple(mask.BLOCK_SIZE)), _lengths(*mask.seq_lengths)
        except AttributeError as missing:
            raise BadType(f"mask is {type(mask).__name__}, a torch BlockMask is expected: "
                          f"{missing}") from None
        counts = _counts(lengths, sizes)
        some = _listed(*given, *counts)
        full = torch.zeros_like(some)
        if full_given[0] is not None:
            full = _listed(*full_given, *counts)
        asked = some & ~full
        elements = _elements(asked, mask.mask_mod, lengths, sizes)
        count = elements.sum((-2, -1))
        where = asked.nonzero(as_tuple=True)
        whole = count == _areas(lengths, sizes, some.device)[where[2], where[3]]
        asked[where], full[where] = (count > 0) & ~whole, whole
        return cls(asked | full, full, tables.holes_of(elements[(count > 0) & ~whole]), lengths,
                   sizes, False)

    # --- what it is ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Of the pattern whose kernels serve it."""
        rows, columns = self.block_size
        size = f"{rows}" + f"x{columns}" * (rows != columns)
        return f"blocks{size}" + "-causal" * self.causal

    @property
    def device(self) -> torch.device:
        return self.some.device

    @property
    def sharing(self) -> tuple[int, int]:
        """For how many batches and heads."""
        return self.some.shape[0], self.some.shape[1]

    @functools.cached_property
    def density(self) -> float:
        return float(self.some.float().mean())

    def dense(self) -> Tensor:
        """Booleans [batch or 1, heads or 1, queries, keys]."""
        rows, columns = self.block_size
        blocks = self.full[..., None, None].expand(*self.full.shape, rows, columns).clone()
        if len(self.holes.ids):
            bits = tables.unpacked_bits(self.holes.bitmaps.view(torch.uint8))
            blocks[self.some & ~self.full] = bits[self.holes.ids.long()]
        kept = blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)
        kept = kept[:, :, : self.lengths[0], : self.lengths[1]]
        if self.causal:
            kept = kept.tril(self.lengths[1] - self.lengths[0])
        return kept

    def arrays(self, backward: bool) -> list[Tensor]:
        """What kernels read: struct fagen_mask's pointers in their order."""
        by_key = self._by_key if backward else self._by_query
        orders = [self._order_of_queries, *([self._order_of_keys] if backward else [])]
        return [*self._by_query, *by_key, orders[0], orders[-1]]

    @functools.cached_property
    def _by_query(self) -> Table:
        return tables.table(self.some, self.full, self.holes)

    @functools.cached_property
    def _by_key(self) -> Table:
        return tables.transposed(self.some, self.full, self.holes)

    @functools.cached_property
    def _order_of_queries(self) -> Tensor:
        return order.of_queries(self.some, self.lengths, self.block_size, self.causal)

    @functools.cached_property
    def _order_of_keys(self) -> Tensor:
        return order.of_keys(self.some, self.lengths, self.block_size, self.causal)


# --- checks --------------------------------------------------------------------------------------


def _sizes(block_size: Any) -> tuple[int, int]:
    sizes = (block_size, block_size) if isinstance(block_size, int) else block_size
    if not (isinstance(sizes, (tuple, list)) and len(sizes) == 2
            and all(isinstance(n, int) and not isinstance(n, bool) for n in sizes)):
        raise BadType(f"block_size is {block_size!r}; a number or two are expected")
    for n in sizes:
        if n % _STEP or not _STEP <= n <= _LARGEST:
            raise BadArgument(
                f"block_size is {block_size!r}; multiples of {_STEP} up to {_LARGEST} are served"
            )
    return sizes[0], sizes[1]


def _lengths(seqlen_q: Any, seqlen_kv: Any) -> tuple[int, int]:
    for name, n in (("seqlen_q", seqlen_q), ("seqlen_kv", seqlen_kv)):
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n < 2**31:
            raise BadArgument(f"{name} is {n!r}; a positive 32-bit integer is expected")
    return seqlen_q, seqlen_kv


def _counts(lengths: tuple[int, int], sizes: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (-(-n // size) for n, size in zip(lengths, sizes, strict=True))
    return rows, columns


def _matrix(given: Any, name: str) -> Tensor:
    """As booleans in four dimensions."""
    found = torch.as_tensor(given)
    if found.dtype is not torch.bool:
        raise BadType(f"{name} is of {found.dtype}; booleans are expected")
    if found.dim() not in (2, 3, 4) or not found.numel():
        raise BadArgument(f"{name} has shape {list(found.shape)}; [batch, heads, rows, columns] or "
                          "its end is expected, with no dimension of 0")
    return found[(None,) * (4 - found.dim())]


def _listed(counts: Any, indices: Any, rows: int, columns: int) -> Tensor:
    """Lists of columns as booleans [batch, heads, rows, columns]."""
    n, at = torch.as_tensor(counts), torch.as_tensor(indices)
    for name, x in (("kv_num_blocks", n), ("kv_indices", at)):
        if x.dtype not in (torch.int32, torch.int64):
            raise BadType(f"{name} is of {x.dtype}; int32 is expected")
    if not 1 <= n.dim() <= 3 or at.shape[:-1] != n.shape or n.shape[-1] != rows:
        raise BadArgument(f"kv_num_blocks has shape {list(n.shape)} and kv_indices "
                          f"{list(at.shape)}; [..., {rows}] and [..., {rows}, n] are expected")
    n, at = (x[(None,) * (3 - n.dim())].long() for x in (n, at))
    used = torch.arange(at.shape[-1], device=at.device) < n[..., None]
    worst = int(n.max()), int(n.min())
    if worst[0] > min(at.shape[-1], columns) or worst[1] < 0:
        raise BadArgument(f"kv_num_blocks goes from {worst[1]} to {worst[0]}; there are {columns} "
                          f"columns of blocks and room for {at.shape[-1]} in a list")
    outside = used & ((at < 0) | (at >= columns))
    if bool(outside.any()):
        raise BadArgument(f"kv_indices has {int(at[outside][0])}; there are {columns} columns of "
                          "blocks")
    if bool((used[..., 1:] & (at[..., 1:] <= at[..., :-1])).any()):
        raise BadArgument("kv_indices does not ascend in every row: an index is repeated or late")
    room = at.new_zeros((*n.shape, columns + 1), dtype=torch.bool)
    return room.scatter_(-1, at.where(used, columns), True)[..., :columns]


def _areas(lengths: tuple[int, int], sizes: tuple[int, int], device: torch.device) -> Tensor:
    """Elements of each block, [rows, columns]; fewer at the ends."""
    rows, columns = (
        torch.tensor([min(size, n - at) for at in range(0, n, size)], device=device)
        for n, size in zip(lengths, sizes, strict=True)
    )
    return rows[:, None] * columns


def _elements(
    blocks: Tensor, mask_mod: Callable[..., Any], lengths: tuple[int, int], sizes: tuple[int, int]
) -> Tensor:
    """mask_mod on every element of some blocks, [blocks, rows, columns]; none past the ends."""
    asked: Any = torch.vmap(mask_mod)
    offsets = [torch.arange(n, device=blocks.device) for n in sizes]
    found = [torch.zeros((0, *sizes), dtype=torch.bool, device=blocks.device)]
    where = blocks.nonzero()
    step = max(1, _AT_ONCE // (sizes[0] * sizes[1]))
    for start in range(0, len(where), step):
        some = where[start : start + step]
        batch, head, row, column = some.T[:, :, None, None]
        at = (batch, head, row * sizes[0] + offsets[0][:, None], column * sizes[1] + offsets[1])
        inside = (at[2] < lengths[0]) & (at[3] < lengths[1])
        most = (None, None, lengths[0] - 1, lengths[1] - 1)
        flat = [(x if n is None else x.clamp(max=n)).expand(inside.shape).reshape(-1)
                for x, n in zip(at, most, strict=True)]
        found.append(asked(*flat).bool().view(inside.shape) & inside)
    return torch.cat(found)
