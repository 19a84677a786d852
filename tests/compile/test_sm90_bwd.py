"""The sm90 backward compiles cleanly, and its launch plan agrees with its source."""

from __future__ import annotations

import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from fagen import compilers, paths
from fagen.build import Builder, Cache
from fagen.errors import FagenError, SetupError
from fagen.families.base import Family, Space
from fagen.families.sm90_bwd import BWD
from fagen.model import Candidate, Problem
from fagen.render import Renderer
from fagen.target import Target
from fagen.workload import Workload

H200 = Target.known("h200")
FAMILY = Family(
    "sm90", "the backward alone", "nvcc", {"bwd": BWD}, lambda t: True, lambda t: "sm_90a"
)

# Every head dim with its own tiling, each pattern and dtype, in pairs that cover all.
SAMPLE = [
    "bwd-bf16-d64-dense", "bwd-fp16-d64-causal", "bwd-bf16-d64-window128x64",
    "bwd-bf16-d128-dense", "bwd-fp16-d128-window1024", "bwd-bf16-d128-causal",
    "bwd-fp16-d80-dense", "bwd-bf16-d80-causal", "bwd-bf16-d96-dense", "bwd-fp16-d96-causal",
    "bwd-fp16-d192-causal", "bwd-bf16-d192x128-window256", "bwd-bf16-d256-dense",
    "bwd-fp16-d256-causal", "bwd-bf16-d40-causal-topleft", "bwd-bf16-d64x128-causal",
    "bwd-bf16-d64-causal+deterministic", "bwd-bf16-d128-dense+deterministic",
    "bwd-bf16-d256-causal+deterministic", "bwd-bf16-d64-longformer-w256-g64",
    "bwd-fp16-d128-bigbird-w192-g64-r192-seed1", "bwd-bf16-d256-butterfly-b64-causal",
    "bwd-bf16-d128-strided-s128-causal+deterministic", "bwd-bf16-d96-blockdiag512-causal",
    "bwd-bf16-d64-blocks128-causal", "bwd-bf16-d128-blocks64x128+deterministic",
    "bwd-fp16-d256-blocks128", "bwd-bf16-d128-documents-causal",
    "bwd-bf16-d64-documents+deterministic",
    "bwd-bf16-d64-causal+varlen", "bwd-bf16-d128-dense+varlen",
    "bwd-fp16-d256-causal+deterministic+varlen",
]

# Patterns whose steps are looked for, and documents, each with a head dim of every kind of default.
SPARSE = ("longformer-w256-g64", "butterfly-b128", "bigbird-w128-g32-r64-seed7", "blocks128",
          "strided-s128-causal", "dilated-w256-d4", "fixed-s128-c8-causal", "documents")
DIMS = ((40, 64, 16, 48), (80, 96, 112), (128, 120), (160, 256, 192, 224))
SPARSE_SAMPLE = [
    f"bwd-{('bf16', 'fp16')[(i + j) % 2]}-d{dims[i % len(dims)]}-{pattern}"
    for i, pattern in enumerate(SPARSE) for j, dims in enumerate(DIMS)
]


