"""Every named pattern but the bands: its header against its numpy mask, its slug, its counts."""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fagen import paths
from fagen.compilers import find_cxx
from fagen.errors import UsageError
from fagen.families import families_for
from fagen.model import Problem
from fagen.patterns import PATTERNS, Band, Mix, Pattern, parse_pattern
from fagen.target import Target

PLAIN = ("prefix1", "prefix13", "prefix500")
CAUSAL_OR_NOT = (
    "blockdiag1", "blockdiag16", "blockdiag48", "dilated-w0-d1", "dilated-w3-d4", "dilated-w500-d3",
    "dilated-w9-d1", "strided-s1", "strided-s7", "strided-s32", "fixed-s8-c8", "fixed-s16-c3",
    "fixed-s64-c1", "longformer-w5-g0", "longformer-w5-g9", "longformer-w0-g40",
    "longformer-w70-g33", "bigbird-w3-g5-r8-b8-seed7", "bigbird-w0-g0-r48-b16-seed1",
    "bigbird-w20-g16-r64-seed999999999", "butterfly-b1", "butterfly-b5", "butterfly-b16",
    "butterfly-b64",
)
SLUGS = (*PLAIN, *CAUSAL_OR_NOT, *(f"{slug}-causal" for slug in CAUSAL_OR_NOT))
EVERY = tuple(map(parse_pattern, SLUGS))

HARNESS = """
%s
template <class P> void fill(Lengths n, unsigned char *out) {
  static_assert(TilePattern<P> && IntervalPattern<P> == P::interval, "the contract");
  const P p(n);
  for (int q = 0; q < n.seqlen_q; ++q)
    for (int k = 0; k < n.seqlen_kv; ++k) *out++ = p.keep(q, k);
}
template <class P> void ask(Lengths n, int count, const int (*tiles)[4], int (*out)[3]) {
  const P p(n);
  for (int i = 0; i < count; ++i) {
    const auto [q0, q1, k0, k1] = tiles[i];
    out[i][0] = p.next_key(q0, q1, k0);
    out[i][1] = p.next_query(k0, k1, q0);
    out[i][2] = static_cast<int>(p.tile(q0, q1, k0, k1));
  }
}
template <class P> void runs(Lengths n, int count, const int (*tiles)[4], int (*out)[8]) {
  if constexpr (IntervalPattern<P>) {
    const P p(n);
    for (int i = 0; i < count; ++i) {
      const auto [q0, q1, k0, k1] = tiles[i];
      const Range found[] = {p.keys(q0, q1), p.full_keys(q0, q1), p.queries(k0, k1),
                             p.full_queries(k0, k1)};
      for (int r = 0; r < 4; ++r) out[i][2 * r] = found[r].begin, out[i][2 * r + 1] = found[r].end;
    }
  }
}
#define EACH(CALL) switch (pattern) { %s }
extern "C" {
void every_fill(int pattern, int sq, int skv, unsigned char *out) {
  const Lengths n{sq, skv};
#define CALL(P) fill<P>(n, out)
  EACH(CALL)
#undef CALL
}
void every_ask(int pattern, int sq, int skv, int count, const int (*tiles)[4], int (*out)[3]) {
  const Lengths n{sq, skv};
#define CALL(P) ask<P>(n, count, tiles, out)
  EACH(CALL)
#undef CALL
}
void every_runs(int pattern, int sq, int skv, int count, const int (*tiles)[4], int (*out)[8]) {
  const Lengths n{sq, skv};
#define CALL(P) runs<P>(n, count, tiles, out)
  EACH(CALL)
#undef CALL
}
}
"""
SKIP, PARTIAL, FULL = range(3)


@functools.cache
def library() -> ctypes.CDLL:
    headers = "".join(f'#include "{header}"\n' for header in sorted({p.header for p in EVERY}))
    types = "".join(f"using P{n} = {p.cpp};\n" for n, p in enumerate(EVERY))
    cases = " ".join(f"case {n}: return CALL(P{n});" for n in range(len(EVERY)))
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "patterns.cpp"), Path(folder, "patterns.so")
        source.write_text(HARNESS % (headers + types, cases))
        subprocess.run(
            [find_cxx(), "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
             f"-I{paths.templates()}", str(source), "-o", str(made)],
            check=True,
        )
        return ctypes.CDLL(str(made))


def call(name: str, pattern: Pattern, shape: tuple[int, int], out: Any, *arguments: Any) -> Any:
    pointers = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a
                for a in (*arguments, out)]
    getattr(library(), name)(EVERY.index(pattern), *shape, *pointers)
    return out


def header_mask(pattern: Pattern, sq: int, skv: int) -> Any:
    return call("every_fill", pattern, (sq, skv), np.zeros((sq, skv), np.uint8)).astype(bool)


