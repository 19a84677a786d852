"""What a reference kernel takes when nothing disturbs it: the median of its good looks, and how far
from it one may be by its own noise."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from fagen.neighbours import Conditions

_LOOKS = 9  # good ones, of which the median is taken
_LEAST, _MOST = 0.06, 0.15  # slower than usual by more is disturbed: between these, and
_SPREADS = 4  # so many times the usual distance from the median
_CROWDED = 0.2  # of the device's time, beyond what others always use
_CLOCK = 0.03  # a clock that fell by more explains it


@dataclass(frozen=True)
class Look:
    """The reference, at one moment."""

    us: float
    conditions: Conditions


class Usual:
    """What the reference takes when nothing disturbs it."""

    def __init__(self) -> None:
        self._good: deque[Look] = deque(maxlen=_LOOKS)

    def take(self, look: Look) -> None:
        self._good.append(look)

    def begin_again(self, look: Look) -> None:
        self._good.clear()
        self.take(look)

    def slower(self, look: Look) -> float:
        """By which share; negative: faster."""
        return look.us / median(g.us for g in self._good) - 1 if self._good else 0.0

    def allowed(self) -> float:
        """How far its own noise takes it from the median."""
        if len(self._good) < 3:
            return (_LEAST + _MOST) / 2
        middle = median(g.us for g in self._good)
        spread = median(abs(g.us - middle) for g in self._good) / middle
        return min(_MOST, max(_LEAST, _SPREADS * spread))

    def is_slow(self, look: Look) -> bool:
        return self.slower(look) > self.allowed()

    def is_fast(self, look: Look) -> bool:
        return self.slower(look) < -self.allowed()

    def is_crowded(self, conditions: Conditions) -> bool:
        """Others used more of the device than they always do."""
        return conditions.busy > self._busy() + _CROWDED

    def _busy(self) -> float:
        return median(g.conditions.busy for g in self._good) if self._good else 0.0

    def reason(self, conditions: Conditions) -> str:
        """Why it is slow, in words."""
        clocks = [g.conditions.mhz for g in self._good if g.conditions.mhz] or [0.0]
        if 0 < conditions.mhz < median(clocks) * (1 - _CLOCK):
            return f"its clock fell from {median(clocks):.0f} to {conditions.mhz:.0f} MHz"
        if self.is_crowded(conditions):
            return f"others used {conditions.busy:.0%} of the device"
        if conditions.others:
            return f"{conditions.others} other processes hold the device"
        return "something else used the device"
