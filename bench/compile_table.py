"""Every default kernel of the GPU families, compiled for every GPU they claim: one line each.

    python bench/compile_table.py bench/results/compile-table.csv

Head dimensions 16 to 256 in steps of 8, forward, backward and deterministic backward, dense,
causal and window, bf16 and fp16. It needs nvcc and no GPU. The build cache makes a second run
quick, and one that was stopped goes on where it was. Exits with 1 when a kernel does not compile,
spills, draws advice from the compiler or asks for more shared memory than its GPU has.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fagen import compilers, paths
from fagen.build import Builder, Cache
from fagen.errors import FagenError
from fagen.families.base import Family
from fagen.families.sm80 import SM80
from fagen.families.sm90 import SM90
from fagen.model import Candidate, Problem
from fagen.render import Renderer
from fagen.target import Target

# compute capability 8.0, 8.6, 8.9, 9.0, 12.0
GPUS: tuple[tuple[Family, str], ...] = (
    *((SM80, name) for name in ("a100", "a10", "l4", "h200", "rtx5090")), (SM90, "h200"),
)
OPS = ("fwd", "bwd", "bwd+deterministic")
PATTERNS = ("dense", "causal", "window1024")
HEADER = ("family", "arch", "problem", "config", "registers", "spill_bytes", "shared_bytes",
          "advice", "seconds", "failure")


def candidates() -> Iterator[Candidate]:
    grid = itertools.product(GPUS, OPS, PATTERNS, ("bf16", "fp16"), range(16, 257, 8))
    for (family, gpu), op, pattern, dtype, dim in grid:
        op, _, feature = op.partition("+")
        problem = Problem.parse(f"{op}-{dtype}-d{dim}-{pattern}" + f"+{feature}" * bool(feature))
        yield family.default(problem, Target.known(gpu))


def row(builder: Builder, renderer: Renderer, chosen: Candidate) -> tuple[object, ...]:
    family = chosen.family
    named = (family.name, family.arch(chosen.target), str(chosen.problem),
             family.show(chosen.config))
    shared = max(step.shared_bytes for step in family.kernel(chosen.problem.op).plan(chosen).steps)
    try:
        binary = builder.build(chosen, renderer.render(chosen), allow_spills=True, timeout=600)
    except FagenError as error:
        return *named, "", "", shared, "", "", error.message.splitlines()[0]
    failure = ("spills" if binary.spill_bytes else "advice" if binary.advice else
               "shared memory" if shared > chosen.target.shared_bytes else "")
    return (*named, binary.registers, binary.spill_bytes, shared, " ".join(binary.advice),
            f"{binary.seconds:.1f}", failure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    builder, renderer = Builder(Cache(paths.cache())), Renderer(paths.templates())
    chosen = list(candidates())
    rows = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for done, made in enumerate(pool.map(lambda c: row(builder, renderer, c), chosen), 1):
            rows.append(made)
            if done % 50 == 0:
                print(f"{done} of {len(chosen)}", file=sys.stderr, flush=True)
    with given.output.open("w", newline="") as file:
        print(f"# {compilers.nvcc().identity}; {datetime.date.today().isoformat()}; "
              "python bench/compile_table.py bench/results/compile-table.csv", file=file)
        csv.writer(file).writerows([HEADER, *rows])
    failed = [made for made in rows if made[-1]]
    for made in failed:
        print("failed:", *made, file=sys.stderr)
    print(f"{len(rows)} kernels, {len(failed)} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
