"""Which problems the conformance suite covers, and what one test of it does."""

from __future__ import annotations

import itertools
import random

from fagen.cases import long_list, of_workload, short_list
from fagen.families import FAMILIES
from fagen.families.base import Family, Space
from fagen.model import Candidate, Problem
from fagen.pool import Pool, Verdict
from fagen.target import Target
from fagen.workload import Workload

OPS = ("fwd", "bwd")
DTYPES = ("fp32", "bf16", "fp16")
PATTERNS = ("dense", "causal", "causal-topleft", "window64", "window33x20", "window300x0")
HEAD_DIMS = range(8, 257, 8)
# Head dimensions that differ between keys and values, and the ones that models use.
MIXED = ("64x128", "128x64", "192x128", "40x24", "8x256", "256x16")
USUAL = ("64", "96", "128", "256")
# One of each named pattern beyond a single band.
NAMED = (
    "prefix100", "blockdiag48", "blockdiag100-causal", "dilated-w5-d7", "strided-s24-causal",
    "fixed-s32-c4-causal", "longformer-w40-g8", "bigbird-w16-g8-r64-seed7", "butterfly-b16-causal",
    "blocks16x48-causal", "blocks64", "documents", "documents-causal",
    "mix_2_window33x20_causal_longformer-w40-g8",
)
RANDOM_CONFIGS = 6
DRAWS = 2000


def sampled() -> list[str]:
    """Every op with every dtype with every band, every head dimension, and every named pattern;
    packed sequences of every band."""
    slugs = []
    combinations = itertools.product(PATTERNS, DTYPES, OPS)
    for i, (pattern, dtype, op) in enumerate(combinations):
        dim = HEAD_DIMS[i * 11 % len(HEAD_DIMS)]  # 11 and 32 share no factor
        slugs.append(f"{op}-{dtype}-d{dim}-{pattern}")
    for i, (dims, op) in enumerate(itertools.product(MIXED, OPS)):
        slugs.append(f"{op}-{DTYPES[i % 3]}-d{dims}-{PATTERNS[i % 4]}")
    for i, (pattern, op) in enumerate(itertools.product(NAMED, OPS)):
        slugs.append(f"{op}-{DTYPES[i % 3]}-d{(64, 40, 128)[i % 3]}-{pattern}")
    for i, (pattern, op) in enumerate(itertools.product((*PATTERNS, NAMED[1]), OPS)):
        slugs.append(f"{op}-{DTYPES[i % 3]}-d{(64, 40, 128, 72)[i % 4]}-{pattern}+varlen")
    slugs += [f"bwd-{dtype}-d64-causal+deterministic+varlen" for dtype in DTYPES]
    slugs += [f"bwd-{dtype}-d{dim}-causal+deterministic" for dtype in DTYPES for dim in (64, 128)]
    return slugs


def usual() -> list[str]:
    """All combinations for the head dimensions that models use."""
    every = itertools.product(OPS, DTYPES, USUAL, PATTERNS)
    return [f"{op}-{dtype}-d{dim}-{pattern}" for op, dtype, dim, pattern in every]


def defaults(slugs: list[str], target: Target) -> list[Candidate]:
    """The default kernel of every family that serves the problem on the target."""
    problems = [Problem.parse(slug) for slug in dict.fromkeys(slugs)]
    return [
        family.default(problem, target)
        for family in FAMILIES if family.runs_on(target)
        for problem in problems if _serves(family, problem, target)
    ]


def _serves(family: Family, problem: Problem, target: Target) -> bool:
    return problem.op in family.kernels and not family.broken_rules(
        family.default(problem, target)
    )


def others(target: Target) -> list[Candidate]:
    """Some configs that are not the default, the same ones every time."""
    chosen: list[Candidate] = []
    for slug in ("fwd-bf16-d64-causal", "bwd-bf16-d64-causal", "fwd-fp16-d128", "bwd-fp16-d128"):
        for default in defaults([slug], target):
            space, draw = Space(default.problem, target, default.family), random.Random(slug)
            found: dict[Candidate, None] = {}
            for _ in range(DRAWS):
                point = {knob: draw.choice(choices) for knob, choices in space.knobs().items()}
                candidate = space.candidate(point)
                if len(found) < RANDOM_CONFIGS and not default.family.broken_rules(candidate):
                    found[candidate] = None
            chosen += found
    return chosen


def steady(target: Target) -> list[Candidate]:
    """Kernels whose results must not depend on timing."""
    slugs = [f"bwd-bf16-d{dim}-{pattern}+deterministic" for dim in (64, 128)
             for pattern in ("dense", "causal")]
    return defaults([*slugs, "fwd-bf16-d64-causal"], target)


def name(candidate: Candidate) -> str:
    return f"{candidate.family.name}-{candidate.problem}"


def conforms(pool: Pool, candidate: Candidate) -> None:
    """Every case of the long list."""
    cases = long_list(candidate.problem)
    verdict = pool.check(candidate, cases)
    assert isinstance(verdict, Verdict), f"{verdict.reason}\n{verdict.reproduce}"
    assert verdict.cases == len(cases)
    assert 0 < verdict.error <= 1


def passes(pool: Pool, candidate: Candidate) -> None:
    """What the tuner asks of every candidate."""
    verdict = pool.verify(candidate)
    assert isinstance(verdict, Verdict), f"{verdict.reason}\n{verdict.reproduce}"
    assert verdict.cases == len(short_list(candidate.problem))


def repeats(pool: Pool, candidate: Candidate) -> None:
    """The same bits a hundred times, on sizes that keep every core busy."""
    case = of_workload(Workload(2, 16, 4, 1000, 1100))
    verdict = pool.check(candidate, [case], runs=100)
    assert isinstance(verdict, Verdict), f"{verdict.reason}\n{verdict.reproduce}"
