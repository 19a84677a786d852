"""Record a space: see the package."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fagen import devices, paths
from fagen.build import Builder, Cache
from fagen.call import Call
from fagen.cases import of_workload
from fagen.families import FAMILIES, families_for, family_named
from fagen.families.base import Space
from fagen.library import Library
from fagen.model import Candidate, Failure, Problem
from fagen.pool import Pool
from fagen.render import Renderer
from fagen.workbench import Workbench
from fagen.workload import Workload
from tests.recorded import FOLDER

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_AHEAD = 16


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.recorded")
    parser.add_argument("problem", type=Problem.parse)
    parser.add_argument("--workload", type=Workload.parse, required=True)
    parser.add_argument("--gpu", help="as for fagen tune")
    parser.add_argument("--family")
    parser.add_argument("--fix", action="append", default=[], metavar="KNOB=VALUE[,VALUE]...")
    parser.add_argument("--calls", type=int, default=20, help="of a point in each pass")
    parser.add_argument("--passes", type=int, default=20, help="over all points")
    parser.add_argument("--threads", type=int, default=0, help="of a kernel on the host; 0: all")
    given = parser.parse_args()
    device = devices.pick(given.gpu)
    family = (
        family_named(given.family) if given.family
        else families_for(given.problem, device.target, FAMILIES)[0]
    )
    space = Space(given.problem, device.target, family)
    knobs = _kept(space, given.fix)
    points = [c for c in space.legal()
              if all(getattr(c.config, name) in choices for name, choices in knobs.items())]
    print(f"{len(points)} points of {family.name}", file=sys.stderr)
    with TemporaryDirectory() as scratch, Pool(
        Builder(Cache(paths.cache())), Renderer(paths.templates()), device,
        jobs=len(os.sched_getaffinity(0)), scratch=Path(scratch),
    ) as pool:
        libraries = {point: _verified(pool, points, at) for at, point in enumerate(points)}
        us = _least(libraries, device.name, given)
    default = family.default(given.problem, device.target)
    default = default if default in us else min(us, key=lambda c: us[c] or 1e30)
    path = FOLDER / f"{device.target.name}-{given.problem}.json"
    path.write_text(json.dumps({
        "problem": str(given.problem), "workload": str(given.workload), "family": family.name,
        "recorded": f"the least of {given.calls} calls in each of {given.passes} passes over all "
                    f"points, {given.threads or 'all'} threads, warm caches",
        "target": device.target.name, "kind": device.target.kind, "knobs": knobs,
        "default": list(vars(default.config).values()),
        "us": {_ranks(c, knobs): value for c, value in us.items()},
    }, separators=(",", ":")).replace('],"', '],\n"') + "\n")
    print(path)


def _kept(space: Space, fix: list[str]) -> dict[str, list[object]]:
    """The choices of every knob that are to be recorded."""
    fixed = {name: values.lower().split(",") for name, _, values in
             (pair.partition("=") for pair in fix)}
    return {
        name: [c for c in choices if name not in fixed or str(c).lower() in fixed[name]]
        for name, choices in space.knobs().items()
    }


def _ranks(candidate: Candidate, knobs: dict[str, list[object]]) -> str:
    return "".join(_DIGITS[choices.index(getattr(candidate.config, name))]
                   for name, choices in knobs.items())


def _verified(pool: Pool, points: list[Candidate], at: int) -> Path | None:
    """The library of a point; None where it fails."""
    pool.prepare(points[at : at + _AHEAD])
    built, verdict = pool.build(points[at]), pool.verify(points[at])
    fell = isinstance(verdict, Failure)
    print(f"{at + 1}/{len(points)} {verdict.reason if fell else 'right'} {points[at]}",
          file=sys.stderr)
    return None if fell or isinstance(built, Failure) else built.library


def _least(
    libraries: dict[Candidate, Path | None], device: str, given: argparse.Namespace
) -> dict[Candidate, float | None]:
    """Passes over all points: other load makes calls slower, and hardly all calls of a point. A
    failure is final."""
    bench = Workbench(device, given.threads, lambda stage, what: None)
    case = of_workload(given.workload)
    inputs = dict(bench.checker.prepared(given.problem, case).inputs)
    calls = {
        point: Call.bind(Library.load(str(path)), given.problem, case, inputs, device,
                         bench.threads)
        for point, path in libraries.items() if path
    }
    us: dict[Candidate, float | None] = dict.fromkeys(libraries)
    for number in range(given.passes):
        for point, call in calls.items():
            least = min(bench.timer.once([call] * given.calls))
            us[point] = round(min(least, us[point] or least), 2)
        print(f"pass {number + 1} of {given.passes}", file=sys.stderr)
    return us


if __name__ == "__main__":
    main()
