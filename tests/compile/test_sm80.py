"""The sm80 defaults compile for every GPU they claim, without spills, within its shared memory.

A sample that covers every pair of (op, dtype, head dimensions, pattern, target) values; kernels
assert at compile time that their shared memory is what the launch plan asks for.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from fagen import paths
from fagen.build import Builder, Cache, find_nvcc
from fagen.errors import FagenError, SetupError
from fagen.families.base import Space
from fagen.families.sm80 import SM80
from fagen.families.sm80_limits import padded
from fagen.model import Binary, Candidate, Problem
from fagen.render import Renderer
from fagen.target import Target

TARGETS = ("a100", "a10", "l4", "h200", "rtx5090")  # sm_80, 86, 89, 90, 120
OPS = ("fwd", "bwd", "bwd+deterministic")
PATTERNS = ("dense", "causal", "causal-topleft", "window100", "window30x7")
HEAD_DIMS = (*map(str, range(16, 257, 8)), "8", "64x128", "192x128", "128x40", "40x256")
FACTORS: tuple[tuple[str, ...], ...] = (HEAD_DIMS, TARGETS, OPS, PATTERNS, ("bf16", "fp16"))
Row = tuple[str, ...]


def pairs(row: Row) -> set[tuple[int, str, int, str]]:
    return {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)}


def covering(factors: tuple[tuple[str, ...], ...]) -> list[Row]:
    """Rows that contain every pair of values of two factors: greedily the most useful next one."""
    left = {p for row in itertools.product(*factors) for p in pairs(row)}
    rows: list[Row] = []
    for head in itertools.cycle(itertools.product(*factors[:2])):
        if not left:
            return rows
        best = max((head + rest for rest in itertools.product(*factors[2:])),
                   key=lambda row: len(pairs(row) & left))
        if pairs(best) & left:
            rows.append(best)
            left -= pairs(best)
    raise AssertionError("unreachable")


ROWS = covering(FACTORS)


def candidate(row: Row) -> Candidate:
    dims, target, op, pattern, dtype = row
    op, _, feature = op.partition("+")
    slug = f"{op}-{dtype}-d{dims}-{pattern}" + (f"+{feature}" if feature else "")
    return SM80.default(Problem.parse(slug), Target.known(target))


@pytest.fixture(scope="session")
def builder() -> Builder:
    try:
        find_nvcc()
    except SetupError as missing:
        pytest.skip(missing.message)
    return Builder(Cache(paths.cache()))


def built(builder: Builder, chosen: Candidate) -> Binary | str:
    try:
        return builder.build(chosen, Renderer(paths.templates()).render(chosen))
    except FagenError as error:
        return f"{chosen}: {error.message}"


def test_sample_covers_every_pair() -> None:
    covered = {p for row in ROWS for p in pairs(row)}
    for (i, a), (j, b) in itertools.combinations(enumerate(FACTORS), 2):
        for x, y in itertools.product(a, b):
            assert (i, x, j, y) in covered
    assert len(ROWS) < 250


@pytest.mark.parametrize("target", TARGETS)
def test_every_default_is_legal(target: str) -> None:
    for dims, op in itertools.product(HEAD_DIMS, OPS):
        chosen = candidate((dims, target, op, "causal", "bf16"))
        assert not SM80.broken_rules(chosen), str(chosen)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_defaults_compile_without_spills(builder: Builder, target: str) -> None:
    chosen = [candidate(row) for row in ROWS if row[1] == target]
    results = [built(builder, chosen[0])]  # alone: it finds the compiler for all
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results += pool.map(lambda c: built(builder, c), chosen[1:])
    assert [r for r in results if isinstance(r, str)] == []
    for c, binary in zip(chosen, results, strict=True):
        assert isinstance(binary, Binary)
        assert binary.shared_bytes == 0, "shared memory outside the launch plan"
        assert binary.arch == SM80.arch(Target.known(target))
        for step in SM80.kernel(c.problem.op).plan(c).steps:
            assert step.shared_bytes <= c.target.shared_bytes


# Of all defaults (`make compile-all`) the nearest to the limit: a few bytes more would be spilled.
TIGHT: tuple[Row, ...] = (
    ("256", "a100", "bwd+deterministic", "causal", "bf16"),
    ("120", "h200", "bwd", "causal", "fp16"),
    ("248", "h200", "bwd", "causal", "bf16"),
    ("152", "h200", "bwd+deterministic", "causal", "fp16"),
    ("248", "rtx5090", "bwd", "dense", "bf16"),
    ("16", "rtx5090", "bwd+deterministic", "causal", "fp16"),
)


@pytest.mark.slow
@pytest.mark.parametrize("row", TIGHT, ids="-".join)
def test_tight_defaults_compile_without_spills(builder: Builder, row: Row) -> None:
    assert isinstance(built(builder, candidate(row)), Binary)


@pytest.mark.slow
@pytest.mark.parametrize("slug", [
    "fwd-bf16-d64-dense", "fwd-bf16-d128-causal", "fwd-bf16-d128-window100", "fwd-fp16-d96-causal",
    "fwd-bf16-d256-causal", "bwd-bf16-d64-causal", "bwd-bf16-d128-window100",
    "bwd-bf16-d256-dense", "bwd-bf16-d192x128-causal+deterministic",
])
def test_packed_defaults_compile_without_spills(builder: Builder, slug: str) -> None:
    """The place of a sequence takes registers that others have for themselves."""
    chosen = SM80.default(Problem.parse(f"{slug}+varlen"), Target.known("h200"))
    assert not SM80.broken_rules(chosen)
    binary = built(builder, chosen)
    assert isinstance(binary, Binary), binary
    assert binary.spill_bytes == 0


@pytest.mark.parametrize("op", ["fwd", "bwd"])
def test_spaces_are_worth_searching(op: str) -> None:
    for target in TARGETS:
        space = Space(Problem.parse(f"{op}-bf16-d128-causal"), Target.known(target), SM80)
        assert space.census()[0] >= 20, target


def test_head_dims_are_padded_to_one_mma_step_only() -> None:
    assert [padded(d) for d in (16, 24, 40, 80, 256)] == [16, 32, 48, 80, 256]
