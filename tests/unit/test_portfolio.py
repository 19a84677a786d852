"""Few configs for many sizes, and what is lost by having no more."""

from __future__ import annotations

import math
import random

import pytest

from fagen.portfolio import MOST, PAYS, Portfolio, choose

# us of four configs at three sizes; "all" is nowhere the fastest and nowhere bad.
TIMES = {"all": (11.0, 105.0, 1020.0), "short": (10.0, 140.0, 1500.0),
         "long": (20.0, 130.0, 1000.0), "middle": (15.0, 100.0, 1300.0)}
PREFERENCE = {"all": 3, "short": 2, "long": 1, "middle": 0}


def samples(
    times: dict[str, tuple[float, ...]], noise: float = 0.003, seed: int = 0, rounds: int = 30
) -> list[dict[str, list[float]]]:
    rng = random.Random(seed)
    count = len(next(iter(times.values())))
    return [
        {k: [t[size] * math.exp(rng.gauss(0, noise)) for _ in range(rounds)]
         for k, t in times.items()}
        for size in range(count)
    ]


def picked(weights: tuple[float, ...], **given: tuple[float, ...]) -> Portfolio[str]:
    times = given or TIMES
    return choose(samples(times), weights, "all", {k: PREFERENCE.get(k, 9) for k in times})


@pytest.mark.parametrize("seed", range(10))
def test_a_size_gets_its_own_config_where_that_pays(seed: int) -> None:
    few = choose(samples(TIMES, seed=seed), (1, 1, 1), "all", PREFERENCE)
    assert few.chosen == ("short", "middle", "long") or few.chosen == ("short", "middle", "all")
    assert few.shared_worst == pytest.approx(0.10, abs=0.01)
    assert few.shared_mean == pytest.approx(26 / 1110, abs=0.005)
    assert few.worst <= few.shared_worst
    assert few.mean <= few.shared_mean


def test_the_regret_is_stated_for_every_size() -> None:
    few = picked((1, 1, 1), all=(10, 100.7, 100), other=(10.01, 100, 100))
    assert few.chosen == ("all",) * 3
    assert few.configs == 1
    assert few.regret == pytest.approx((0, 0.007, 0), abs=0.003)
    assert few.worst == max(few.regret)
    assert few.mean == pytest.approx(0.7 / 210, abs=0.002)


def test_what_does_not_pay_beyond_doubt_is_left() -> None:
    below = 1 + PAYS * 0.7
    assert picked((1, 1), all=(10 * below, 100), other=(10, 120)).configs == 1
    assert picked((1, 1), all=(10 * (1 + PAYS * 1.5), 100), other=(10, 120)).configs == 2
    loud = choose(samples({"all": (103,), "other": (100,)}, noise=0.3), (1,), "all",
                  {"all": 1, "other": 0})
    assert loud.chosen == ("all",)


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.02])
@pytest.mark.parametrize("seed", range(8))
def test_differences_that_are_noise_bring_no_configs(noise: float, seed: int) -> None:
    """Thirteen sizes, and a dozen finalists that are equally fast."""
    rng = random.Random(seed)
    equal = {f"c{i:02}": tuple(100 * (1 + 0.003 * rng.random()) for _ in range(13))
             for i in range(12)}
    few = choose(samples(equal, noise, seed, rounds=60), [1.0] * 13, "c00",
                 {k: n for n, k in enumerate(equal)})
    assert few.configs == 1 if noise < 0.02 else few.configs <= 2


def test_weights_decide_which_come_first_when_there_may_be_no_more() -> None:
    size = range(MOST + 2)
    times = {"all": (120.0,) * len(size)} | {
        f"own{i}": tuple(100.0 if i == j else 200.0 for j in size) for i in size
    }
    weights = tuple(float(10 ** (len(size) - i)) for i in size)
    few = picked(weights, **times)
    own = [f"own{i}" for i in range(MOST - 1)]
    assert few.chosen == (*own, *["all"] * (len(size) - MOST + 1))
    assert few.configs == MOST


def test_one_config_that_serves_two_sizes_comes_before_one_that_serves_one() -> None:
    few = picked((1, 1, 1), all=(120, 120, 100), both=(102, 102, 200), one=(100, 200, 200))
    assert few.chosen == ("both", "both", "all") or few.chosen == ("one", "both", "all")
    assert few.chosen[1] == "both"


def test_among_those_that_save_alike_the_preferred_is_chosen() -> None:
    for seed in range(10):
        times = {"all": (120.0, 100.0), "b": (100.0, 150.0), "a": (100.1, 150.0)}
        few = choose(samples(times, seed=seed), (1, 1), "all", {"all": 0, "a": 1, "b": 2})
        assert few.chosen == ("a", "all")


def test_one_size_has_one_config() -> None:
    few = choose([{"a": [1.0] * 9, "b": [1.0] * 9}], [1.0], "b", {"a": 0, "b": 1})
    assert few.chosen == ("b",)
    assert few.regret == (0.0,)
