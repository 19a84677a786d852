"""The sm90 forward compiles cleanly over the corners of its space, and its formulas hold."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from fagen import compilers, paths
from fagen.build import Builder, Cache
from fagen.errors import BuildError, SetupError
from fagen.families.base import Space
from fagen.families.sm90 import SM90
from fagen.families.sm90_sizes import swizzle
from fagen.model import Candidate, Problem
from fagen.render import Renderer
from fagen.target import Target
from fagen.workload import Workload

H200 = Target.known("h200")
PATTERNS = ("dense", "causal", "causal-topleft", "window300", "window64x64")

# Each head dimension with a tiling of its own, every pattern and dtype with some of them.
DEFAULTS = [
    "fwd-bf16-d64-dense", "fwd-fp16-d64-causal", "fwd-bf16-d128-dense", "fwd-bf16-d128-causal",
    "fwd-fp16-d128-window1024", "fwd-bf16-d256-causal", "fwd-fp16-d256-window64x64",
    "fwd-bf16-d80-causal", "fwd-bf16-d96-causal-topleft", "fwd-fp16-d104-dense",
    "fwd-bf16-d160-causal", "fwd-bf16-d192-dense", "fwd-bf16-d192x128-causal",
    "fwd-bf16-d64x128-dense", "fwd-fp16-d40x24-causal", "fwd-bf16-d8x256-dense",
    "fwd-fp16-d8-window300", "fwd-bf16-d128-prefix512", "fwd-fp16-d64-blockdiag100-causal",
    "fwd-bf16-d64-longformer-w256-g64", "fwd-bf16-d128-bigbird-w96-g64-r128-b32-seed1-causal",
    "fwd-fp16-d256-bigbird-w128-g32-r64-seed7", "fwd-fp16-d80-strided-s128-causal",
    "fwd-bf16-d192x128-dilated-w256-d4", "fwd-bf16-d128-butterfly-b128",
    "fwd-fp16-d160-fixed-s128-c8", "fwd-bf16-d128-blocks128", "fwd-bf16-d256-blocks32-causal",
    "fwd-fp16-d128-documents", "fwd-bf16-d64-causal+varlen", "fwd-fp16-d128-dense+varlen",
    "fwd-bf16-d256-window300+varlen",
]
# Head dimensions whose spaces differ in kind: small tiles, swizzles of 32 and 64 bytes, full ones.
CORNERS = ("64", "72", "96", "128", "256", "192x128")


def default(slug: str) -> Candidate:
    return SM90.default(Problem.parse(slug), H200)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    try:
        compilers.nvcc()
    except SetupError as missing:
        pytest.skip(missing.message)
    return Builder(Cache(tmp_path_factory.mktemp("cache")))


def assert_clean(builder: Builder, candidate: Candidate) -> None:
    binary = builder.build(candidate, Renderer(paths.templates()).render(candidate))
    assert binary.spill_bytes == 0
    assert binary.advice == ()
    # setmaxnreg deals out what the launch brings: with fewer registers it would wait for ever.
    per_cta = 65536 // (candidate.config.threads * candidate.config.ctas_per_sm)
    assert -(-binary.registers // 8) * 8 == per_cta // 8 * 8


def pairwise(dims: str, points: int = 60) -> Iterator[Candidate]:
    """Legal points, chosen greedily so that few of them show every legal pair of choices. A head
    dimension takes three of the patterns, each in one dtype; together they take them all."""
    draw = random.Random(dims)
    pool = []
    for n in range(3):
        turn = 2 * n + CORNERS.index(dims)
        pattern, dtype = PATTERNS[turn % len(PATTERNS)], ("bf16", "fp16")[turn // 2 % 2]
        problem = Problem.parse(f"fwd-{dtype}-d{dims}-{pattern}")
        legal = list(Space(problem, H200, SM90).legal())
        pool += draw.sample(legal, min(points, len(legal)))
    pairs = {c: set(itertools.combinations(_choices(c), 2)) for c in pool}
    wanted = set().union(*pairs.values())
    while wanted:
        best = max(pool, key=lambda c: len(pairs[c] & wanted))
        wanted -= pairs[best]
        yield best


def _choices(c: Candidate) -> list[str]:
    knobs = SM90.show(c.config).split(",")
    return [*knobs, str(c.problem.pattern), c.problem.dtype]


@pytest.mark.parametrize("slug", DEFAULTS)
def test_default_compiles_without_spills_or_advice(builder: Builder, slug: str) -> None:
    assert_clean(builder, default(slug))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("dims", CORNERS)
def test_corners_compile_without_spills_or_advice(builder: Builder, dims: str) -> None:
    dirty = []
    for candidate in pairwise(dims):
        try:
            assert_clean(builder, candidate)
        except BuildError as error:
            dirty.append(f"{candidate}: {error.message}")
    assert not dirty, "\n".join(dirty)


# Of a grown space, what a covering sample may miss: the most keys, three stages of 96, half blocks
# with no register to spare.
TIGHT = [
    ("fwd-fp16-d64-window300", {"warpgroups": 1, "ctas_per_sm": 2, "block_n": 176,
                                "softmax": "lazy", "ping_pong": False, "stages": 2}),
    ("fwd-fp16-d112-window300", {"warpgroups": 3, "block_n": 96, "stages": 3}),
    ("fwd-bf16-d64-causal", {"warpgroups": 3, "block_n": 128, "stages": 2, "half_blocks": True}),
    ("fwd-bf16-d96-window64x64", {"warpgroups": 3, "block_n": 96, "stages": 2, "softmax": "exact",
                                  "half_blocks": True}),
    ("fwd-bf16-d64-blocks32", {"warpgroups": 3, "block_n": 64, "stages": 2, "schedule": "snake"}),
    ("fwd-bf16-d64-causal", {"block_n": 64, "stages": 4, "ping_pong": False, "seam": "early"}),
    ("fwd-fp16-d64-window300", {"block_n": 64, "stages": 3, "seam": "early"}),
]


@pytest.mark.parametrize(("slug", "knobs"), TIGHT, ids=[row[0] for row in TIGHT])
def test_tight_points_compile_without_spills(
    builder: Builder, slug: str, knobs: dict[str, Any]
) -> None:
    candidate = default(slug)
    fitting = (candidate.with_config(**knobs, q_buffers=q_buffers, epilogue=epilogue)
               for q_buffers in (2, 1) for epilogue in ("staged", "direct"))
    assert_clean(builder, next(c for c in fitting if not SM90.broken_rules(c)))


def test_one_warpgroup_with_half_of_an_sm_has_no_room_for_192_keys_under_a_window() -> None:
    knobs = {"warpgroups": 1, "ctas_per_sm": 2, "block_n": 192, "stages": 2, "ping_pong": False,
             "q_buffers": 1, "epilogue": "direct"}
    for pattern, allowed in (("window300", False), ("window64x64", False), ("dense", True)):
        broken = SM90.broken_rules(default(f"fwd-fp16-d64-{pattern}").with_config(**knobs))
        assert any("half of an SM" in rule.says for rule in broken) != allowed


@pytest.mark.parametrize(("slug", "block_n", "allowed"), [
    ("fwd-bf16-d64-causal", 128, True), ("fwd-bf16-d64-causal", 80, True),
    ("fwd-bf16-d64-causal", 64, False),  # 64 rows reach the end of 64 keys
    ("fwd-bf16-d64-dense", 128, False), ("fwd-bf16-d64-window64x64", 128, True),
    ("fwd-bf16-d64-prefix512", 128, True), ("fwd-bf16-d64-causal+varlen", 128, False),
    ("fwd-bf16-d64-longformer-w256-g64", 128, False),
])
def test_half_blocks_are_for_rows_that_end_within_a_block(
    slug: str, block_n: int, allowed: bool
) -> None:
    knobs = {"warpgroups": 2, "block_n": block_n, "stages": 2, "half_blocks": True}
    broken = SM90.broken_rules(default(slug).with_config(**knobs))
    assert any("half blocks" in rule.says for rule in broken) != allowed


def test_an_anchor_for_112_keys_wants_more_registers_than_three_warpgroups_leave() -> None:
    knobs = {"warpgroups": 3, "block_n": 112, "stages": 2}
    for softmax, allowed in (("anchored", False), ("lazy", True), ("exact", True)):
        candidate = default("fwd-bf16-d96-causal").with_config(**knobs, softmax=softmax)
        broken = SM90.broken_rules(candidate)
        assert any("anchored" in rule.says for rule in broken) != allowed


def test_source_asserts_the_shared_memory_of_the_plan(builder: Builder) -> None:
    candidate = default("fwd-bf16-d64-dense")
    plan = SM90.kernel("fwd").plan(candidate)
    source = Renderer(paths.templates()).render(candidate)
    said = f"SHARED_BYTES == {plan.steps[0].shared_bytes}"
    assert said in source.text
    wrong = source.text.replace(said, said + "0")
    with pytest.raises(BuildError):
        builder.build(candidate, type(source)(wrong, "0" * 64, source.language))


@pytest.mark.parametrize("dim", range(8, 257, 8))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_head_dim_has_a_legal_default(dim: int, pattern: str) -> None:
    for dims in (f"{dim}", f"{dim}x64", f"{dim}x256"):
        candidate = default(f"fwd-bf16-d{dims}-{pattern}")
        assert SM90.broken_rules(candidate) == ()


@pytest.mark.parametrize("dims", CORNERS)
def test_space_is_small(dims: str) -> None:
    space = Space(Problem.parse(f"fwd-bf16-d{dims}-causal"), H200, SM90)
    # Schedules and seams are five of six; half have half blocks, half load otherwise.
    assert 10 <= sum(1 for _ in space.legal()) <= 4400


@pytest.mark.parametrize("dim", range(8, 257, 8))
def test_boxes_are_what_tma_allows(dim: int) -> None:
    plan = SM90.kernel("fwd").plan(default(f"fwd-bf16-d{dim}-causal"))
    boxes = plan.steps[-1].maps
    assert [box.tensor for box in boxes] == ["q", "k", "v", "o"]
    for box in boxes:
        assert box.box_dim * 2 == box.swizzle == swizzle(-(-dim // 16) * 16)
        assert 8 <= box.box_rows <= 256
        assert box.box_rows % 8 == 0
        assert box.l2_fetch == 256


@pytest.mark.parametrize("op", ["fwd", "bwd"])
def test_what_a_load_brings_into_the_l2_cache_is_the_launchers_alone(op: str) -> None:
    wide = default(f"{op}-bf16-d128-causal")
    narrow = wide.with_config(l2_fetch=128)
    kernel, renderer = SM90.kernel(op), Renderer(paths.templates())
    for candidate, fetch in ((wide, 256), (narrow, 128)):
        maps = [m for step in kernel.plan(candidate).steps for m in step.maps]
        assert {m.l2_fetch for m in maps} == {fetch}
    assert renderer.render(wide).digest == renderer.render(narrow).digest


def test_only_a_dynamic_schedule_needs_scratch_memory_and_a_kernel_before() -> None:
    workload = Workload(1, 1, 1, 64, 64)
    for schedule, symbols, scratch in (
        ("dynamic", ["fwd_zero", "fwd"], 256), ("snake", ["fwd"], 0), ("grid", ["fwd"], 0),
    ):
        candidate = default("fwd-bf16-d128-causal").with_config(schedule=schedule)
        plan = SM90.kernel("fwd").plan(candidate)
        assert [step.symbol for step in plan.steps] == symbols
        assert plan.steps[-1].overlap == (schedule == "dynamic")
        assert not plan.steps[0].overlap  # all before it has ended
        assert plan.workspace_bytes(workload) == scratch
        text = Renderer(paths.templates()).render(candidate).text
        assert ("fwd_zero(" in text) == (len(symbols) == 2)


def test_bytes_moved_shrink_with_the_tile() -> None:
    workload = Workload(1, 8, 8, 4096, 4096)
    small = default("fwd-bf16-d128-causal").with_config(warpgroups=1, ping_pong=False)
    large = small.with_config(warpgroups=2)
    moved = SM90.kernel("fwd").bytes_moved
    assert moved(small, workload) > moved(large, workload) > workload.min_bytes(small.problem)
