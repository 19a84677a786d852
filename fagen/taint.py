"""Was the device as it always is while candidates were timed? A reference is timed in between.

One kernel, always the same, is compared with the running median of its own times. Load of others
comes and goes: what was timed between two good looks with a bad one in between is thrown away, and
timed again as soon as the reference is as fast as before. A clock that sinks under load sinks for
all alike: the median moves along, and nothing is thrown away. A step that stays is taken for the
new usual, and only the best so far are timed again, so that they are compared with what comes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from fagen.neighbours import Conditions
from fagen.usual import Look, Usual
from fagen.winner import K

T = TypeVar("T")

_EVERY_S = 2.0  # between two looks, and
_SHARE = 0.025  # they take no larger share of the time;
_ALERT = 4  # times as often while it is disturbed, and until
_CALM = 8  # looks were good
_TRIES = 3  # so often one candidate is timed again
_STAYS_S = 30.0  # what lasts so long is there to stay
_PAUSE_S = 1.0  # between looks in the end;
_WAITS = 0.4  # of all time may be spent so
_RERUNS = 4  # of heats, in all
_BEST = 16  # are timed again after a step


class Guard(Generic[K]):
    """Watches over a search: is told of everything that is timed, and has some timed again."""

    def __init__(
        self, look: Callable[[], Look | None], again: Callable[[K], None],
        best: Callable[[Iterable[K]], Sequence[K]], say: Callable[[str], None],
        until: float = math.inf,
    ) -> None:
        """``look`` gives nothing where there is no reference. ``again`` times once more, and tells
        it here; ``best`` sorts; after ``until``, by the monotonic clock, nothing is waited for."""
        self._look, self._again, self._best, self._say = look, again, best, say
        self._begin, self._until = time.monotonic(), until
        self._usual = Usual()
        self._since: dict[K, None] = {}  # timed since the last good look
        self._crowded: dict[K, Conditions] = {}  # of them, those with others beside them
        self._here: dict[K, None] = {}  # timed while the usual was what it is now
        self._owed: dict[K, None] = {}  # to be timed again, when all is well
        self._times: Counter[K] = Counter()
        self._slow: list[Look] = []  # since the last good one
        self._slow_from = self._next = 0.0
        self._calm = _CALM  # good looks in a row
        self._waited, self._reruns = 0.0, 0
        self.looks, self.seconds = 0, 0.0  # of the reference
        self.thrown_away = 0  # timings

    def timed(self, key: K, conditions: Conditions) -> None:
        self._since[key] = self._here[key] = None
        self._crowded.pop(key, None)
        if self._usual.is_crowded(conditions) and self._times[key] < _TRIES:
            self._crowded[key] = conditions

    @property
    def due(self) -> bool:
        return bool(self._crowded or self._since) and self._is_time()

    def _is_time(self) -> bool:
        return bool(self._crowded) or time.monotonic() >= self._next

    def check(self) -> None:
        """Look, and time again what was disturbed, as long as all is well."""
        self._judge()
        while self._owed and not self._slow:
            key = next(iter(self._owed))
            del self._owed[key]
            if self._times[key] < _TRIES:
                self._anew(key)
            if self._is_time():
                self._judge()

    def finish(self) -> None:
        """The same in the end, and some patience until the device is as it was."""
        if self._since or self._owed:
            self.check()
        begin = time.monotonic()
        while self._owed and self._pause(begin):
            self.check()

    def undisturbed(self, run: Callable[[], T], what: str) -> T:
        """Run when the reference is fine, and again, a few times, when it was not afterwards."""
        while True:
            self._wait()
            result, look = run(), self._sure()
            slow = look is not None and self._usual.is_slow(look)
            if look is None or not slow or self._reruns >= _RERUNS:
                return result
            self._reruns += 1
            self.thrown_away += 1
            self._say(f"{self._says(look)}; {what} is run again")

    def _wait(self) -> None:
        """For a good look, but not for ever: what lasts is taken as it is."""
        begin, look = time.monotonic(), self._sure()
        while look and self._usual.is_slow(look) and self._pause(begin):
            look = self._sure()
        if look and (self._usual.is_slow(look) or self._usual.is_fast(look)):
            self._usual.begin_again(look)

    def _pause(self, begin: float) -> bool:
        """A moment, while there is patience left."""
        now = time.monotonic()
        patient = now - begin < _STAYS_S and self._waited < _WAITS * (now - self._begin)
        if not patient or now >= self._until:
            return False
        self._waited += _PAUSE_S
        time.sleep(_PAUSE_S)
        return True

    def _anew(self, key: K) -> None:
        self._times[key] += 1
        self.thrown_away += 1
        self._again(key)

    def _judge(self) -> None:
        look = self._sure()
        if look is None:
            self._since.clear()
            self._crowded.clear()
        elif self._usual.is_slow(look):
            self._suspect(look)
        elif self._usual.is_fast(look):
            self._step(look)
        else:
            self._trust(look)

    def _suspect(self, look: Look) -> None:
        now = time.monotonic()
        if not self._slow:
            self._slow_from = now
        self._slow.append(look)
        self._calm = 0
        self._owed |= self._since
        self._since.clear()
        self._crowded.clear()
        if now - self._slow_from >= _STAYS_S:
            for key in self._owed:
                self._here.pop(key, None)
            self._owed.clear()
            self._step(look)

    def _trust(self, look: Look) -> None:
        """It is as it should be; what was timed while it was not is owed."""
        tainted = {**self._owed, **self._since} if self._slow else {**self._owed, **self._crowded}
        fresh = [key for key in tainted if self._times[key] < _TRIES]
        if fresh and (self._slow or self._crowded):
            self._say(f"{self._why()}; {_candidates(len(fresh))} timed again")
        self._owed = dict.fromkeys(fresh)
        self._usual.take(look)
        self._calm += 1
        self._since.clear()
        self._crowded.clear()
        self._slow.clear()

    def _why(self) -> str:
        if not self._slow:
            return self._usual.reason(max(self._crowded.values(), key=lambda c: c.busy))
        return self._says(max(self._slow, key=lambda look: look.us))

    def _says(self, look: Look) -> str:
        return (f"the reference ran {self._usual.slower(look):.0%} slow: "
                f"{self._usual.reason(look.conditions)}")

    def _step(self, look: Look) -> None:
        """The usual is another one from now on."""
        change, before = self._usual.slower(look), list(self._here)
        self._usual.begin_again(look)
        for known in (self._here, self._since, self._crowded, self._slow):
            known.clear()
        chosen = [key for key in self._best(before)[:_BEST] if self._times[key] < _TRIES]
        self._say(f"the reference takes {change:+.0%} from now on; {_candidates(len(chosen))} "
                  "timed again, the best before, to be compared with what comes")
        for key in chosen:
            self._anew(key)

    def _sure(self) -> Look | None:
        """A look; when it is unusual a second one, and the more usual of both."""
        look = self._one()
        if look is None or not (self._usual.is_slow(look) or self._usual.is_fast(look)):
            return look
        second = self._one()
        both = [look] if second is None else [look, second]
        return min(both, key=lambda one: abs(self._usual.slower(one)))

    def _one(self) -> Look | None:
        begin = time.monotonic()
        look = self._look()
        if look is not None:
            now = time.monotonic()
            self.looks += 1
            self.seconds += now - begin
            often = _ALERT if self._calm < _CALM else 1
            self._next = now + max(_EVERY_S, (now - begin) / _SHARE) / often
        return look


def _candidates(count: int) -> str:
    return "1 candidate is" if count == 1 else f"{count} candidates are"
