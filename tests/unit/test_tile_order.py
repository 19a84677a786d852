"""The sm90 forward's order of tiles: each is dealt once, and under a causal mask evenly."""

from __future__ import annotations

import ctypes
import heapq
import shutil
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fagen.library import Params
from tests.unit.harness import compiled

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

SCHEDULES, LONGEST = ("strided", "snake"), ("none", "last", "either")
ROWS = 128  # of a tile
BYTES_PER_KEY = 512  # of K and V, 128 wide
SECTION_BYTES = 32 << 20
TEXT = f"constexpr int ROWS = {ROWS}, BYTES_PER_KEY = {BYTES_PER_KEY};" + """
#include <stddef.h>
#define __host__
#define __device__
#define __forceinline__ inline
struct { unsigned x; } gridDim;
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline int __clz(int x) { return __builtin_clz(x); }
int __shfl_sync(unsigned, int, int);
unsigned __shfl_xor_sync(unsigned, unsigned, int);
size_t __cvta_generic_to_shared(const void *);
unsigned atomicAdd(unsigned *, unsigned);
#include "device/tiles_sm90.h"

// The tiles of one CTA: (block, head, batch) each. Returns how many.
template <Schedule SCHEDULE, Longest LONGEST, bool PACKED>
int deal(const fagen_params *p, int64_t section_bytes, bool first_is_longest, unsigned ctas,
         unsigned cta, QueryTile *out) {
  const TileOrder<ROWS, LONGEST, PACKED, SCHEDULE> order(*p, BYTES_PER_KEY, section_bytes,
                                                         first_is_longest);
  gridDim.x = ctas;
  int count = 0;
  for (unsigned i = cta; i < order.count(); i = next_tile<SCHEDULE>(i, nullptr))
    out[count++] = order.at(i);
  return count;
}
#define DEAL(SCHEDULE, LONGEST, PACKED) \\
  extern "C" int SCHEDULE##_##LONGEST##_##PACKED(const fagen_params *p, int64_t bytes, bool one, \\
                                                 unsigned ctas, unsigned cta, QueryTile *out) { \\
    return deal<Schedule::SCHEDULE, Longest::LONGEST, PACKED>(p, bytes, one, ctas, cta, out); \\
  }
""" + "\n".join(
    f"DEAL({schedule}, {longest}, {packed})"
    for schedule in SCHEDULES for longest in LONGEST for packed in ("false", "true")
)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return compiled(TEXT)


@dataclass(frozen=True)
class Order:
    library: ctypes.CDLL
    schedule: str
    longest: str
    packed: bool = False
    first_is_longest: bool = False
    section_bytes: int = SECTION_BYTES

    def dealt(self, p: Params, count: int, ctas: int) -> list[list[tuple[int, int, int]]]:
        """What each CTA gets, in its order."""
        deal = self.library[f"{self.schedule}_{self.longest}_{str(self.packed).lower()}"]
        out = (ctypes.c_int * (3 * count))()
        hands = []
        for cta in range(ctas):
            got = deal(ctypes.byref(p), ctypes.c_int64(self.section_bytes), self.first_is_longest,
                       ctas, cta, out)
            hands.append([(out[3 * i], out[3 * i + 1], out[3 * i + 2]) for i in range(got)])
        return hands


def params(batch: int, heads: int, kv_heads: int, seqlen: int) -> Params:
    return Params(batch=batch, heads=heads, kv_heads=kv_heads, seqlen_q=seqlen, seqlen_kv=seqlen,
                  total_q=batch * seqlen, total_kv=batch * seqlen)


@settings(max_examples=150)
@given(
    st.integers(1, 5), st.sampled_from([(1, 1), (4, 2), (6, 6), (14, 2)]), st.integers(1, 3000),
    st.integers(1, 40), st.sampled_from(SCHEDULES), st.sampled_from(LONGEST), st.booleans(),
    st.booleans(), st.sampled_from([1 << 20, 4 << 20, SECTION_BYTES]),
)
def test_every_tile_is_dealt_once(
    library: ctypes.CDLL, batch: int, heads: tuple[int, int], seqlen: int, ctas: int,
    schedule: str, longest: str, packed: bool, first_is_longest: bool,
    section_bytes: int,
) -> None:
    p = params(batch, *heads, seqlen)
    blocks = batch * seqlen // ROWS + batch if packed else -(-seqlen // ROWS)
    entries = 1 if packed else batch
    every = sorted((b, h, e) for b in range(blocks) for h in range(heads[0])
                   for e in range(entries))
    order = Order(library, schedule, longest, packed, first_is_longest, section_bytes)
    hands = order.dealt(p, len(every), min(ctas, len(every)))
    assert sorted(tile for hand in hands for tile in hand) == every
    assert max(map(len, hands)) - min(map(len, hands)) <= 1
    assert all(hands)


# --- how even it comes out ---------------------------------------------------------------------

CTAS = 132


def cost(block: int) -> int:
    """Blocks of as many keys as a tile has rows, and one for the ends of a tile."""
    return block + 2


def share(loads: list[int]) -> float:
    """The longest hand, of the mean."""
    return max(loads) * len(loads) / sum(loads)


def of_a_schedule(library: ctypes.CDLL, schedule: str, p: Params, count: int) -> float:
    hands = Order(library, schedule, "last").dealt(p, count, CTAS)
    return share([sum(cost(block) for block, _, _ in hand) for hand in hands])


def of_a_counter(library: ctypes.CDLL, p: Params, count: int) -> float:
    """Whoever is done first takes the next, the longest of a section first."""
    tiles = Order(library, "strided", "last").dealt(p, count, 1)[0]
    loads = [0] * CTAS
    for block, _, _ in tiles:
        heapq.heapreplace(loads, loads[0] + cost(block))
    return share(loads)


# 16K queries of 16 heads: 15.5 tiles for a CTA, in 4 sections. The longest hand is 1.03 to 1.16 of
# the mean strided, 1.00 to 1.03 to and fro (whole tiles are the limit), 1.00 to 1.01 counted.
CELLS = [(32, 16, 512), (16, 16, 1024), (8, 16, 2048), (4, 16, 4096), (2, 16, 8192), (1, 16, 16384)]


@pytest.mark.parametrize(("batch", "heads", "seqlen"), CELLS)
def test_causal_tiles_come_out_even(
    library: ctypes.CDLL, batch: int, heads: int, seqlen: int
) -> None:
    p, count = params(batch, heads, heads, seqlen), batch * heads * seqlen // ROWS
    strided, snake = (of_a_schedule(library, s, p, count) for s in SCHEDULES)
    counter = of_a_counter(library, p, count)
    assert snake <= 1.04
    assert snake <= strided + 1e-9
    assert snake <= counter * 1.04
