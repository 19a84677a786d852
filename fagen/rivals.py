"""Which other implementations can do a problem's work, as far as rules say, and how they fared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fagen import winner
from fagen.model import Problem
from fagen.winner import Gap
from fagen.workload import Workload

TORCH = "torch"  # scaled_dot_product_attention, whatever backend it takes
CUDNN = "cudnn"  # the same, made to take cuDNN's


def rivals(problem: Problem, workload: Workload, device: str) -> tuple[str, ...]:
    """torch knows no window, no packed sequences, and only the one diagonal."""
    pattern = str(problem.pattern)
    square = workload.seqlen_q == workload.seqlen_kv
    same = pattern in ("dense", "causal-topleft") or (pattern == "causal" and square)
    if not same or problem.features:
        return ()
    return (TORCH, CUDNN) if device.startswith("cuda") and problem.dtype != "fp32" else (TORCH,)


@dataclass(frozen=True)
class Rival:
    """One of them, on one workload: its time, and how much slower than the chosen kernel it is."""

    us: float
    gap: Gap

    @property
    def is_beaten(self) -> bool:
        """Beyond noise."""
        return self.gap.low > 0

    def to_dict(self) -> dict[str, Any]:
        return {"us": self.us, "slower": self.gap.slower, "low": self.gap.low,
                "high": self.gap.high, "beaten": self.is_beaten}


def standing(ours: Sequence[float], theirs: Mapping[str, Sequence[float]]) -> dict[str, Rival]:
    """From rounds in which all took turns; disturbed ones do not count."""
    if not theirs:
        return {}
    calm = winner.calm({"": ours, **theirs})
    mine = [ours[r] for r in calm]
    found = {name: [times[r] for r in calm] for name, times in theirs.items()}
    return {name: Rival(median(times), winner.gap(mine, times)) for name, times in found.items()}