def some_tiles(seed: int, sq: int, skv: int, count: int = 40) -> Any:
    """Rows q0, q1 and keys k0, k1: any offset and size, the ends clipped as kernels clip them."""
    rng = np.random.default_rng(seed)
    q0, k0 = rng.integers(0, sq, count), rng.integers(0, skv, count)
    rows, keys = (rng.choice([1, 3, 8, 16, 17, 64, 128], count) for _ in range(2))
    tiles = [q0, np.minimum(q0 + rows, sq), k0, np.minimum(k0 + keys, skv)]
    return np.ascontiguousarray(np.stack(tiles, 1), np.int32)


def first(there: Any, start: int) -> int:
    """The first true one from start on, or the length."""
    found = np.flatnonzero(there[start:])
    return start + int(found[0]) if len(found) else len(there)


lengths = st.integers(1, 150)
seeds = st.integers(0, 2**32 - 1)
everywhere = pytest.mark.parametrize("pattern", EVERY, ids=str)


@everywhere
@settings(max_examples=8)
@given(sq=lengths, skv=lengths, seed=seeds)
def test_the_header_keeps_what_the_mask_does_and_walks_exactly(
    pattern: Pattern, sq: int, skv: int, seed: int
) -> None:
    mask = pattern.mask(sq, skv)
    assert (header_mask(pattern, sq, skv) == mask).all()
    assert pattern.count_kept(sq, skv) == mask.sum()
    tiles = some_tiles(seed, sq, skv)
    told = call("every_ask", pattern, (sq, skv), np.zeros((len(tiles), 3), np.int32),
                len(tiles), tiles)
    for (q0, q1, k0, k1), (key, query, said) in zip(tiles, told, strict=True):
        assert key == first(mask[q0:q1].any(0), k0)
        assert query == first(mask[:, k0:k1].any(1), q0)
        tile = mask[q0:q1, k0:k1]
        assert (said == SKIP) == (not tile.any())
        assert said != FULL or tile.all()


@pytest.mark.parametrize("pattern", [p for p in EVERY if p.interval], ids=str)
@settings(max_examples=20)
@given(sq=lengths, skv=lengths, seed=seeds)
def test_runs_of_keys_and_of_queries(pattern: Pattern, sq: int, skv: int, seed: int) -> None:
    mask = pattern.mask(sq, skv)
    for q in range(sq):
        assert (np.flatnonzero(mask[q]) == range(*pattern.row(q, sq, skv))).all()
    tiles = some_tiles(seed, sq, skv)
    told = call("every_runs", pattern, (sq, skv), np.zeros((len(tiles), 8), np.int32),
                len(tiles), tiles)
    for (q0, q1, k0, k1), found in zip(tiles, told, strict=True):
        rows, columns = mask[q0:q1], mask[:, k0:k1]
        kept = (rows.any(0), rows.all(0), columns.any(1), columns.all(1))
        for want, (begin, end) in zip(kept, found.reshape(4, 2), strict=True):
            assert set(np.flatnonzero(want)) == set(range(begin, end))


def test_a_large_tile_inside_a_block_is_full() -> None:
    """No mask where none is needed: what makes blocks cheap."""
    cases = {"blockdiag48": (48, 96, 48, 96), "butterfly-b16": (32, 64, 32, 64),
             "longformer-w70-g33": (0, 150, 0, 33), "fixed-s8-c8": (1, 150, 40, 48),
             "bigbird-w20-g16-r64-seed999999999": (10, 30, 10, 30)}
    for slug, tile in cases.items():
        told = call("every_ask", parse_pattern(slug), (150, 150), np.zeros((1, 3), np.int32), 1,
                    np.array([tile], np.int32))
        assert told[0, 2] == FULL, slug


def test_walks_stay_exact_in_long_sequences() -> None:
    """Random blocks and butterflies of 64K positions: walks find every block, and no other."""
    sq = skv = 1 << 16
    for slug in ("bigbird-w20-g16-r64-seed999999999", "butterfly-b64", "butterfly-b64-causal",
                 "bigbird-w20-g16-r64-seed999999999-causal"):
        pattern = parse_pattern(slug)
        i, j = np.arange(4096, 4096 + 64)[:, None], np.arange(skv)[None, :]
        want = pattern.keep(i, j, skv).any(0)
        found, key = [], 0
        while key < skv:
            tile = np.array([[4096, 4160, key, key + 1]], np.int32)
            told = call("every_ask", pattern, (sq, skv), np.zeros((1, 3), np.int32), 1, tile)
            key = int(told[0, 0]) + 1
            found.append(key - 1)
        assert found[:-1] == list(np.flatnonzero(want)), slug


