"""Random kernels on random shapes, verified, for as long as it is told to.

    python bench/soak.py OUTPUT.json --target h200 --minutes 10

Problems, configs, sizes, layouts and inputs are drawn from a seed: families that run on the
target, every head dimension, the patterns of the conformance suite, packed and deterministic
kernels, default configs and any legal one. Kernels are compiled ahead on all cores while others
run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fagen import paths
from fagen.build import Builder, Cache
from fagen.cases import FINITE, LAYOUTS, Case
from fagen.errors import FagenError
from fagen.families import FAMILIES
from fagen.families.base import Family, Space
from fagen.model import Candidate, Problem
from fagen.pool import Pool, Verdict
from fagen.render import Renderer
from fagen.target import Target
from fagen.workload import Workload

PATTERNS = (
    "dense", "causal", "causal-topleft", "window64", "window33x20", "prefix100", "blockdiag48",
    "dilated-w5-d7", "strided-s24-causal", "fixed-s32-c4-causal", "longformer-w40-g8",
    "bigbird-w16-g8-r64-seed7", "butterfly-b16-causal", "blocks16x48-causal", "blocks64",
    "documents",
)
DRAWS = 50  # for a legal config
CASES = 12  # of each kernel
AHEAD = 3  # kernels in the making for each core


def problem(draw: random.Random) -> Problem:
    op, pattern = draw.choice(("fwd", "bwd")), draw.choice(PATTERNS)
    dim = 8 * draw.randint(1, 32)
    value = dim if draw.random() < 0.8 else 8 * draw.randint(1, 32)
    dtype = draw.choice(("bf16", "fp16", "fp32"))
    features = "+deterministic" * (op == "bwd" and draw.random() < 0.3)
    is_data = pattern.startswith(("blocks", "documents"))
    features += "+varlen" * (not is_data and draw.random() < 0.3)
    return Problem.parse(f"{op}-{dtype}-d{dim}x{value}-{pattern}{features}")


def config(draw: random.Random, default: Candidate) -> Candidate:
    """Any legal one, or the default where the draws find none."""
    space = Space(default.problem, default.target, default.family)
    for _ in range(DRAWS * (draw.random() < 0.5)):
        point = {knob: draw.choice(choices) for knob, choices in space.knobs().items()}
        found = space.candidate(point)
        if not default.family.broken_rules(found):
            return found
    return default


def candidates(draw: random.Random, target: Target) -> Iterator[Candidate]:
    families: list[Family] = [family for family in FAMILIES if family.runs_on(target)]
    while True:
        asked, family = problem(draw), draw.choice(families)
        if asked.op not in family.kernels:
            continue
        default = family.default(asked, target)
        if not family.broken_rules(default):
            yield config(draw, default)


def case(draw: random.Random, asked: Problem, longest: int) -> Case:
    """Short sequences more often than long ones, and every length possible."""
    def length() -> int:
        return max(1, int(longest ** draw.random() * draw.random() ** 0.3))

    kv_heads = draw.randint(1, 3)
    rows, keys = length(), length()
    if draw.random() < 0.3:
        keys = rows
    batch, totals = draw.randint(1, 3), {}
    if "varlen" in asked.features:
        batch = draw.randint(1, 12)
        totals = {"total_q": draw.randint(rows, batch * rows),
                  "total_kv": draw.randint(keys, batch * keys)}
    sizes = Workload(batch, kv_heads * draw.choice((1, 2, 4)), kv_heads, rows, keys, **totals)
    inputs = "normal" if draw.random() < 0.7 else draw.choice(FINITE)
    return Case(sizes, inputs, draw.choice(LAYOUTS), dlse=asked.op == "bwd" and draw.random() < 0.3)


def soak(
    pool: Pool, draw: random.Random, target: Target, seconds: float, longest: int, jobs: int
) -> dict[str, Any]:
    ends, source = time.monotonic() + seconds, candidates(draw, target)
    waiting: deque[Candidate] = deque()
    counts: Counter[str] = Counter()
    failures: list[dict[str, str]] = []
    worst = 0.0
    while time.monotonic() < ends:
        while len(waiting) < AHEAD * jobs:
            waiting.append(next(source))
            pool.prepare([waiting[-1]])
        kernel = waiting.popleft()
        cases = [case(draw, kernel.problem, longest) for _ in range(CASES)]
        verdict = pool.check(kernel, cases)
        if isinstance(verdict, Verdict):
            counts["kernels"] += 1
            counts["cases"] += verdict.cases
            counts[kernel.family.name] += 1
            worst = max(worst, verdict.error)
        elif verdict.stage == "build":  # the compiler's word on registers, which rules only guess
            counts["refused by the compiler"] += 1
        else:
            failures.append({"kernel": str(kernel), "kind": verdict.kind, "reason": verdict.reason,
                             "again": verdict.reproduce})
            print(failures[-1], flush=True)
    return {**counts, "worst_error_of_bound": worst, "failures": failures}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--target", default="h200")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--longest", type=int, default=2048, help="rows of a sequence")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    builder, renderer = Builder(Cache(paths.cache())), Renderer(paths.templates())
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            Pool(builder, renderer, given.device, jobs=given.jobs, scratch=Path(scratch)) as pool,
        ):
            found = soak(pool, random.Random(given.seed), Target.known(given.target),
                         60 * given.minutes, given.longest, given.jobs)
    except FagenError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    result = {"what": f"random kernels on random shapes for {given.minutes:g} minutes",
              "date": datetime.date.today().isoformat(), "seed": given.seed,
              "command": f"python bench/soak.py OUTPUT --target {given.target} --minutes "
                         f"{given.minutes:g} --seed {given.seed}", **found}
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "failures"}))
    return int(bool(found["failures"]) or not found.get("kernels"))


if __name__ == "__main__":
    sys.exit(main())
