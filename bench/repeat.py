"""Every stored kernel launched again and again on its own sizes: the same bits, or it is a race.

    python bench/repeat.py OUTPUT.json --target h200 --runs 1000

Forward kernels, and deterministic backward ones: other backward kernels add up in any order, which
their results show. Every result is verified too. What ``+deterministic`` costs is in the suite
``deterministic`` of ``fagen bench``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fagen import paths
from fagen.build import Builder, Cache
from fagen.cases import of_workload
from fagen.errors import FagenError
from fagen.families import FAMILIES
from fagen.model import Candidate, Entry, Problem
from fagen.pool import Pool, Verdict
from fagen.render import Renderer
from fagen.station import Limits
from fagen.store import Store, candidate
from fagen.target import Target
from fagen.workload import Workload

# No entry of tuned/ is deterministic yet; these are then the defaults.
STEADY = [f"bwd-bf16-d{dim}-{pattern}+deterministic" for dim in (64, 128)
          for pattern in ("dense", "causal")]


def kernels(
    entries: Sequence[Entry], target: Target, steady: Sequence[str], workload: Workload
) -> Iterator[tuple[Candidate, Workload]]:
    """Those whose results must not depend on timing."""
    for entry in entries:
        if entry.target.serves(target) and (
                entry.problem.op == "fwd" or "deterministic" in entry.problem.features):
            try:
                yield candidate(entry, FAMILIES), entry.workload
            except FagenError as error:  # a config of other days is no reason to stop
                print(f"left out: {error.message}", file=sys.stderr)
    for problem in map(Problem.parse, steady):
        for family in FAMILIES:
            if family.runs_on(target) and not family.broken_rules(
                    default := family.default(problem, target)):
                yield default, workload


def row(pool: Pool, kernel: Candidate, workload: Workload, runs: int) -> dict[str, Any]:
    start = time.monotonic()
    verdict = pool.check(kernel, [of_workload(workload)], runs=runs)
    found: dict[str, Any] = {
        "problem": str(kernel.problem), "family": kernel.family.name,
        "config": kernel.family.show(kernel.config), "workload": str(workload), "runs": runs,
        "seconds": round(time.monotonic() - start, 1),
    }
    if isinstance(verdict, Verdict):
        return {**found, "same_bits": True, "error": verdict.error}
    return {**found, "same_bits": False, "reason": verdict.reason, "again": verdict.reproduce}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--target", default="h200", help="entries of what this one can run")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tuned", type=Path, default=None, help="default: those shipped")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steady", action="append", metavar="PROBLEM",
                        help="a default kernel besides. Default: deterministic backward ones")
    parser.add_argument("--workload", type=Workload.parse, default=Workload(2, 16, 16, 4096, 4096),
                        help="of those")
    given = parser.parse_args()
    target, tuned = Target.known(given.target), given.tuned or paths.tuned()
    chosen = list(kernels(Store([], tuned).entries(), target, given.steady or STEADY,
                          given.workload))
    rows: list[dict[str, Any]] = []
    builder, renderer = Builder(Cache(paths.cache())), Renderer(paths.templates())
    with (
        tempfile.TemporaryDirectory() as scratch,
        Pool(builder, renderer, given.device, jobs=os.cpu_count() or 1, scratch=Path(scratch),
             limits=Limits(run=240.0)) as pool,
    ):
        pool.prepare(kernel for kernel, _ in chosen)
        for kernel, workload in chosen:
            rows.append(row(pool, kernel, workload, given.runs))
            print(rows[-1], flush=True)
            result = {"what": f"{given.runs} launches of each kernel, compared bit by bit",
                      "date": datetime.date.today().isoformat(),
                      "command": f"python bench/repeat.py OUTPUT --target {target.name} "
                                 f"--runs {given.runs}",
                      "kernels": len(chosen), "rows": rows}
            given.output.write_text(json.dumps(result, indent=1) + "\n")
    return int(not rows or not all(found["same_bits"] for found in rows))


if __name__ == "__main__":
    sys.exit(main())
