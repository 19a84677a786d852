"""Heads that follow different patterns: names, counts, and the header against every member."""

from __future__ import annotations

import ctypes
import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fagen.cases import Case
from fagen.errors import UsageError
from fagen.inputs import random_inputs
from fagen.library import Params
from fagen.model import Problem
from fagen.patterns import CAUSAL, Mix, parse_pattern
from fagen.pieces import Pieces
from fagen.solver import Solver
from fagen.workload import Workload
from tests.unit.harness import compiled
from tests.unit.test_data_patterns import ASK, agree
from tests.unit.test_sparse_patterns import some_tiles

SLUGS = ("mix_window20x5_2_causal", "mix_longformer-w20-g8_butterfly-b16_dense",
         "mix_3_strided-s24-causal_bigbird-w9-g5-r32-b16-seed3_2_blockdiag48")
EVERY = tuple(map(parse_pattern, SLUGS))
HARNESS = """
%s
""" + ASK + """
extern "C" void ask_any(int pattern, const fagen_params *p, int first, int after, int count,
                        const int (*tiles)[4], int (*out)[4], unsigned char *kept) {
  switch (pattern) {
    %s
  }
}
"""


@functools.cache
def library() -> ctypes.CDLL:
    headers = dict.fromkeys(header for p in EVERY for header in p.headers)
    cases = (f"case {n}: {{\n  using P = {p.cpp};\n"
             "  static_assert(HeadPattern<P> && BitPattern<P> && !IntervalPattern<P>);\n"
             "  return ask<P>(p, 0, first, after, count, tiles, out, kept);\n}\n"
             for n, p in enumerate(EVERY))
    return compiled(HARNESS % ("\n".join(f'#include "{h}"' for h in headers), "".join(cases)))


def bits(row: Any, start: int) -> int:
    return sum(1 << i for i, kept in enumerate(row[start : start + 16]) if kept)


@pytest.mark.parametrize("pattern", EVERY, ids=str)
@settings(max_examples=8)
@given(sq=st.integers(1, 150), skv=st.integers(1, 150), head=st.integers(0, 12),
       after=st.integers(0, 8), seed=st.integers(0, 1 << 30))
def test_the_header_keeps_for_each_head_what_its_member_does(
    pattern: Mix, sq: int, skv: int, head: int, after: int, seed: int
) -> None:
    params, tiles = Params(seqlen_q=sq, seqlen_kv=skv), some_tiles(seed, sq, skv)
    told, kept = np.zeros((len(tiles), 4), np.int32), np.zeros((sq, skv), np.uint8)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (tiles, told, kept)]
    library().ask_any(EVERY.index(pattern), ctypes.byref(params), head, after, len(tiles),
                      *pointers)
    mask = pattern.of_head(head + after).mask(sq, skv)
    assert (kept.astype(bool) == mask).all()
    agree(mask, tiles, told, exact=True)
    for (q0, _, k0, _), said in zip(tiles.tolist(), told[:, 3].tolist(), strict=True):
        found = said & 0xFFFFFFFF
        assert found >> 16 == bits(mask[q0], k0 // 16 * 16)
        assert found & 0xFFFF == bits(mask[:, k0], q0 // 16 * 16)


def test_heads_take_turns() -> None:
    pattern = parse_pattern("mix_2_window512_causal")
    assert isinstance(pattern, Mix)
    window = parse_pattern("window512")
    assert [pattern.of_head(h) for h in range(5)] == [window, window, CAUSAL, window, window]
    assert pattern.span == max(window.span, CAUSAL.span)


def test_what_is_kept_is_counted_head_by_head() -> None:
    window, causal = parse_pattern("window99").count_kept(1000, 1000), 1000 * 1001 // 2
    problem = Problem.parse("fwd-bf16-d64-mix_2_window99_causal")
    assert Workload.parse("b3-h4x2-s1000").kept(problem) == 3 * (3 * window + causal)
    assert problem.pattern.count_kept(1000, 1000) == (2 * window + causal) // 3
    assert (problem.pattern.mask(50, 60) == CAUSAL.mask(50, 60)).all()  # the window is inside


@pytest.mark.parametrize("slug", SLUGS)
def test_the_name_says_it_all(slug: str) -> None:
    problem = Problem.parse(f"bwd-bf16-d64x128-{slug}+deterministic")
    assert str(problem.pattern) == slug
    assert Problem.parse(str(problem)) == problem


@pytest.mark.parametrize(("slug", "says"), [
    ("mix_causal", "unknown pattern"), ("mix_2_3_causal_dense", "unknown pattern"),
    ("mix_causal_dense_2", "unknown pattern"), ("mix_0_causal_dense", "unknown pattern"),
    ("mix__causal_dense", "unknown pattern"), ("mix_causal_blob", "unknown pattern 'blob'"),
    ("mix_causal_blocks128", "comes with the call"),
])
def test_other_mixes_are_refused(slug: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_pattern(slug)


def test_packed_sequences_have_one_pattern() -> None:
    with pytest.raises(UsageError, match="not served for packed"):
        Problem.parse("fwd-bf16-d64-mix_causal_dense+varlen")


def test_the_reference_masks_each_head_by_its_own_pattern() -> None:
    problem = Problem.parse("fwd-fp32-d8-mix_window2_2_causal-topleft")
    case = Case(Workload.parse("b1-h4x2-s9x13"))
    pieces = Pieces.of(problem, case.workload)
    solver = Solver(problem, case, pieces, random_inputs(problem, case, "cpu"))
    for kv_head, head in itertools.product(range(2), range(2)):
        dropped = solver.mask((0, kv_head)).drops(slice(2, 7))
        member = problem.pattern.of_head(2 * kv_head + head)  # type: ignore[attr-defined]
        assert torch.equal(~dropped[head], torch.from_numpy(member.mask(9, 13)[2:7]))
