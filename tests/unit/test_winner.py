"""The statistics of the final lap."""

from __future__ import annotations

import math
import random

import pytest

from fagen.winner import WIDEST, around, calm, gap, hopeless, rank


def lap(factors: dict[str, float], noise: float, rounds: int, seed: int) -> dict[str, list[float]]:
    """Interleaved samples: drift that all share, and noise of their own."""
    rng = random.Random(seed)
    samples: dict[str, list[float]] = {key: [] for key in factors}
    for _ in range(rounds):
        drift = 100 * (1 + 0.2 * rng.random())
        for key, factor in factors.items():
            samples[key].append(drift * factor * math.exp(rng.gauss(0, noise)))
    return samples


PREFERENCE = {"a": (3,), "b": (1,), "c": (2,), "d": (0,)}


def test_a_clear_winner_wins_whatever_is_preferred() -> None:
    standings = rank(lap({"a": 1.0, "b": 1.03, "c": 1.2, "d": 1.05}, 0.003, 30, 0), PREFERENCE)
    assert [s.key for s in standings] == ["a", "b", "d", "c"]
    assert [s.tie for s in standings] == [True, False, False, False]
    assert standings[1].gap.slower == pytest.approx(0.03, abs=0.005)
    assert standings[1].gap.low < standings[1].gap.slower < standings[1].gap.high


def test_drift_that_all_share_does_not_hide_a_small_difference() -> None:
    """Unpaired, a fifth of drift would drown one percent."""
    found = gap(*lap({"a": 1.0, "b": 1.01}, 0.002, 30, 1).values())
    assert 0.005 < found.low <= found.slower <= found.high < 0.015


@pytest.mark.parametrize("seed", range(20))
def test_among_ties_the_preferred_wins_whatever_the_luck(seed: int) -> None:
    standings = rank(lap({"a": 1.0, "b": 1.001, "c": 1.001, "d": 1.1}, 0.004, 30, seed), PREFERENCE)
    assert standings[0].key == "b"
    assert {s.key for s in standings if s.tie} == {"a", "b", "c"}


def test_noise_makes_no_tie_of_what_is_far_behind() -> None:
    standings = rank(lap({"a": 1.0, "d": 1.5}, 0.4, 12, 3), PREFERENCE)
    far = next(s for s in standings if s.key != standings[0].key)
    assert far.gap.slower > WIDEST
    assert not far.tie


def test_the_same_samples_give_the_same_answer() -> None:
    samples = lap({"a": 1.0, "b": 1.002, "c": 1.004}, 0.01, 20, 4)
    assert rank(samples, PREFERENCE) == rank(dict(reversed(samples.items())), PREFERENCE)


def test_whoever_left_early_is_compared_over_the_rounds_both_ran() -> None:
    samples = lap({"a": 1.0, "b": 1.05}, 0.002, 40, 5)
    samples["b"] = samples["b"][:10]
    assert gap(samples["a"], samples["b"]).slower == pytest.approx(0.05, abs=0.01)


def test_only_those_beyond_hope_leave() -> None:
    samples = lap({"a": 1.0, "b": 1.01, "c": 1.06}, 0.003, 20, 6)
    assert hopeless(samples) == {"c"}
    assert hopeless({"a": samples["a"]}) == set()


def test_disturbed_rounds_are_told_from_calm_ones() -> None:
    samples = lap({"a": 1.0, "b": 1.01, "c": 1.02}, 0.003, 40, 7)
    samples = {key: [100 + 0.1 * t for t in times] for key, times in samples.items()}
    disturbed = {3, 4, 5, 17, 30}
    for times in samples.values():
        for r in disturbed:
            times[r] *= 1.6
    assert set(calm(samples)) == set(range(40)) - disturbed
    samples["c"] = samples["c"][:10]  # who left early does not confuse it
    assert set(calm(samples)) == set(range(40)) - disturbed


def test_some_rounds_are_kept_in_any_storm() -> None:
    rng = random.Random(0)
    samples = {key: [math.exp(rng.gauss(0, 2)) for _ in range(40)] for key in "abc"}
    assert 5 <= len(calm(samples)) < 40


def test_one_who_is_unlucky_does_not_spoil_the_round() -> None:
    samples = {key: [100.0] * 20 for key in "abc"}
    samples["b"][7] = 400.0
    assert calm(samples) == list(range(20))


def test_a_winner_that_was_chosen_has_ties_of_its_own() -> None:
    """Those who are faster are among them: they were not taken for other reasons."""
    samples = lap({"a": 1.0, "b": 1.012, "c": 1.013, "d": 1.2}, 0.002, 30, 7)
    standings = around(samples, "b", PREFERENCE)
    assert [s.key for s in standings] == ["b", "a", "c", "d"]
    assert {s.key for s in standings if s.tie} == {"a", "b", "c"}
    assert standings[1].gap.slower == pytest.approx(-0.012, abs=0.004)
