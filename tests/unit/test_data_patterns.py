"""Masks that are data of the call: what the headers read against the boolean matrix itself."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fagen.errors import UsageError
from fagen.library import Blocks, Params
from fagen.patterns import BlockLists, Documents, parse_pattern
from fagen.runtime.package import tables
from tests.unit.harness import compiled
from tests.unit.test_sparse_patterns import FULL, PARTIAL, SKIP, first, some_tiles

SLUGS = ("blocks16", "blocks16-causal", "blocks48x16", "blocks16x80-causal", "blocks32x64-causal",
         "documents")
EVERY = tuple(map(parse_pattern, SLUGS))

# What a pattern made from the parameters of a call says of elements and tiles.
ASK = """
template <class P> void ask(const fagen_params *params, int batch, int first_head, int after,
                            int count, const int (*tiles)[4], int (*out)[4], unsigned char *kept) {
  static_assert(TilePattern<P> && DataPattern<P> && IntervalPattern<P> == P::interval);
  const P made = pattern_of<P>(*params, batch, first_head);
  const P p = head_after(made, after);
  for (int q = 0; q < params->seqlen_q; ++q)
    for (int k = 0; k < params->seqlen_kv; ++k) *kept++ = p.keep(q, k);
  for (int i = 0; i < count; ++i) {
    const auto [q0, q1, k0, k1] = tiles[i];
    out[i][0] = p.next_key(q0, q1, k0);
    out[i][1] = p.next_query(k0, k1, q0);
    out[i][2] = static_cast<int>(p.tile(q0, q1, k0, k1));
    if constexpr (BitPattern<P>)
      out[i][3] = p.key_bits(q0, k0 / 16 * 16) << 16 | p.query_bits(k0, q0 / 16 * 16);
  }
}
"""
HARNESS = """
#include "patterns/lists.h"
#include "patterns/documents.h"
""" + ASK + """
extern "C" void ask_any(int pattern, const fagen_params *p, int batch, int head, int after,
                        int count, const int (*tiles)[4], int (*out)[4], unsigned char *kept) {
  switch (pattern) {
    %s
  }
}
"""


@functools.cache
def library() -> ctypes.CDLL:
    cases = "".join(
        f"case {n}: return ask<{p.cpp}>(p, batch, head, after, count, tiles, out, kept);\n"
        for n, p in enumerate(EVERY)
    )
    return compiled(HARNESS % cases)


@dataclass(frozen=True)
class Asked:
    """A mask as the kernels get it; ``held`` are the tensors behind the pointers."""

    pattern: Any
    params: Params
    held: Any

    def tell(self, batch: int, head: int, tiles: Any, after: int = 0) -> tuple[Any, Any]:
        """The answers for each tile, and the matrix."""
        p = self.params
        out = np.zeros((len(tiles), 4), np.int32)
        kept = np.zeros((p.seqlen_q, p.seqlen_kv), np.uint8)
        arrays = [a.ctypes.data_as(ctypes.c_void_p) for a in (tiles, out, kept)]
        library().ask_any(EVERY.index(self.pattern), ctypes.byref(p), batch, head, after,
                          len(tiles), *arrays)
        return out, kept.astype(bool)


def asked_blocks(pattern: BlockLists, some: Tensor, full: Tensor, holes: tables.Holes,
                 sq: int, skv: int) -> Asked:
    params = Params(seqlen_q=sq, seqlen_kv=skv)
    params.mask.batches, params.mask.heads = some.shape[:2]
    by_query, by_key = tables.table(some, full, holes), tables.transposed(some, full, holes)
    params.mask.by_query, params.mask.by_key = (Blocks(*t.pointers) for t in (by_query, by_key))
    return Asked(pattern, params, (by_query, by_key))


@dataclass(frozen=True)
class Drawn:
    """Random blocks, some with holes, per batch and head; and the matrices they stand for."""

    asked: Asked
    masks: Any  # [batch, heads, sq, skv]


def draw(pattern: BlockLists, sq: int, skv: int, seed: int, holes: bool) -> Drawn:
    rng = np.random.default_rng(seed)
    bq, bkv = pattern.block_q, pattern.block_kv
    shape = (2, 3, -(-sq // bq), -(-skv // bkv))
    some = rng.random(shape) < rng.choice([0.02, 0.3, 0.8])
    full = some & ((rng.random(shape) < 0.5) | (not holes))
    partial = some & ~full
    kinds = rng.random((4, bq, bkv)) < 0.4  # few, so that several blocks share one
    elements = kinds[rng.integers(4, size=int(partial.sum()))]
    blocks = np.zeros((*shape, bq, bkv), bool)
    blocks[full], blocks[partial] = True, elements
    masks = blocks.swapaxes(3, 4).reshape(2, 3, shape[2] * bq, -1)[:, :, :sq, :skv]
    if pattern.causal:
        masks = masks & (np.arange(skv) <= np.arange(sq)[:, None] + skv - sq)
    made = tables.holes_of(torch.from_numpy(elements))
    assert len(made.bitmaps) <= 4
    return Drawn(
        asked_blocks(pattern, torch.from_numpy(some), torch.from_numpy(full), made, sq, skv), masks
    )


def agree(mask: Any, tiles: Any, told: Any, exact: bool) -> None:
    for (q0, q1, k0, k1), (key, query, said, _) in zip(tiles, told, strict=True):
        want_key = first(mask[q0:q1].any(0), k0)
        want_query = first(mask[:, k0:k1].any(1), q0)
        tile = mask[q0:q1, k0:k1]
        if exact:
            assert (key, query) == (want_key, want_query)
            assert (said == SKIP) == (not tile.any())
        else:
            assert k0 <= key <= want_key
            assert q0 <= query <= want_query
            assert said != SKIP or not tile.any()
        assert said != FULL or tile.all()


lengths = st.sampled_from([1, 15, 16, 100, 530]) | st.integers(1, 150)
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("pattern", EVERY[:-1], ids=str)
@settings(max_examples=8)
@given(sq=lengths, skv=lengths, seed=seeds, holes=st.booleans())
def test_lists_keep_what_the_mask_does_and_walk_to_it(
    pattern: BlockLists, sq: int, skv: int, seed: int, holes: bool
) -> None:
    drawn = draw(pattern, sq, skv, seed, holes)
    tiles = some_tiles(seed, sq, skv)
    for batch, head, after in ((0, 0, 0), (1, 0, 2), (1, 1, 0)):
        mask = drawn.masks[batch, head + after]
        told, kept = drawn.asked.tell(batch, head, tiles, after)
        assert (kept == mask).all()
        agree(mask, tiles, told, exact=not holes)
        for (q, _, k, _), bits in zip(tiles, told[:, 3].astype(np.uint32), strict=True):
            keys, rows = mask[q, k // 16 * 16 :][:16], mask[q // 16 * 16 :, k][:16]
            assert int(bits) == _number(keys) << 16 | _number(rows)


def _number(bits: Any) -> int:
    return sum(1 << n for n, bit in enumerate(bits) if bit)


def test_a_mask_for_all_batches_and_heads_is_kept_once() -> None:
    pattern = EVERY[0]
    some = torch.rand(1, 1, 5, 7) < 0.5
    asked = asked_blocks(pattern, some, some, tables.no_holes(some.device), 80, 112)
    tiles = some_tiles(1, 80, 112)
    answers = [asked.tell(b, h, tiles, after) for b, h, after in ((0, 0, 0), (3, 5, 0), (2, 1, 4))]
    want = np.kron(some[0, 0].numpy(), np.ones((16, 16), bool))
    for told, kept in answers:
        assert (kept == want).all()
        assert (told == answers[0][0]).all()


def test_long_rows_are_two_cells_away() -> None:
    """One block far out: found from anywhere, past cells that are empty."""
    pattern, sq, skv = EVERY[0], 16, 16 * 3000
    some = torch.zeros(1, 1, 1, 3000, dtype=torch.bool)
    some[..., [5, 2000, 2999]] = True
    asked = asked_blocks(pattern, some, some, tables.no_holes(some.device), sq, skv)
    starts = np.array([0, 96, 96 + 512, 2000 * 16 + 3, 2001 * 16, 2999 * 16 + 15], np.int32)
    tiles = np.stack([starts * 0, starts * 0 + 16, starts, starts + 1], 1)
    told, _ = asked.tell(0, 0, np.ascontiguousarray(tiles, np.int32))
    assert told[:, 0].tolist() == [80, 32000, 32000, 32003, 2999 * 16, 2999 * 16 + 15]
    assert PARTIAL not in told[:, 2].tolist()


def test_different_bitmaps_with_equal_sums_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randint", lambda low, high, shape, **_: torch.zeros(
        shape, dtype=torch.int64))  # then all sums weigh every word the same
    elements = torch.zeros(3, 16, 16, dtype=torch.bool)
    elements[0, 0, 0] = elements[1, 4, 0] = elements[2, 0, 0] = True  # one bit of word 0 or 1
    made = tables.holes_of(elements)
    assert made.ids[0] == made.ids[2] != made.ids[1]
    assert len(made.bitmaps) == 2


# --- documents -----------------------------------------------------------------------------------


def column_runs(runs: Any, skv: int) -> Any:
    k = np.arange(skv)
    return np.stack([np.searchsorted(runs[:, 1], k, "right"),
                     np.searchsorted(runs[:, 0], k, "right")], 1)


@settings(max_examples=30)
@given(sq=lengths, skv=lengths, seed=seeds, kind=st.sampled_from(["documents", "any"]),
       causal=st.booleans())
def test_documents_keep_their_runs(sq: int, skv: int, seed: int, kind: str, causal: bool) -> None:
    rng = np.random.default_rng(seed)
    made = []
    for batch in range(2):
        if kind == "documents":
            made.append(Documents(causal).runs(sq, skv, seed % 1000 + batch))
        else:  # anything that rises
            ends = np.sort(rng.integers(0, skv + 1, (2, sq)), 1)
            made.append(np.sort(ends, 0).T)
    by_query = np.ascontiguousarray(np.stack(made), np.int32)
    by_key = np.ascontiguousarray(np.stack([column_runs(r, skv) for r in made]), np.int32)
    params = Params(seqlen_q=sq, seqlen_kv=skv)
    params.mask.queries, params.mask.keys = by_query.ctypes.data, by_key.ctypes.data
    params.mask.batches, params.mask.heads = 2, 1
    tiles = some_tiles(seed, sq, skv)
    for batch, runs in enumerate(made):
        mask = (np.arange(skv) >= runs[:, :1]) & (np.arange(skv) < runs[:, 1:])
        told, kept = Asked(EVERY[-1], params, None).tell(batch, 1, tiles)
        assert (kept == mask).all()
        agree(mask, tiles, told, exact=False)


# --- what fagen draws, and names -----------------------------------------------------------------


@settings(max_examples=30)
@given(slug=st.sampled_from([*SLUGS, "documents-causal", "blocks128x48-causal"]),
       sq=st.integers(1, 300), skv=st.integers(1, 300), density=st.integers(1, 100))
def test_a_drawn_mask_is_counted_right(slug: str, sq: int, skv: int, density: int) -> None:
    pattern = parse_pattern(slug).drawn_with(density)
    mask = pattern.mask(sq, skv)
    assert pattern.count_kept(sq, skv) == mask.sum()
    assert (pattern.kept(np.arange(sq)[sq // 2 :], sq, skv) == mask[sq // 2 :]).all()
    if slug.endswith("-causal") and (sq == skv or slug.startswith("blocks")):
        assert not (mask & (np.arange(skv) > np.arange(sq)[:, None] + skv - sq)).any()


def densities(slug: str) -> Iterator[float]:
    for density in (5, 25, 50, 100):
        yield parse_pattern(slug).drawn_with(density).share(4096, 4096)


def test_densities_are_about_what_was_asked_for() -> None:
    for slug in ("blocks32", "documents"):
        for found, asked in zip(densities(slug), (0.05, 0.25, 0.5, 1.0), strict=True):
            assert 0.9 * asked < found < 2.5 * asked <= 2.5 * found
    assert parse_pattern("blocks32").drawn_with(100).share(4096, 4096) == 1


@pytest.mark.parametrize("slug", [*SLUGS, "documents-causal", "blocks4096"])
def test_slugs_round_trip(slug: str) -> None:
    assert str(parse_pattern(slug)) == slug


def test_square_blocks_have_one_name_and_odd_ones_none() -> None:
    assert str(parse_pattern("blocks64x64-causal")) == "blocks64-causal"
    for slug in ("blocks24", "blocks16x17", "blocks0", "blocks8192"):
        with pytest.raises(UsageError, match=r"blocks of \d+ are not served"):
            parse_pattern(slug)
