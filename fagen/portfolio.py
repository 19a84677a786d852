"""Few configs for many sizes: one where it serves all, another one where it pays beyond doubt.

The regret of a size is how much slower its config is there than the fastest finalist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Generic

from fagen.winner import MARGIN, Gap, K, gap

PAYS = 0.01  # a size gets a config of its own when the shared one is so much slower there
MOST = 6  # configs of one problem

Samples = Mapping[K, Sequence[float]]  # paired, of one size


@dataclass(frozen=True)
class Portfolio(Generic[K]):
    """A config per size, and what is lost by having no more of them."""

    chosen: tuple[K, ...]
    regret: tuple[float, ...]
    mean: float  # over all sizes, by their share of the time
    worst: float
    shared_mean: float  # the same, had one config served all
    shared_worst: float

    @property
    def configs(self) -> int:
        return len(set(self.chosen))


def choose(
    sizes: Sequence[Samples[K]], weights: Sequence[float], shared: K, preference: Mapping[K, Any]
) -> Portfolio[K]:
    """Start from the config that is best for all. Add the one that saves most time in all, over the
    sizes where it pays; among those that save alike, the preferred. Stop when none pays."""
    chosen = [shared] * len(sizes)
    for _ in range(MOST - 1 if len(sizes) > 1 else 0):
        saved = {k: _saved(k, sizes, weights, chosen) for k in preference}
        most = max(saved.values())
        if most <= 0:
            break
        total = sum(w * median(s[k]) for s, w, k in zip(sizes, weights, chosen, strict=True))
        alike = [k for k in saved if saved[k] >= most - MARGIN * total and saved[k] > 0]
        best = min(alike, key=lambda k: preference[k])
        chosen = [best if _pays(s, old, best) else old
                  for s, old in zip(sizes, chosen, strict=True)]
    regret, mean = _regret(sizes, weights, chosen)
    shared_regret, shared_mean = _regret(sizes, weights, [shared] * len(sizes))
    return Portfolio(
        tuple(chosen), tuple(regret), mean, max(regret), shared_mean, max(shared_regret)
    )


def _behind(samples: Samples[K], old: K, new: K) -> Gap:
    """How much slower the old one is."""
    return gap(samples[new], samples[old])


def _pays(samples: Samples[K], old: K, new: K) -> bool:
    if old == new:
        return False
    behind = _behind(samples, old, new)
    return behind.low > MARGIN and behind.slower >= PAYS


def _saved(
    new: K, sizes: Sequence[Samples[K]], weights: Sequence[float], chosen: Sequence[K]
) -> float:
    return sum(
        w * (median(s[old]) - median(s[new]))
        for s, w, old in zip(sizes, weights, chosen, strict=True) if _pays(s, old, new)
    )


def _regret(
    sizes: Sequence[Samples[K]], weights: Sequence[float], chosen: Sequence[K]
) -> tuple[list[float], float]:
    """Per size, and of the whole time."""
    regret, best = [], []
    for samples, key in zip(sizes, chosen, strict=True):
        fastest = min(samples, key=lambda k: median(samples[k]))
        regret.append(max(0.0, gap(samples[fastest], samples[key]).slower))
        best.append(median(samples[fastest]))
    whole = sum(w * b for w, b in zip(weights, best, strict=True))
    lost = sum(w * b * r for w, b, r in zip(weights, best, regret, strict=True))
    return regret, lost / whole
