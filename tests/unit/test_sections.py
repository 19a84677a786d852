"""The sm90 backward's sections of heads: under a causal mask the key blocks end together."""

from __future__ import annotations

import ctypes
import heapq
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.harness import compiled

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

ORDERS = ("by_section", "heavy_first")
TEXT = f"""
#define FAGEN_DEVICE inline
inline int __clz(int x) {{ return __builtin_clz(x); }}
enum class Order {{ {", ".join(ORDERS)} }};
#include "device/sections_bwd_sm90.h"
extern "C" int wide(int order, int heads, float bytes_per_head) {{
  return section_of_heads(Order(order), heads, bytes_per_head);
}}
"""


class Sections:
    def __init__(self) -> None:
        self.library = compiled(TEXT)

    def wide(self, order: str, heads: int, bytes_per_head: float) -> int:
        wide: int = self.library.wide(ORDERS.index(order), heads, ctypes.c_float(bytes_per_head))
        return wide


@pytest.fixture(scope="module")
def sections() -> Sections:
    return Sections()


@given(st.sampled_from(ORDERS), st.integers(1, 200), st.floats(1e3, 1e9))
def test_a_section_fits_the_cache(
    sections: Sections, order: str, heads: int, size: float
) -> None:
    wide = sections.wide(order, heads, size)
    assert 1 <= wide <= heads
    assert wide == 1 or wide * size <= (20.1e6 if order == "by_section" else 40.1e6)
    assert wide == heads or wide & (wide - 1) == 0


SMS = 132


def unevenness(heads: int, blocks: int, wide: int) -> float:
    """The last CTA's end, of the mean: of 128 keys by 64 queries, two steps for a CTA's ends."""
    ends, work = [0] * SMS, 0
    for first in range(0, heads, wide):
        for rank in range(blocks):
            for _ in range(first, min(first + wide, heads)):
                steps = 2 * (blocks - rank) + 2
                work += steps
                heapq.heapreplace(ends, ends[0] + steps)
    return max(ends) * SMS / work


# 16K keys of 16 heads, D128, by head: 1.05, 1.07, 1.07, 1.07, 1.06 of the mean.
@pytest.mark.parametrize(("seqlen", "by_section", "heavy_first"), [
    (512, 1.05, 1.04), (1024, 1.06, 1.03), (2048, 1.04, 1.03), (4096, 1.01, 1.01),
    (8192, 1.01, 1.01),
])
def test_causal_key_blocks_end_together(
    sections: Sections, seqlen: int, by_section: float, heavy_first: float
) -> None:
    heads, blocks = 16 * 16384 // seqlen, seqlen // 128
    by_head = unevenness(heads, blocks, 1)
    ends = [unevenness(heads, blocks, sections.wide(o, heads, 1024 * seqlen)) for o in ORDERS]
    assert ends[0] <= min(by_section, by_head)
    assert ends[1] <= min(heavy_first, by_head)