# --- names and numbers ---------------------------------------------------------------------------


def slugs(draw: st.DrawFn) -> str:
    def n(least: int = 1, most: int = 90) -> int:
        return draw(st.integers(least, most))

    causal = draw(st.sampled_from(["", "-causal"]))
    stride, block = n(), n()
    return draw(st.sampled_from([
        f"prefix{n()}", f"blockdiag{n()}{causal}", f"dilated-w{n(0)}-d{n()}{causal}",
        f"strided-s{n()}{causal}", f"fixed-s{stride}-c{n(1, stride)}{causal}",
        f"longformer-w{n(0)}-g{n(0)}{causal}", f"butterfly-b{n()}{causal}",
        f"bigbird-w{n(0)}-g{n(0)}-r{block * n(1, 3)}-b{block}-seed{n(0, 10**9 - 1)}{causal}",
    ]))


@settings(max_examples=400)
@given(slug=st.composite(slugs)(), sq=st.integers(1, 120), skv=st.integers(1, 120))
def test_any_parameters_count_as_the_mask_does(slug: str, sq: int, skv: int) -> None:
    pattern = parse_pattern(slug)
    assert parse_pattern(str(pattern)) == pattern
    mask = pattern.mask(sq, skv)
    assert pattern.count_kept(sq, skv) == mask.sum()
    assert pattern.share(sq, skv) == mask.mean()
    positions = torch.arange(sq)[:, None] + pattern.shift(sq, skv)
    assert (pattern.keep(positions, torch.arange(skv), skv).numpy() == mask).all()


@pytest.mark.parametrize("slug", SLUGS)
def test_slugs_round_trip(slug: str) -> None:
    assert str(parse_pattern(slug)) == slug


@everywhere
def test_bounds_are_bounds(pattern: Pattern) -> None:
    """left and right, where given, hold for every kept element."""
    i, j = np.nonzero(pattern.mask(90, 90))
    assert pattern.left == -1 or (i - j <= pattern.left).all()
    assert pattern.right == -1 or (j - i <= pattern.right).all()


def test_every_row_of_the_table_is_tested() -> None:
    for row in PATTERNS:
        # Those: test_patterns.py, test_data_patterns.py and test_mix.py.
        if row.kind not in (Band, Mix) and not row.kind.is_data:
            assert any(re.fullmatch(row.regex, slug) for slug in SLUGS), row.slug


def test_counting_is_quick_at_any_length() -> None:
    n = 1 << 20
    assert parse_pattern("butterfly-b128").count_kept(n, n) == n * 128 * 14
    assert parse_pattern("blockdiag256").count_kept(n, n) == n * 256
    assert parse_pattern("prefix512").count_kept(n, n) == n * (n + 1) // 2 + 512 * 511 // 2
    assert parse_pattern("strided-s1").count_kept(n, n) == n * n
    assert 0.9 < parse_pattern("bigbird-w128-g32-r64-seed7").count_kept(n, n) / (n * 353) < 1.1


def test_seeds_draw_differently_and_evenly() -> None:
    n = 64 * 64
    drawn = [parse_pattern(f"bigbird-w0-g0-r128-seed{seed}") for seed in (1, 2)]
    blocks = [p.mask(n, n)[::64].reshape(64, 64, 64).all(2) for p in drawn]
    assert (blocks[0] != blocks[1]).any()
    for found in blocks:
        assert 1.8 < found.sum(1).mean() <= 2  # two draws, and seldom the same block twice
        assert found.sum(0).max() <= 9  # no block of keys is everybody's


@pytest.mark.parametrize(("slug", "says"), [
    ("butterfly-b0", "0 in a pattern is not between 1"),
    ("strided-s999999999", "not between 1 and 268435456"),
    ("fixed-s16-c17", "17 in a pattern is not between 1 and 16"),
    ("dilated-w99999999-d99", "reaches"),
    ("bigbird-w1-g1-r65-seed0", "65 random keys are not 1 to 64 blocks of 64"),
    ("bigbird-w1-g1-r64", "unknown pattern"),
    ("prefix5-causal", "unknown pattern"),
    ("longformer-w5", "unknown pattern"),
])
def test_other_texts_are_refused(slug: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_pattern(slug)


@pytest.mark.parametrize("op", ["fwd", "bwd"])
@pytest.mark.parametrize("slug", ["window9", "blockdiag16", "butterfly-b16"])
def test_every_family_serves_every_named_pattern(op: str, slug: str) -> None:
    problem = Problem.parse(f"{op}-bf16-d64-{slug}")
    for target, names in (("h200", {"sm90", "sm80"}), ("x86-64-v4", {"cpu"})):
        serving = families_for(problem, Target.known(target))
        assert {family.name for family in serving} == names
