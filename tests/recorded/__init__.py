"""Whole spaces measured once on real devices, so that searches can be replayed on them anywhere.

    python -m tests.recorded fwd-fp32-d64 --workload b1-h8-s512 --fix unroll=1 --fix panels=1,2

measures every legal point (``--fix`` keeps a knob at some of its values) and writes a file here,
which says how it was timed.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fagen.families.base import Family, Kernel, Rule, knob
from fagen.families.plan import Plan
from fagen.model import Binary, Candidate, Failure, Measurement, Problem, Source
from fagen.neighbours import Conditions
from fagen.target import Target
from fagen.workload import Workload

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Recording:
    """Microseconds of every legal point, by the ranks of its choices; none where it failed."""

    name: str
    problem: Problem
    workload: Workload
    family: Family
    target: Target
    times: dict[tuple[Any, ...], float | None]

    def us(self, candidate: Candidate) -> float | None:
        return self.times.get(tuple(vars(candidate.config).values()))


def load(path: Path) -> Recording:
    held = json.loads(path.read_text())
    problem, knobs = Problem.parse(held["problem"]), held["knobs"]
    times = {_values(ranks, knobs): us for ranks, us in held["us"].items()}
    default = dict(zip(knobs, held["default"], strict=True))
    config = make_dataclass("Config", [
        (name, type(choices[0]), knob(*choices, default=default[name], says="as recorded"))
        for name, choices in knobs.items()
    ], frozen=True)
    rule = Rule("it was recorded", lambda c: tuple(vars(c.config).values()) in times)
    kernel = Kernel("none", config, (rule,), lambda c: Plan(), lambda p, t: config(),
                    lambda c, w: w.min_bytes(c.problem))
    kind = held["kind"]
    family = Family(held["family"], "recorded", "none", {problem.op: kernel},
                    lambda t: t.kind == kind, lambda t: "none")
    return Recording(
        path.stem, problem, Workload.parse(held["workload"]), family,
        Target(held["target"], kind), times,
    )


def _values(ranks: str, knobs: dict[str, list[Any]]) -> tuple[Any, ...]:
    """One digit per knob, base 36."""
    pairs = zip(ranks, knobs.values(), strict=True)
    return tuple(choices[int(rank, 36)] for rank, choices in pairs)


def recordings() -> list[Recording]:
    return [load(path) for path in sorted(FOLDER.glob("*.json"))]


@dataclass(frozen=True)
class _Built:
    binary: Binary


class _Renderer:
    def render(self, candidate: Candidate) -> Source:
        return Source("", str(candidate), "cuda")


class Player:
    """A pool that plays a recording, with noise of its own."""

    def __init__(self, recording: Recording, seed: int, noise: float = 0.005) -> None:
        self.recording, self.noise = recording, noise
        self.renderer = _Renderer()
        self.lap_samples: dict[Candidate, list[float]] = {}
        self.measured: set[Candidate] = set()
        self.conditions = Conditions()
        self._random = random.Random(seed)

    def prepare(self, candidates: Iterable[Candidate]) -> None:
        pass

    def build(self, candidate: Candidate) -> _Built:
        return _Built(Binary("", str(candidate), "none", "none"))

    def measure(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> Measurement | Failure:
        self.measured.add(candidate)
        if self.recording.us(candidate) is None:
            return Failure("run", "Recorded", "it failed when it was recorded")
        return self._measurement([self._sample(candidate) for _ in range(7)])

    def reference(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> float | Failure:
        return self.recording.us(candidate) or 0.0

    def lap(
        self, candidates: Sequence[Candidate], workload: Workload, rounds: int
    ) -> list[Measurement | Failure]:
        self.lap_samples = {c: [self._sample(c) for _ in range(rounds)] for c in candidates}
        return [self._measurement(self.lap_samples[c]) for c in candidates]

    def contest(
        self, candidate: Candidate, workload: Workload, rounds: int
    ) -> dict[str, list[float]]:
        return {"": []}

    def _sample(self, candidate: Candidate) -> float:
        us = self.recording.us(candidate)
        assert us is not None
        return us * math.exp(self._random.gauss(0, self.noise))

    def _measurement(self, samples: list[float]) -> Measurement:
        return Measurement(median(samples), min(samples), max(samples), len(samples), 0.1, "o")
