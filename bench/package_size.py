"""How large a package gets and how long emitting takes, for one GPU; needs nvcc and no GPU.

    python bench/package_size.py h200 bench/results/package-size.json

Forward and backward, head dimensions 64, 96, 128 and 256, dense, causal and window, bf16 and fp16,
each with its default config: 48 kernels, compiled ahead of the measurement if need be. Then
``fagen emit --wheel`` runs twice from the warm build cache, and the two packages are compared byte
by byte. The entries hold no measurement: nothing here was timed on a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from fagen import compilers, paths
from fagen.build import Builder, Cache
from fagen.families import families_for
from fagen.model import Binary, Entry, Measurement, Problem
from fagen.render import Renderer
from fagen.store import Store
from fagen.target import Target
from fagen.workload import Workload

SLUGS = [f"{op}-{dtype}-d{dim}-{pattern}" for op, dtype, dim, pattern in itertools.product(
    ("fwd", "bwd"), ("bf16", "fp16"), (64, 96, 128, 256), ("dense", "causal", "window1024"))]
MOST_BYTES, MOST_SECONDS = 12e6, 120.0


def prepare(target: Target, tuned: Path, jobs: int) -> list[Binary]:
    """Entries for every kernel, and their binaries in the build cache."""
    builder, renderer, store = Builder(Cache(paths.cache())), Renderer(paths.templates()), Store(
        [], tuned)
    candidates = [families_for(problem, target)[0].default(problem, target)
                  for problem in map(Problem.parse, SLUGS)]
    for candidate in candidates:
        store.put(Entry(candidate.problem, target, Workload(2, 16, 16, 4096, 4096),
                        candidate.family.name, asdict(candidate.config),
                        Measurement(1, 1, 1, 1, 0, "")))
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda c: builder.build(c, renderer.render(c), timeout=600),
                             candidates))


def emit(folder: Path, target: str, tuned: Path) -> tuple[float, dict[str, bytes]]:
    """Seconds for the whole command, and every file that it wrote."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "fagen", "emit", "-q", "-o", str(folder / "attention"),
                    "--wheel", "--allow-stale", "--tuned", str(tuned), "--target", target,
                    *(f"--problem={slug}" for slug in SLUGS)], check=True)
    seconds = time.monotonic() - start
    return seconds, {str(path.relative_to(folder)): path.read_bytes()
                     for path in sorted(folder.rglob("*")) if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="a GPU that fagen knows by name, such as h200")
    parser.add_argument("output", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    target = Target.known(given.target)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        binaries = prepare(target, root / "tuned", given.jobs)
        (first, once), (second, again) = (
            emit(root / name, target.name, root / "tuned") for name in ("one", "two"))
    wheel = next(name for name in once if name.endswith(".whl"))
    library = next(name for name in once if name.endswith(".so"))
    result = {
        "what": f"a package for one {target.name}: {len(SLUGS)} kernels with default configs",
        "date": datetime.date.today().isoformat(),
        "compiler": compilers.nvcc().identity,
        "command": f"python bench/package_size.py {target.name} bench/results/package-size.json",
        "kernels": SLUGS,
        "kernel_bytes": sum(Path(binary.path).stat().st_size for binary in binaries),
        "library_bytes": len(once[library]),
        "package_bytes": sum(len(data) for name, data in once.items() if name != wheel),
        "wheel_bytes": len(once[wheel]),
        "seconds_to_emit": [round(first, 1), round(second, 1)],
        "twice_the_same_bytes": once == again,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    shown = {key: value for key, value in result.items() if key != "kernels"}
    print(json.dumps(shown, indent=1))
    sys.exit(not (result["twice_the_same_bytes"] and result["package_bytes"] < MOST_BYTES
                  and max(first, second) < MOST_SECONDS))


if __name__ == "__main__":
    main()
