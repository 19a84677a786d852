"""The order in which kernels start the tiles of a mask of the call: longest first."""

from __future__ import annotations

import ctypes
import functools
import itertools
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fagen.cases import Case
from fagen.families import FAMILIES
from fagen.library import Params
from fagen.masks import ORDERS, RUNS, drawn, point
from fagen.model import Problem
from fagen.paths import templates
from fagen.render import Renderer
from fagen.runtime.package import order
from fagen.runtime.package.blockmask import BlockSparseMask
from fagen.runtime.package.documents import DocumentMask
from fagen.target import Target
from fagen.workload import Workload
from tests.unit.harness import compiled

QUERIES, KEYS = 6, 7  # where struct fagen_mask holds the orders of a mask of blocks
OF_RUNS = {QUERIES: 1, KEYS: 4}  # and of one of runs


def orders_of(flat: Tensor, masks: int, rows: int) -> dict[int, Tensor]:
    """[masks, tiles] for each size of tile, as kernels find them."""
    counts = [-(-rows // size) for size in order.SIZES]
    parts = flat.split([masks * n for n in counts])
    return {size: part.view(masks, n)
            for size, part, n in zip(order.SIZES, parts, counts, strict=True)}


def visits(kept: Tensor, tile: int, block: int) -> Tensor:
    """How many blocks of columns each tile of rows meets, [masks, tiles]."""
    rows, columns = kept.shape[1:]
    padded = torch.nn.functional.pad(kept, (0, -columns % block, 0, -rows % tile))
    return padded.unflatten(2, (-1, block)).unflatten(1, (-1, tile)).any(4).any(2).sum(-1)


def check_order(found: Tensor, works: Tensor) -> None:
    for numbers, work in zip(found.tolist(), works.tolist(), strict=True):
        assert sorted(numbers) == list(range(len(work)))
        assert all(work[a] >= work[b] for a, b in pairwise(numbers))


@settings(max_examples=30)
@given(lengths=st.tuples(st.integers(1, 900), st.integers(1, 900)),
       sizes=st.tuples(st.sampled_from([16, 48, 128, 320]), st.sampled_from([16, 80, 256])),
       causal=st.booleans(), sharing=st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]),
       seed=st.integers(0, 1 << 30))
def test_blocks(lengths: tuple[int, int], sizes: tuple[int, int], causal: bool,
                sharing: tuple[int, int], seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    counts = [-(-n // size) for n, size in zip(lengths, sizes, strict=True)]
    density = torch.rand(counts[0], 1, generator=made)  # rows differ
    blocks = torch.rand(*sharing, *counts, generator=made) < density
    mask = BlockSparseMask.from_blocks(blocks, *lengths, block_size=sizes, causal=causal)
    kept = mask.dense().flatten(0, 1)
    arrays = mask.arrays(True)
    for at, seen, n, across in ((QUERIES, kept, lengths[0], sizes[1]),
                                (KEYS, kept.mT, lengths[1], sizes[0])):
        for tile, found in orders_of(arrays[at], len(kept), n).items():
            check_order(found, visits(seen, tile, across))


@pytest.mark.parametrize("causal", [False, True])
def test_runs(causal: bool) -> None:
    cuts = torch.tensor([0, 10, 500, 530, 900])
    mask = DocumentMask.from_cumulative(cuts, causal=causal)
    arrays, kept = mask.arrays(True), mask.dense()[0]
    for at, seen in ((QUERIES, kept), (KEYS, kept.mT)):
        for tile, found in orders_of(arrays[OF_RUNS[at]], 1, 900).items():
            # A tile goes from the first key of its first row to the last one of its last.
            check_order(found, visits(seen, tile, 1))


def test_the_orders_of_the_backward_are_made_when_one_is_wanted() -> None:
    mask = BlockSparseMask.from_blocks(torch.ones(2, 2, dtype=torch.bool), 200, 200)
    assert mask.arrays(False)[KEYS] is mask.arrays(False)[QUERIES]
    assert "_order_of_keys" not in vars(mask)
    assert mask.arrays(True)[KEYS] is mask.arrays(True)[KEYS]


READ = """
#include "device/longest_first.h"
template <int SIZE> int read(const fagen_params *p, bool keys, int batch, int head, int rank) {
  return tile_of_rank<SIZE>(keys ? order_of_keys(p->mask) : order_of_queries(p->mask), p->mask,
                            keys ? p->seqlen_kv : p->seqlen_q, batch, head, rank, -1);
}
extern "C" int read_any(int size, const fagen_params *p, bool keys, int batch, int head, int rank) {
  switch (size) {
    case 64: return read<64>(p, keys, batch, head, rank);
    case 128: return read<128>(p, keys, batch, head, rank);
    case 192: return read<192>(p, keys, batch, head, rank);
    case 256: return read<256>(p, keys, batch, head, rank);
    default: return read<96>(p, keys, batch, head, rank);
  }
}
"""


@functools.cache
def reader() -> ctypes.CDLL:
    return compiled(READ)


@pytest.mark.parametrize("pattern", ["blocks48x80", "documents"])
@pytest.mark.parametrize("layout", ["bhsd", "bshd", "padded"])
def test_kernels_read_the_order_of_their_tiles_and_heads(pattern: str, layout: str) -> None:
    problem = Problem.parse(f"bwd-bf16-d64-{pattern}")
    mask = drawn(problem, Case(Workload.parse("b2-h4x2-s700x500"), layout=layout))
    assert mask is not None
    arrays, (batches, heads) = mask.arrays("cpu"), mask.sharing
    params = Params(batch=2, heads=4, seqlen_q=700, seqlen_kv=500)
    point(params, {name: array.data_ptr() for name, array in arrays.items()}, mask.sharing)
    names = RUNS if pattern.startswith("blocks") else ORDERS
    for keys, name, rows in ((False, names[0], 700), (True, names[1], 500)):
        for size, found in orders_of(arrays[name], batches * heads, rows).items():
            for batch, head in itertools.product(range(2), range(4)):
                which = found[batch % batches * heads + head % heads].tolist()
                assert which == [
                    reader().read_any(size, ctypes.byref(params), keys, batch, head, rank)
                    for rank in range(len(which))]
        assert reader().read_any(96, ctypes.byref(params), keys, 0, 0, 0) == -1
    nothing = Params(batch=2, heads=4, seqlen_q=700, seqlen_kv=500)
    assert reader().read_any(64, ctypes.byref(nothing), False, 1, 1, 1) == -1


SLUGS = ("dense", "causal", "blocks128", "documents", "longformer-w64-g64", "blocks64-causal")


@pytest.mark.parametrize("slug", SLUGS)
def test_a_header_is_replaced_where_one_is_included(slug: str) -> None:
    """A kernel that includes no such file would go without the other one too, and work."""
    renderer = Renderer(templates())
    for family in FAMILIES:
        if family.toolchain != "nvcc":
            continue
        for op in family.kernels:
            problem = Problem.parse(f"{op}-bf16-d64-{slug}")
            text = renderer.render(family.default(problem, Target.known("h200"))).text
            instead = family.kernel(op).instead(problem)
            assert all(f"// --- {header}" in text for header in instead)
            assert bool(instead) == (family.name == "sm90" and (
                problem.pattern.is_data or (op == "bwd" and not problem.pattern.interval)))
