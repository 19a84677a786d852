"""Twelve problems, tuned twice from nothing with the budget that searches have by default: the same
winner, or one that the other run calls a tie, and the same time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fagen.budget import EFFORTS
from fagen.families.base import Rule
from fagen.model import Candidate, Entry, Failure, Measurement, Problem
from fagen.search import tune
from fagen.store import Store
from fagen.workload import Workload
from tests.unit import synthetic
from tests.unit.synthetic import TARGET, FakePool, true_us

PROBLEMS = [
    Problem.parse(f"{op}-{dtype}-{rest}") for op in ("fwd", "bwd") for dtype in ("bf16", "fp16")
    for rest in ("d64-causal", "d128-dense", "d256-window512")
]
# Few enough to try all: which of them is the fastest is left to the final lap.
FAMILY = synthetic.limited(
    Rule("it is one of a few", lambda c: c.config.unroll == 2 and c.config.stages == 2
         and c.config.block_n >= 64),
)
ONE = (synthetic.WORKLOAD,)
THREE = tuple(Workload(4, 32, 8, n, n, (2048 / n) ** 2) for n in (512, 2048, 8192))
HEAT_S = 90.0  # so that the time is over after the second


def surface(candidate: Candidate, workload: Workload) -> float:
    """Of its own for every problem and size, with much that is nearly as fast as the best."""
    tile = candidate.config.block_m, candidate.config.block_n
    rough = synthetic._hash(f"{candidate.problem} {workload} {candidate.config}")
    return true_us(candidate, workload) * (
        1 + 0.02 * rough + 0.03 * synthetic._hash(f"{candidate.problem} {workload} {tile}")
    )


class Slow(FakePool):
    """A heat takes long."""

    now = 0.0

    def lap(
        self, candidates: Sequence[Candidate], workload: Workload, rounds: int
    ) -> list[Measurement | Failure]:
        Slow.now += HEAT_S
        return super().lap(candidates, workload, rounds)


def tuned(
    folder: Path, problem: Problem, workloads: Sequence[Workload], noise: float, seed: int
) -> tuple[Entry, ...]:
    store = Store([], folder / f"{seed}")
    pool = Slow(seed + 10 * PROBLEMS.index(problem), noise, surface)
    tune(problem, workloads, TARGET, [FAMILY], pool, store, folder / f"journals{seed}",
         EFFORTS["normal"])
    return store.entries()


def agree(a: Entry, b: Entry) -> bool:
    def has(entry: Entry, other: Entry) -> bool:
        ties = [r["config"] for r in entry.runners_up if r["tie"]]
        return other.config == entry.config or other.config in ties

    return has(a, b) and has(b, a)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("workloads", "noise"), [(ONE, 0.004), (ONE, 0.02), (THREE, 0.004)])
def test_two_searches_of_twelve_problems_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workloads: Sequence[Workload], noise: float
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr(time, "monotonic", lambda: Slow.now)
    pairs = []
    for problem in PROBLEMS:
        runs = [tuned(tmp_path / str(problem), problem, workloads, noise, n) for n in (1, 2)]
        pairs += list(zip(*runs, strict=True))
    assert len(pairs) == 12 * len(workloads)
    for a, b in pairs:
        assert a.measurement.median_us == pytest.approx(b.measurement.median_us, rel=0.015)
        assert a.provenance["search"]["rounds"] <= (30 if noise < 0.01 else 40)
    assert sum(agree(a, b) for a, b in pairs) >= len(pairs) * 11 / 12
