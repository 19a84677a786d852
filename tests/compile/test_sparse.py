"""Sparse patterns in the sm80 family: the default kernels compile for every GPU, without spills."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from fagen import paths
from fagen.build import Builder, Cache, find_nvcc
from fagen.errors import FagenError, SetupError
from fagen.families.sm80 import SM80
from fagen.model import Candidate, Problem
from fagen.patterns import PATTERNS, Band, parse_pattern
from fagen.render import Renderer
from fagen.target import Target

SLUGS = (
    "prefix512", "blockdiag256", "blockdiag100-causal", "dilated-w256-d4", "strided-s128-causal",
    "fixed-s128-c8-causal", "longformer-w256-g64", "longformer-w100-g7-causal",
    "bigbird-w128-g32-r64-seed7", "bigbird-w96-g64-r128-b32-seed1-causal", "butterfly-b128",
    "butterfly-b64-causal",
)
MIXED = ("mix_longformer-w256-g64_2_butterfly-b128_dense",)
OF_THE_CALL = ("blocks128", "blocks32-causal", "documents", "documents-causal")
TARGETS = ("a100", "a10", "l4", "rtx5090")  # sm_80, 86, 89, 120
KINDS = ("fwd-bf16-d64", "fwd-fp16-d128", "fwd-bf16-d256", "bwd-bf16-d64", "bwd-fp16-d128",
         "bwd-bf16-d256")


def candidates() -> list[Candidate]:
    """Every static pattern with every kind; the targets in turn."""
    targets = itertools.cycle(TARGETS)
    chosen = [
        SM80.default(Problem.parse(f"{kind}-{slug}"), Target.known(next(targets)))
        for slug in SLUGS for kind in KINDS
    ]
    # Masks of the call, and mixes, compile much alike: every kind with half of them.
    chosen += [
        SM80.default(Problem.parse(f"{kind}-{slug}"), Target.known(next(targets)))
        for i, slug in enumerate(OF_THE_CALL + MIXED) for kind in KINDS[i % 2 :: 2]
    ]
    more = [f"bwd-bf16-d{dim}-{slug}+deterministic" for dim in (64, 128) for slug in SLUGS[::3]]
    return chosen + [SM80.default(Problem.parse(slug), Target.known("a100")) for slug in more]


def test_every_kind_of_pattern_is_in_the_sample() -> None:
    kinds = {type(parse_pattern(slug)) for slug in SLUGS + OF_THE_CALL + MIXED}
    assert kinds == {row.kind for row in PATTERNS} - {Band}


@pytest.mark.slow
def test_defaults_compile_without_spills() -> None:
    try:
        find_nvcc()
    except SetupError as missing:
        pytest.skip(missing.message)
    builder, renderer = Builder(Cache(paths.cache())), Renderer(paths.templates())

    def trouble(candidate: Candidate) -> str:
        try:
            builder.build(candidate, renderer.render(candidate))
        except FagenError as error:
            return f"{candidate}: {error.message}"
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        assert [text for text in pool.map(trouble, candidates()) if text] == []