def _default(slug: str) -> Candidate:
    return FAMILY.default(Problem.parse(slug), H200)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    try:
        compilers.nvcc()
    except SetupError as missing:
        pytest.skip(missing.message)
    return Builder(Cache(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("slug", SAMPLE)
def test_default_compiles_without_spills_or_advice(builder: Builder, slug: str) -> None:
    candidate = _default(slug)
    binary = builder.build(candidate, Renderer(paths.templates()).render(candidate))
    assert binary.spill_bytes == 0
    assert binary.advice == ()
    # setmaxnreg deals out what the launch brings: with fewer registers it would wait for ever.
    assert binary.registers == 65536 // candidate.config.threads // 8 * 8


@pytest.mark.slow
def test_sparse_defaults_compile_without_spills_or_advice(builder: Builder) -> None:
    def trouble(slug: str) -> str:
        candidate = _default(slug)
        try:
            binary = builder.build(candidate, Renderer(paths.templates()).render(candidate))
        except FagenError as error:
            return f"{candidate}: {error.message}"
        return "".join(f"{candidate}: {advice}" for advice in binary.advice)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        assert [text for text in pool.map(trouble, SPARSE_SAMPLE) if text] == []


# The dQ warpgroup also counts and finishes: all widths of pieces, and what else wants registers.
COUNTED = [
    ("bwd-bf16-d64-causal", {"block_m": 128, "p_fp32": False}),
    ("bwd-fp16-d64-dense", {"dq_columns": 128}),
    ("bwd-bf16-d64-window128x64+deterministic", {"block_m": 128, "p_fp32": False}),
    ("bwd-bf16-d128-causal", {"stages_ds": 1, "stages_dq": 1, "p_fp32": False}),
    ("bwd-fp16-d128-window1024+deterministic", {}),
    ("bwd-bf16-d96-dense+varlen", {}),
    ("bwd-fp16-d80-prefix512", {"p_fp32": False}),
    ("bwd-bf16-d256-causal+deterministic", {}),
]


@pytest.mark.parametrize(("slug", "knobs"), COUNTED)
def test_counted_sums_compile_without_spills_or_advice(
    builder: Builder, slug: str, knobs: dict[str, Any]
) -> None:
    own = {"dq": "own", "sums": "counted", "block_m": 64, "dq_columns": 64}
    candidate = _default(slug).with_config(**{**own, **knobs})
    assert [rule.says for rule in FAMILY.broken_rules(candidate)] == []
    binary = builder.build(candidate, Renderer(paths.templates()).render(candidate))
    assert (binary.spill_bytes, binary.advice) == (0, ())
    assert binary.registers == 65536 // candidate.config.threads // 8 * 8


# A CTA that takes key blocks from a counter: who makes dQ, both kinds of sums, one place for K and
# V and two, and what each leaves the fewest registers to.
OWN = {"dq": "own", "block_m": 64, "stages_ds": 1, "stages_dq": 1, "p_fp32": False}
RESIDENT: list[tuple[str, dict[str, Any]]] = [
    ("bwd-bf16-d64-causal", {"dq": "delayed", "block_m": 128, "stages_do": 3, "stages_ds": 2}),
    ("bwd-fp16-d64-dense", {"dq": "lockstep", "block_m": 128, "stages_do": 1, "stages_kv": 2}),
    ("bwd-bf16-d64-causal", {**OWN, "block_m": 128, "sums": "counted"}),
    ("bwd-bf16-d64-window128x64", {**OWN, "sums": "counted", "stages_kv": 2}),
    ("bwd-bf16-d128-causal", {**OWN, "stages_kv": 2}),
    ("bwd-bf16-d128-dense", {**OWN, "stages_kv": 2, "sums": "counted"}),
    ("bwd-fp16-d128-dense+deterministic", OWN),
    ("bwd-bf16-d256-causal", {"sums": "counted"}),
]


@pytest.mark.parametrize(("slug", "knobs"), RESIDENT)
def test_resident_ctas_compile_without_spills_or_advice(
    builder: Builder, slug: str, knobs: dict[str, Any]
) -> None:
    candidate = _default(slug).with_config(schedule="dynamic", **knobs)
    assert [rule.says for rule in FAMILY.broken_rules(candidate)] == []
    binary = builder.build(candidate, Renderer(paths.templates()).render(candidate))
    assert (binary.spill_bytes, binary.advice) == (0, ())
    assert binary.registers == 65536 // candidate.config.threads // 8 * 8


def test_two_key_blocks_just_fit() -> None:
    candidate = _default("bwd-bf16-d128-causal").with_config(
        **OWN, schedule="dynamic", stages_kv=2, sums="counted")
    assert H200.shared_bytes - 2048 < candidate.config.shared_bytes(candidate.problem)
    assert candidate.config.shared_bytes(candidate.problem) <= H200.shared_bytes


def test_resident_ctas_are_as_many_as_sms() -> None:
    """And what they count is the last piece of scratch memory."""
    for slug, regions in (("bwd-bf16-d64-dense", 3), ("bwd-bf16-d64-dense+deterministic", 4)):
        candidate = _default(slug)
        assert BWD.plan(candidate).steps[1].ctas_per_sm == 0
        plan = BWD.plan(candidate.with_config(schedule="dynamic"))
        assert plan.steps[1].ctas_per_sm == 1
        assert len(plan.regions) == regions
        w = Workload(batch=2, heads=4, kv_heads=2, seqlen_q=130, seqlen_kv=129)
        assert plan.regions[-1].bytes.value(w) == 16


def test_resident_ctas_leave_wide_heads_no_wide_pieces_of_dq() -> None:
    """Their loading warps take what those would need."""
    wide = _default("bwd-bf16-d256-causal").with_config(dq_columns=128, stages_dq=1)
    assert FAMILY.broken_rules(wide) == ()
    broken = FAMILY.broken_rules(wide.with_config(schedule="dynamic"))
    assert [rule.says for rule in broken] == ["the accumulators fit in registers"]


@pytest.mark.parametrize("rest", ["causal+varlen", "longformer-w64-g20", "documents"])
def test_resident_ctas_serve_one_run_known_beforehand(rest: str) -> None:
    candidate = _default(f"bwd-bf16-d64-{rest}").with_config(schedule="dynamic")
    assert any("one run of query tiles" in r.says for r in FAMILY.broken_rules(candidate))


def test_counted_sums_need_no_kernel_behind() -> None:
    candidate = _default("bwd-bf16-d128-causal").with_config(dq="own", sums="counted")
    plan = BWD.plan(candidate)
    assert [step.symbol for step in plan.steps] == ["bwd_pre", "bwd_main"]
    assert len(plan.regions) == 3
    assert "\nbwd_post(" not in Renderer(paths.templates()).render(candidate).text


def test_a_wide_tile_is_converted_in_more_than_48_kib(builder: Builder) -> None:
    """What a static array may not have."""
    candidate = _default("bwd-bf16-d192x64-dense").with_config(
        roles="split", dq="own", block_m=128, stages_ds=1, dq_columns=64, stages_dq=1)
    assert FAMILY.broken_rules(candidate) == ()
    assert BWD.plan(candidate).steps[2].shared_bytes > 48 * 1024
    binary = builder.build(candidate, Renderer(paths.templates()).render(candidate))
    assert (binary.spill_bytes, binary.advice) == (0, ())


def test_source_rejects_a_plan_that_allocates_otherwise(builder: Builder) -> None:
    candidate = _default("bwd-bf16-d64-dense")
    source = Renderer(paths.templates()).render(candidate)
    planned = f"SHARED_BYTES == {candidate.config.shared_bytes(candidate.problem)}"
    assert planned in source.text
    text = source.text.replace(planned, "SHARED_BYTES == 1024")
    wrong = replace(source, text=text, digest=hashlib.sha256(text.encode()).hexdigest())
    with pytest.raises(Exception, match="the launch plan allocates otherwise"):
        builder.build(candidate, wrong)


@pytest.mark.parametrize("dim", range(16, 257, 8))
@pytest.mark.parametrize("pattern", ["dense", "causal", "butterfly-b64"])
def test_every_head_dim_has_a_legal_default(dim: int, pattern: str) -> None:
    candidate = _default(f"bwd-bf16-d{dim}-{pattern}")
    assert [rule.says for rule in FAMILY.broken_rules(candidate)] == []


@pytest.mark.parametrize("dims", ["d192x128", "d64x256", "d256x64", "d72x40", "d128x64", "d160x96"])
def test_unequal_head_dims_have_a_legal_default(dims: str) -> None:
    candidate = _default(f"bwd-fp16-{dims}-causal")
    assert [rule.says for rule in FAMILY.broken_rules(candidate)] == []


def test_every_rule_removes_something() -> None:
    never, dice = {rule.says for rule in BWD.rules}, random.Random(0)
    for slug in ("bwd-fp32-d8-dense+varlen", "bwd-bf16-d128-dense", "bwd-bf16-d256-causal"):
        space = Space(Problem.parse(slug), H200, FAMILY)
        for _ in range(1000):
            knobs = {name: dice.choice(choices) for name, choices in space.knobs().items()}
            never -= {rule.says for rule in FAMILY.broken_rules(space.candidate(knobs))}
    assert never == set()


def test_plan_follows_the_workload() -> None:
    candidate = _default("bwd-bf16-d64-dense")
    plan = BWD.plan(candidate)
    w = Workload(batch=2, heads=4, kv_heads=2, seqlen_q=130, seqlen_kv=129)
    assert [step.symbol for step in plan.steps] == ["bwd_pre", "bwd_main", "bwd_post"]
    assert [factor.value(w) for factor in plan.steps[0].grid] == [2, 4, 2]
    assert plan.steps[1].grid[0].value(w) == 2 * 2 * 2  # key blocks of 128, heads, batch
    rows = 2 * 4 * 256  # padded to tiles of 128
    assert [region.bytes.value(w) for region in plan.regions] == [8 * rows, 4 * 64 * rows]
