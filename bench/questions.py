"""Ask a GPU which of a few configs is fastest: laps of named configs, interleaved and verified.

    python bench/questions.py bench/questions/h200.yaml answers.json --minutes 8

A question lists problems, workloads and configs; each config changes some knobs of the family's
default. Every (problem, workload) is one lap of all configs in one process. What was answered is
written after every lap, so that an early end loses nothing. `fagen tune` searches the
whole space; this answers in minutes where a default stands, and whether kernels pass at all.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fagen import paths
from fagen.build import Builder, Cache
from fagen.families import FAMILIES
from fagen.families.base import parse_config
from fagen.model import Candidate, Failure, Measurement, Problem
from fagen.pool import Pool
from fagen.render import Renderer
from fagen.station import Limits
from fagen.target import Target
from fagen.workload import Workload

ROUNDS = 5


@dataclass(frozen=True)
class Lap:
    """What runs against each other."""

    question: str
    workload: Workload
    field: tuple[Candidate, ...]


def read(path: Path, target: Target) -> Iterator[Lap]:
    """Every lap of a file. A config that is illegal for a problem does not run with it."""
    for question in yaml.safe_load(path.read_text()):
        family = next(f for f in FAMILIES if f.name == question["family"])
        for slug in question["problems"]:
            problem = Problem.parse(slug)
            default = family.default(problem, target)
            config_type = family.kernel(problem.op).config
            given = [parse_config(config_type, vars(default.config) | knobs)
                     for knobs in question["configs"]]
            field = dict.fromkeys(Candidate(problem, target, family, config) for config in given)
            legal = tuple(c for c in field if not family.broken_rules(c))
            for workload in question["workloads"]:
                yield Lap(question["ask"], Workload.parse(workload), legal)


def answer(lap: Lap, outcomes: list[Measurement | Failure]) -> dict[str, Any]:
    """The configs of a lap, the fastest first, failures last."""
    rows: list[dict[str, Any]] = []
    for candidate, outcome in zip(lap.field, outcomes, strict=True):
        config = candidate.family.show(candidate.config)
        if isinstance(outcome, Failure):
            rows.append({"config": config, "failed": f"{outcome.kind}: {outcome.reason}"})
        else:
            rows.append({"config": config, "us": round(outcome.median_us, 2),
                         "tflops": round(outcome.tflops, 1), "error": outcome.error})
    rows.sort(key=lambda row: row.get("us", float("inf")))
    return {"ask": lap.question, "problem": str(lap.field[0].problem),
            "family": lap.field[0].family.name, "workload": str(lap.workload), "configs": rows}


def show(answered: dict[str, Any]) -> None:
    print(f"{answered['family']} {answered['problem']} {answered['workload']}: {answered['ask']}")
    for row in answered["configs"]:
        result = row.get("failed") or f"{row['us']:10.2f} us {row['tflops']:7.1f} TFLOP/s"
        print(f"  {result}  {row['config']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0, help="ask nothing new after this")
    parser.add_argument("--target", default="h200")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", default="", help="problems whose slug holds this text")
    given = parser.parse_args()
    ends = time.monotonic() + 60 * given.minutes
    laps = [lap for lap in read(given.questions, Target.known(given.target))
            if given.only in str(lap.field[0].problem)]
    answers: list[dict[str, Any]] = []
    # A hung kernel must not eat the time: short deadlines.
    limits = Limits(build=120.0, start=120.0, prepare=60.0, run=10.0, time=15.0)
    builder, renderer = Builder(Cache(paths.cache())), Renderer(paths.templates())
    with (
        tempfile.TemporaryDirectory() as scratch,
        Pool(builder, renderer, given.device, jobs=os.cpu_count() or 1, scratch=Path(scratch),
             limits=limits) as pool,
    ):
        for lap in laps:
            pool.prepare(lap.field)
        for lap in laps:
            if time.monotonic() > ends:
                print(f"out of time: {len(laps) - len(answers)} laps not run")
                break
            answers.append(answer(lap, pool.lap(lap.field, lap.workload, ROUNDS)))
            show(answers[-1])
            given.output.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
