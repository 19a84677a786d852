"""One package that has a kernel for every cell of some benchmark suites, compiled on all cores.

    python bench/suite_package.py build/h200_attention --target h200 core extra packed sparse

A cell's kernel is the stored one for its problem at the nearest sizes, stale or not; else that of
its like in bf16; else the family's default. What was taken stands in the manifest's ``origin``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from fagen import paths
from fagen.build import Builder, Cache
from fagen.emit import Shipped, destination, emit
from fagen.errors import FagenError
from fagen.families import FAMILIES, families_for
from fagen.kerneltable import Part
from fagen.model import Candidate, Entry, Measurement, Problem
from fagen.render import Renderer
from fagen.store import Store, candidate
from fagen.suites import suite
from fagen.target import Target
from fagen.workload import Workload

UNTIMED = Measurement(1, 1, 1, 1, 0, "")


def wanted(suites: Iterable[str]) -> Iterator[tuple[Problem, Workload]]:
    """Each problem and size once; a package chooses by sizes, not by how much a mask keeps."""
    cells = (cell for name in suites for cell in suite(name))
    yield from dict.fromkeys(
        (problem, replace(cell.workload, density=0)) for cell in cells for problem in cell.problems
    )


def kernel(
    problem: Problem, workload: Workload, target: Target, store: Store
) -> tuple[Candidate, str]:
    """And where its config comes from."""
    for asked, origin in ((problem, "tuned"), (replace(problem, dtype="bf16"), "tuned in bf16")):
        entry = store.find(asked, target, workload)
        if entry is None:
            continue
        try:
            found = replace(candidate(entry, FAMILIES), problem=problem, target=target)
            if not found.family.broken_rules(found):
                return found, origin
        except FagenError:  # a config of other days
            continue
    return families_for(problem, target)[0].default(problem, target), "default"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("suites", nargs="+", metavar="SUITE")
    parser.add_argument("--target", default="h200")
    parser.add_argument("--tuned", type=Path, default=None, help="looked into first")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    target, renderer = Target.known(given.target), Renderer(paths.templates())
    builder, store = Builder(Cache(paths.cache())), Store(
        [paths.tuned()], given.tuned or paths.tuned())
    given.output.parent.mkdir(parents=True, exist_ok=True)
    destination(given.output)

    def made(asked: tuple[Problem, Workload]) -> Shipped | str:
        problem, workload = asked
        chosen, origin = kernel(problem, workload, target, store)
        try:
            source = renderer.render(chosen)
            binary = builder.build(chosen, source, allow_spills=True, timeout=600)
        except FagenError as error:
            return f"{problem} {workload}: {error.message}"
        entry = Entry(problem, target, workload, chosen.family.name, asdict(chosen.config), UNTIMED,
                      provenance={"origin": origin, "spills": binary.spill_bytes})
        return Shipped(Part(chosen, source, binary), entry)

    with ThreadPoolExecutor(given.jobs) as threads:
        results = list(threads.map(made, wanted(given.suites)))
    shipped = [result for result in results if isinstance(result, Shipped)]
    failed = [result for result in results if isinstance(result, str)]
    print(*failed, sep="\n", file=sys.stderr)
    emit(shipped, given.output)
    counts = Counter(str(s.entry.provenance["origin"]) for s in shipped)
    print(f"{given.output}: {len(shipped)} kernels, {dict(counts)}, {len(failed)} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
