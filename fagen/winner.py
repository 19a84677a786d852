"""Which of the finalists is the winner, by paired differences and not by luck.

The samples of one lap were taken in turns, so sample r of every finalist saw the same clocks and
the same neighbours: differences are taken round by round. A finalist ties with the fastest unless
it is slower beyond doubt. The winner is chosen by what does not change from run to run, among those
that look equally fast: a smaller set than the ties, so that another run's winner is a tie here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MARGIN = 0.005  # a difference below this is not worth a different kernel
WIDEST = 0.02  # however loud the noise, no tie is further than this
_DISTURBED = 1.15  # times as slow as usual
_LEAST_ROUNDS = 5
_RESAMPLES = 400
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gap:
    """How much slower b is than a, as a share of a: the median, and an interval for it."""

    slower: float
    low: float
    high: float


@dataclass(frozen=True)
class Standing(Generic[K]):
    """A finalist: its median, how far behind the winner, and whether that is beyond noise."""

    key: K
    median: float
    gap: Gap
    tie: bool


def calm(samples: Mapping[K, Sequence[float]]) -> list[int]:
    """The rounds that nothing disturbed. When another process takes the device, or it throttles,
    most who ran in that round are slower than they usually are. Those who left early took part in
    the first rounds."""
    usual = {key: sorted(times)[len(times) // 10] for key, times in samples.items()}
    rounds = range(max(map(len, samples.values())))
    level = [
        median(times[r] / usual[key] for key, times in samples.items() if r < len(times))
        for r in rounds
    ]
    calmest = sorted(rounds, key=lambda r: level[r])[:_LEAST_ROUNDS]
    return [r for r in rounds if level[r] <= _DISTURBED or r in calmest]


def gap(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Gap:
    """From paired samples, by bootstrap with a fixed seed. Where one took part in fewer rounds,
    those rounds count."""
    ratios = [math.log(y / x) for x, y in zip(a, b, strict=False)]
    rng = random.Random(seed)
    count = len(ratios)
    medians = sorted(median(rng.choices(ratios, k=count)) for _ in range(_RESAMPLES))
    cut = round(_RESAMPLES * (1 - _CONFIDENCE) / 2)
    return Gap(
        math.expm1(median(ratios)), math.expm1(medians[cut]), math.expm1(medians[-1 - cut])
    )


def ties(gap: Gap) -> bool:
    return gap.low <= MARGIN and gap.slower <= WIDEST


def rank(
    samples: Mapping[K, Sequence[float]], preference: Mapping[K, Any]
) -> list[Standing[K]]:
    """The winner first, then by distance from it. ``preference`` decides among equals, least first;
    it must differ for every key and not depend on anything measured."""
    fastest = _fastest(samples, preference)
    behind = {k: gap(samples[fastest], samples[k]) for k in samples}
    winner = min((k for k in samples if behind[k].slower <= MARGIN), key=lambda k: preference[k])
    return _standings(samples, winner, behind, preference)


def around(
    samples: Mapping[K, Sequence[float]], chosen: K, preference: Mapping[K, Any]
) -> list[Standing[K]]:
    """The same with a winner that was chosen for other reasons too: ties are those of its own."""
    behind = {k: gap(samples[chosen], samples[k]) for k in samples}
    return _standings(samples, chosen, behind, preference)


def _standings(
    samples: Mapping[K, Sequence[float]], winner: K, behind: Mapping[K, Gap],
    preference: Mapping[K, Any],
) -> list[Standing[K]]:
    standings = [
        Standing(k, median(samples[k]), gap(samples[winner], samples[k]), ties(behind[k]))
        for k in samples
    ]
    return sorted(standings, key=lambda s: (s.key != winner, s.gap.slower, preference[s.key]))


def _fastest(samples: Mapping[K, Sequence[float]], preference: Mapping[K, Any]) -> K:
    """By paired differences to one of them, so that drift between rounds does not decide."""
    first = min(samples, key=lambda k: (median(samples[k]), preference[k]))
    return min(samples, key=lambda k: (gap(samples[first], samples[k]).slower, preference[k]))


def hopeless(samples: Mapping[K, Sequence[float]]) -> set[K]:
    """Those that further rounds will not bring back."""
    fastest = min(samples, key=lambda k: median(samples[k]))
    return {k for k in samples if gap(samples[fastest], samples[k]).low > WIDEST}
