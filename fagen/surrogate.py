"""A model of the space from what was measured: where would a new point pay most?

A Gaussian process over the knobs. The sampler draws points and most of its draws are illegal or
known; the model ranks exactly the legal points that are left. Matrices are small, and eliminated
row by row: a threaded BLAS spins on the cores that compile the next kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SCALES = (0.25, 0.5, 1.0, 2.0)  # of a knob's range
_PASSES = 3  # over the knobs, to scale each by itself
_CLEARLY = 0.1  # of the logarithm of the likelihood
_NOISE = (1e-3, 1e-2, 1e-1)  # of the variance: timing noise, and what the knobs do not explain


def coordinates(knobs: Mapping[str, Sequence[Any]], config: Any) -> list[float]:
    """A config as a point: a number by its rank among the choices, a word by a coordinate each."""
    point: list[float] = []
    for name, choices in knobs.items():
        rank = choices.index(getattr(config, name))
        if isinstance(choices[0], str):
            point += [float(rank == other) for other in range(len(choices))]
        else:
            point.append(rank / max(1, len(choices) - 1))
    return point


def most_promising(
    tried: Sequence[Sequence[float]], times: Sequence[float], left: Sequence[Sequence[float]]
) -> int:
    """Which of ``left`` has the largest expected improvement over the best time."""
    known, new = np.asarray(tried, float), np.asarray(left, float)
    logs = np.log(np.asarray(times, float))
    values = (logs - logs.mean()) / (float(logs.std()) or 1.0)
    scale, noise = _fitted(known, values)
    white, _ = _whitened(known, scale, noise, np.column_stack([values, _kernel(known, new, scale)]))
    mean = (white[:, :1] * white[:, 1:]).sum(axis=0)
    deviation = np.sqrt(np.maximum(1.0 - (white[:, 1:] ** 2).sum(axis=0), 1e-9))
    z = (values.min() - mean) / deviation
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    share = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in z])
    return int(np.argmax(deviation * (z * share + density)))


def _fitted(points: Array, values: Array) -> tuple[Array, float]:
    """The scale of each coordinate and the noise under which what was measured is most likely:
    first one scale for all, then each by itself as long as that says clearly more. A knob that
    decides nothing gets a long one, and no trials are spent on it."""

    def likelihood(scale: Array, noise: float) -> float:
        white, pivots = _whitened(points, scale, noise, values[:, None])
        return float(-(white**2).sum() / 2 - np.log(pivots).sum() / 2)

    alike = [(np.full(points.shape[1], s), n) for s in _SCALES for n in _NOISE]
    scales, noise = max(alike, key=lambda pair: likelihood(*pair))
    best = likelihood(scales, noise)
    if not values.any():  # all alike: they say nothing of any knob
        return scales, noise
    for knob in list(range(len(scales))) * _PASSES:
        for factor in (0.5, 2.0):
            other = scales.copy()
            other[knob] *= factor
            if (found := likelihood(other, noise)) > best + _CLEARLY:
                best, scales = found, other
                break
    return scales, noise


def _whitened(points: Array, scale: Array, noise: float, right: Array) -> tuple[Array, Array]:
    """L^-1 right and the squared diagonal of L, where L L^T is the covariance of the points."""
    count = len(points)
    rows = np.hstack([_kernel(points, points, scale) + noise * np.eye(count), right])
    pivots = np.empty(count)
    for i in range(count):
        pivots[i] = rows[i, i]
        rows[i, i:] /= math.sqrt(pivots[i])
        rows[i + 1 :, i + 1 :] -= rows[i, i + 1 : count, None] * rows[i, None, i + 1 :]
    return rows[:, count:], pivots


def _kernel(a: Array, b: Array, scale: Array) -> Array:
    """Matern 3/2: smooth, but not too smooth."""
    squares = (((a[:, None, :] - b[None, :, :]) / scale) ** 2).sum(axis=2)
    distance = np.sqrt(3 * squares)
    result: Array = (1 + distance) * np.exp(-distance)
    return result
