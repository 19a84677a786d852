"""Bands against their numpy masks, through g++, in both directions."""

from __future__ import annotations

import ctypes
import functools
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fagen.errors import UsageError
from fagen.patterns import PATTERNS, UNBOUNDED, Band, parse_pattern
from tests.unit.harness import compiled

SLUGS = (
    "dense", "causal", "causal-topleft", "window0", "window1", "window7", "window64",
    "window0x3", "window5x2", "window33x70", "window500x500",
)
# Bands that no slug names yet, but that the header must get right all the same.
BANDS = (
    Band(left=4), Band(right=6), Band(left=4, top_left=True),
    Band(left=9, right=3, top_left=True), Band(top_left=True),
)
EVERY = (*map(parse_pattern, SLUGS), *BANDS)

HARNESS = """
#include "patterns/band.h"
template <class P> void ask(int what, Lengths n, const int *in, int *out) {
  static_assert(IntervalPattern<P>, "the contract");
  const P p(n);
  Range r{0, 0};
  switch (what) {
    case 0: out[0] = p.keep(in[0], in[1]); return;
    case 1: r = p.row(in[0]); break;
    case 2: r = p.column(in[0]); break;
    case 3: r = p.keys(in[0], in[1]); break;
    case 4: r = p.full_keys(in[0], in[1]); break;
    case 5: r = p.queries(in[0], in[1]); break;
    case 6: r = p.full_queries(in[0], in[1]); break;
    case 7: out[0] = static_cast<int>(p.tile(in[0], in[1], in[2], in[3])); return;
  }
  out[0] = r.begin; out[1] = r.end;
}
extern "C" void ask(int pattern, int what, int sq, int skv, const int *in, int *out) {
  switch (pattern) {
    %s
  }
}
"""
KEEP, ROW, COLUMN, KEYS, FULL_KEYS, QUERIES, FULL_QUERIES, TILE = range(8)
SKIP, PARTIAL, FULL = range(3)


@functools.cache
def library() -> ctypes.CDLL:
    cases = "".join(
        f"case {n}: return ask<{p.cpp}>(what, Lengths{{sq, skv}}, in, out);\n"
        for n, p in enumerate(EVERY)
    )
    return compiled(HARNESS % cases)


def ask(pattern: Band, what: int, sq: int, skv: int, *given: int) -> tuple[int, int]:
    out = (ctypes.c_int * 2)()
    library().ask(EVERY.index(pattern), what, sq, skv, (ctypes.c_int * 4)(*given), out)
    return out[0], out[1]


def run(pattern: Band, what: int, sq: int, skv: int, *given: int) -> set[int]:
    return set(range(*ask(pattern, what, sq, skv, *given)))


def hull(kept: Any) -> set[int]:
    """The smallest run around the kept ones."""
    there = np.flatnonzero(kept)
    return set(range(there[0], there[-1] + 1)) if len(there) else set()


lengths = st.integers(1, 130)


@st.composite
def interval(draw: st.DrawFn, limit: int) -> tuple[int, int]:
    """A tile: any offset and size, its end clipped as kernels clip it."""
    begin = draw(st.integers(0, limit - 1))
    return begin, min(limit, begin + draw(st.sampled_from([1, 3, 8, 16, 17, 64, 128])))


@settings(max_examples=60)
@given(pattern=st.sampled_from(EVERY), sq=lengths, skv=lengths)
def test_rows_columns_and_elements(pattern: Band, sq: int, skv: int) -> None:
    mask = pattern.mask(sq, skv)
    for q in range(sq):
        kept = set(np.flatnonzero(mask[q]))
        assert run(pattern, ROW, sq, skv, q) == kept == set(range(*pattern.row(q, sq, skv)))
    for k in range(skv):
        assert run(pattern, COLUMN, sq, skv, k) == set(np.flatnonzero(mask[:, k]))
    for q, k in itertools.product(range(0, sq, 7), range(0, skv, 5)):
        assert bool(ask(pattern, KEEP, sq, skv, q, k)[0]) == mask[q, k]
    assert pattern.count_kept(sq, skv) == mask.sum()


