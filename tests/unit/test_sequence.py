"""Slots of packed sequences: every tile of every sequence has one, and only one."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fagen import paths
from fagen.families.plan import product
from fagen.workload import Workload

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

TEXT = """
constexpr bool VARLEN = true;
#include "device/sequence.h"

// The sequence and tile of each slot, and where the tile lies in scratch memory.
extern "C" void places(const fagen_params *p, int size, int slots, int head, int64_t *out) {
  for (int slot = 0; slot < slots; ++slot) {
    const Slot s = q_slot(*p, size, slot, 0);
    *out++ = s.batch, *out++ = s.tile;
    *out++ = Sequence(*p, s.batch).q_block(size, head, s.tile);
  }
}
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("sequence")
    (folder / "slots.cpp").write_text(TEXT)
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", f"-I{paths.templates()}",
                    "-o", folder / "slots.so", folder / "slots.cpp"], check=True)
    return ctypes.CDLL(str(folder / "slots.so"))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture,
                                                   HealthCheck.too_slow])
@given(st.lists(st.integers(0, 70), min_size=1, max_size=20), st.sampled_from([1, 16, 33, 64]))
def test_every_tile_has_one_slot(places: ctypes.CDLL, lengths: list[int], size: int) -> None:
    from fagen.library import Params

    lengths = lengths if any(lengths) else [1]
    count, total, heads = len(lengths), sum(lengths), 3
    cu = (ctypes.c_int32 * (count + 1))(0, *itertools.accumulate(lengths))
    at = ctypes.cast(cu, ctypes.c_void_p).value
    p = Params(batch=count, heads=heads, cu_q=at, cu_kv=at, total_q=total, total_kv=total)
    w = Workload(count, heads, 1, max(lengths), 1, 1.0, total, 1)
    slots = product(q_tiles=size).value(w)
    blocks = []
    for head in range(heads):
        out = (ctypes.c_int64 * (3 * slots))()
        places.places(ctypes.byref(p), size, slots, head, out)
        found = [tuple(out[i : i + 3]) for i in range(0, 3 * slots, 3)]
        there = [(b, tile) for b, tile, _ in found if tile * size < lengths[b]]
        assert there == [(b, t) for b, n in enumerate(lengths) for t in range(-(-n // size))]
        blocks += [block for _, _, block in found]
    assert blocks == list(range(product(q_padded=size, heads=1, batch=1).value(w) // size))
