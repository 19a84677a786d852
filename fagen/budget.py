"""How long to search, and how hard to look."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from fagen.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """Whichever limit comes first ends the search; the final lap is run in any case."""

    trials: int = 150  # distinct candidates, those of an earlier run of the same search included
    minutes: float = math.inf
    patience: int = 0  # stop after this many trials without a better one; 0: never
    seed: int = 0
    short_s: float = 0.05  # seconds of timing for every candidate
    long_s: float = 0.2  # again for those close to the best
    finalists: int = 8
    rounds: int = 10  # interleaved rounds of one heat of the final lap
    heats: int = 6  # at most; finalists beyond hope drop out between heats
    lap_s: float = 150.0  # seconds of the final lap; twice that where times are loud

    def __post_init__(self) -> None:
        for name in ("trials", "finalists", "rounds", "heats"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} is less than 1")
        if not self.minutes > 0:
            raise UsageError(f"minutes {self.minutes:g} is not positive")
        if self.patience < 0:
            raise UsageError(f"patience {self.patience} is negative", "0 means never give up early")

    @classmethod
    def of(cls, effort: str = "normal", **given: Any) -> Budget:
        """A preset with some fields set; None leaves the preset's value."""
        if effort not in EFFORTS:
            raise UsageError(f"unknown effort {effort!r}", f"one of: {', '.join(EFFORTS)}")
        return dataclasses.replace(
            EFFORTS[effort], **{k: v for k, v in given.items() if v is not None}
        )


EFFORTS = {
    "quick": Budget(
        trials=40, patience=25, short_s=0.03, long_s=0.1, finalists=4, rounds=6, heats=4,
        lap_s=40.0,
    ),
    "normal": Budget(patience=80),
    "full": Budget(
        trials=600, short_s=0.1, long_s=0.4, finalists=12, rounds=15, heats=8, lap_s=600.0
    ),
}
