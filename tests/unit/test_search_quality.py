"""How good a search is, over many seeds, and whether two of them agree."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from fagen.budget import Budget
from fagen.families.base import Space
from fagen.model import Candidate, Entry, Problem
from fagen.search import tune
from fagen.store import Store
from fagen.surrogate import coordinates, most_promising
from tests.unit.synthetic import FAMILY, TARGET, WORKLOAD, FakePool, space, true_us

PROBLEM = Problem.parse("fwd-bf16-d256-dense")
SEEDS = 50


def search(seed: int) -> tuple[Entry, int]:
    """An entry, and how many points were measured for it. Times and noise differ by seed."""
    os.fsync = lambda handle: None  # in a child of its own
    pool = FakePool(seed)
    with tempfile.TemporaryDirectory() as folder:
        entry = tune(
            PROBLEM, [WORKLOAD], TARGET, [FAMILY], pool, Store([], Path(folder) / "tuned"),
            Path(folder), Budget(trials=len(space(PROBLEM)) // 5, seed=seed),
        )
    return entry, len(set(pool.measured))


@pytest.fixture(scope="module")
def searches() -> list[tuple[Entry, int]]:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as workers:
        return list(workers.map(search, range(SEEDS)))


def candidate(entry: Entry) -> Candidate:
    return Space(PROBLEM, TARGET, FAMILY).candidate(entry.config)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_seed_ends_within_one_percent_of_the_best_on_a_fifth_of_the_space(
    searches: list[tuple[Entry, int]],
) -> None:
    legal = space(PROBLEM)
    assert 300 < len(legal) < 1000
    best = min(map(true_us, legal))
    assert sum(true_us(c) <= 1.01 * best for c in legal) <= 3  # it is no plateau
    assert true_us(FAMILY.default(PROBLEM, TARGET)) > 1.2 * best
    for entry, measured in searches:
        assert measured <= len(legal) / 5
        assert true_us(candidate(entry)) <= 1.01 * best


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_seeds_agree_on_the_winner_or_call_it_a_tie(
    searches: list[tuple[Entry, int]],
) -> None:
    for (a, _), (b, _) in zip(searches[::2], searches[1::2], strict=True):
        ties = [r["config"] for r in b.runners_up if r["tie"]]
        assert a.config == b.config or a.config in ties
        assert a.measurement.median_us == pytest.approx(b.measurement.median_us, rel=0.015)


def test_the_model_finds_the_valley_from_a_few_points() -> None:
    tried = [[x / 4, y / 4] for x in (0, 2, 4) for y in (0, 2, 4)]
    left = [[x / 8, y / 8] for x in range(9) for y in range(9)]

    def valley(p: list[float]) -> float:
        return 1 + (p[0] - 0.65) ** 2 + (p[1] - 0.3) ** 2

    for _ in range(5):
        new = left[most_promising(tried, [valley(p) for p in tried], left)]
        left.remove(new)
        tried.append(new)
    assert min(map(valley, tried)) < 1.01
    assert min(map(valley, tried[:9])) > 1.02


def test_the_model_bears_equal_times_and_repeated_points() -> None:
    assert most_promising([[0.0], [0.0], [1.0]], [5.0, 5.0, 5.0], [[0.5], [0.0]]) == 0


def test_words_are_equally_far_apart_and_numbers_in_order() -> None:
    class Config:
        word, number, flag = "b", 64, True

    knobs = {"word": ("a", "b", "c"), "number": (16, 32, 64), "flag": (False, True)}
    assert coordinates(knobs, Config) == [0.0, 1.0, 0.0, 1.0, 1.0]