@settings(max_examples=400)
@given(pattern=st.sampled_from(EVERY), sq=lengths, skv=lengths, data=st.data())
def test_blocks_of_rows_and_of_columns(
    pattern: Band, sq: int, skv: int, data: st.DataObject
) -> None:
    mask = pattern.mask(sq, skv)
    q0, q1 = data.draw(interval(sq))
    rows = mask[q0:q1]
    assert run(pattern, KEYS, sq, skv, q0, q1) == hull(rows.any(axis=0))
    assert run(pattern, FULL_KEYS, sq, skv, q0, q1) == set(np.flatnonzero(rows.all(axis=0)))
    k0, k1 = data.draw(interval(skv))
    columns = mask[:, k0:k1]
    assert run(pattern, QUERIES, sq, skv, k0, k1) == hull(columns.any(axis=1))
    assert run(pattern, FULL_QUERIES, sq, skv, k0, k1) == set(np.flatnonzero(columns.all(axis=1)))


@settings(max_examples=400)
@given(pattern=st.sampled_from(EVERY), sq=lengths, skv=lengths, data=st.data())
def test_tiles_are_never_wrongly_skipped_nor_wrongly_full(
    pattern: Band, sq: int, skv: int, data: st.DataObject
) -> None:
    (q0, q1), (k0, k1) = data.draw(interval(sq)), data.draw(interval(skv))
    tile = pattern.mask(sq, skv)[q0:q1, k0:k1]
    said = ask(pattern, TILE, sq, skv, q0, q1, k0, k1)[0]
    assert said != SKIP or not tile.any()
    assert said != FULL or tile.all()
    # And no work is left on the table: bands know exactly.
    assert (said == FULL) == tile.all()


@settings(max_examples=60)
@given(pattern=st.sampled_from(EVERY), sq=lengths, skv=lengths, rows=st.sampled_from([16, 64]),
       keys=st.sampled_from([16, 48, 64]))
def test_walking_tiles_as_a_kernel_does_visits_every_kept_element_once(
    pattern: Band, sq: int, skv: int, rows: int, keys: int
) -> None:
    mask = pattern.mask(sq, skv)
    visits = np.zeros((sq, skv), int)
    for q0 in range(0, sq, rows):
        q1 = min(q0 + rows, sq)
        begin, end = ask(pattern, KEYS, sq, skv, q0, q1)
        for k0 in range(begin - begin % keys, end, keys):
            k1 = min(k0 + keys, skv)
            said = ask(pattern, TILE, sq, skv, q0, q1, k0, k1)[0]
            if said != SKIP:
                block = np.ones((q1 - q0, k1 - k0), bool) if said == FULL else mask[q0:q1, k0:k1]
                visits[q0:q1, k0:k1] += block
    assert (visits == mask).all()


@settings(max_examples=200)
@given(left=st.integers(0, 80) | st.just(UNBOUNDED), right=st.integers(0, 80) | st.just(UNBOUNDED),
       top_left=st.booleans(), sq=st.integers(1, 90), skv=st.integers(1, 90))
def test_counting_agrees_with_the_mask(
    left: int, right: int, top_left: bool, sq: int, skv: int
) -> None:
    pattern = Band(left, right, top_left)
    assert pattern.count_kept(sq, skv) == pattern.mask(sq, skv).sum()


def test_counting_is_quick_at_any_length() -> None:
    assert parse_pattern("causal").count_kept(1 << 24, 1 << 24) == (1 << 23) * ((1 << 24) + 1)
    assert parse_pattern("window9x3").count_kept(1 << 24, 1 << 24) == 13 * (1 << 24) - 45 - 6


@pytest.mark.parametrize("slug", SLUGS)
def test_slugs_round_trip(slug: str) -> None:
    assert str(parse_pattern(slug)) == slug


@given(left=st.integers(0, 10**8), right=st.integers(0, 10**8))
def test_window_slugs_round_trip(left: int, right: int) -> None:
    pattern = Band(left, right)
    assert parse_pattern(str(pattern)) == pattern


def test_every_row_of_the_table_is_tested() -> None:
    import re

    for row in PATTERNS:
        if row.kind is Band:  # the others: test_sparse_patterns.py
            assert any(re.fullmatch(row.regex, slug) for slug in SLUGS), row.slug


@pytest.mark.parametrize("slug", ["", "Causal", "window", "window-1", "window1x", "causal;rm"])
def test_other_texts_are_refused(slug: str) -> None:
    with pytest.raises(UsageError, match="unknown pattern"):
        parse_pattern(slug)
