"""Record a space: see the package."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from fagen import devices, paths
from fagen.build import Builder, Cache
from fagen.families import FAMILIES, families_for, family_named
from fagen.families.base import Space
from fagen.model import Candidate, Measurement, Problem, Workload
from fagen.pool import Pool
from fagen.render import Renderer
from tests.recorded import FOLDER

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_AHEAD = 16


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.recorded")
    parser.add_argument("problem", type=Problem.parse)
    parser.add_argument("--workload", type=Workload.parse, required=True)
    parser.add_argument("--gpu", help="as for fagen tune")
    parser.add_argument("--family")
    parser.add_argument("--fix", action="append", default=[], metavar="KNOB=VALUE")
    parser.add_argument("--seconds", type=float, default=0.3, help="of timing for every point")
    parser.add_argument("--passes", type=int, default=3, help="over all points; the least counts")
    given = parser.parse_args()
    device = devices.pick(given.gpu)
    family = (
        family_named(given.family) if given.family
        else families_for(given.problem, device.target, FAMILIES)[0]
    )
    space = Space(given.problem, device.target, family)
    fixed = dict(pair.split("=", 1) for pair in given.fix)
    points = [c for c in space.legal() if _matches(c, fixed)]
    print(f"{len(points)} points of {family.name}", file=sys.stderr)
    with TemporaryDirectory() as scratch, Pool(
        Builder(Cache(paths.cache())), Renderer(paths.templates()), device,
        jobs=len(os.sched_getaffinity(0)), scratch=Path(scratch),
    ) as pool:
        us = _least([
            dict(_measured(pool, points, given.workload, given.seconds))
            for _ in range(given.passes)
        ])
    knobs = {n: [c for c in choices if n not in fixed or str(c).lower() == fixed[n].lower()]
             for n, choices in space.knobs().items()}
    default = family.default(given.problem, device.target)
    default = default if default in us else min(us, key=lambda c: us[c] or 1e30)
    path = FOLDER / f"{device.target.name}-{given.problem}.json"
    path.write_text(json.dumps({
        "problem": str(given.problem), "workload": str(given.workload), "family": family.name,
        "target": device.target.name, "kind": device.target.kind, "knobs": knobs,
        "default": list(vars(default.config).values()),
        "us": {_ranks(c, knobs): value for c, value in us.items()},
    }, separators=(",", ":")).replace('],"', '],\n"') + "\n")
    print(path)


def _matches(candidate: Candidate, fixed: dict[str, str]) -> bool:
    return all(str(getattr(candidate.config, k)).lower() == v.lower() for k, v in fixed.items())


def _ranks(candidate: Candidate, knobs: dict[str, list[object]]) -> str:
    return "".join(_DIGITS[choices.index(getattr(candidate.config, name))]
                   for name, choices in knobs.items())


def _least(
    passes: list[dict[Candidate, float | None]]
) -> dict[Candidate, float | None]:
    """Other load makes a point slower in one pass, and rarely in all; a failure is final."""
    taken = {point: [one[point] for one in passes] for point in passes[0]}
    return {
        point: None if None in us else min(filter(None, us)) for point, us in taken.items()
    }


def _measured(
    pool: Pool, points: list[Candidate], workload: Workload, seconds: float
) -> Iterable[tuple[Candidate, float | None]]:
    for at, candidate in enumerate(points):
        pool.prepare(points[at : at + _AHEAD])
        outcome = pool.measure(candidate, workload, seconds)
        us = round(outcome.median_us, 2) if isinstance(outcome, Measurement) else None
        print(f"{at + 1}/{len(points)} {us} {candidate}", file=sys.stderr)
        yield candidate, us


if __name__ == "__main__":
    main()
