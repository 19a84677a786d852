"""What every sparsity pattern offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNBOUNDED = -1


@dataclass(frozen=True)
class Tiles:
    """A mask in tiles: a row of ``kinds`` per block of queries, a column per block of keys."""

    SKIPPED: ClassVar[int] = 0
    PARTIAL: ClassVar[int] = 1
    FULL: ClassVar[int] = 2

    rows: int  # queries and keys of one tile
    keys: int
    kinds: NDArray[np.int8]

    def count(self, kind: int) -> int:
        return int((self.kinds == kind).sum())

    @property
    def share(self) -> float:
        """The part of all tiles that a kernel has to compute."""
        return 1 - self.count(self.SKIPPED) / self.kinds.size


class Pattern(ABC):
    """Which (query, key) pairs stay. ``str()`` is the slug, ``parse_pattern`` its inverse.

    Most patterns speak of positions: query q stands at ``q + shift`` among the keys, the last
    query at the last key. A position is negative where there are more queries than keys.
    """

    header: ClassVar[str]  # under templates/
    interval: ClassVar[bool] = False  # is every row one run of keys?
    is_data: ClassVar[bool] = False  # does the mask come with the call? (patterns/data.py)
    reads: ClassVar[str] = ""  # of such a mask: blocks or runs
    # The query's position reaches no further than this to either side.
    left: int = UNBOUNDED
    right: int = UNBOUNDED
    top_left: bool = False  # position 0 is the first query and not where the last key says

    @property
    @abstractmethod
    def cpp(self) -> str:
        """The C++ type, as the header spells it."""

    @property
    def headers(self) -> tuple[str, ...]:
        """All that a kernel includes for it."""
        return (self.header,)

    @abstractmethod
    def kept(self, q: Any, seqlen_q: int, seqlen_kv: int) -> Any:
        """Some rows of the boolean matrix: those of the queries q."""

    @abstractmethod
    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        """How many (q, k) stay; quick at any length."""

    def count_heads(self, heads: int, seqlen_q: int, seqlen_kv: int) -> int:
        """The same for the first query heads of a batch."""
        return heads * self.count_kept(seqlen_q, seqlen_kv)

    @property
    @abstractmethod
    def span(self) -> int:
        """Sequences longer than this show everything the pattern does."""

    def drawn_with(self, density: int) -> Self:
        """The same with masks that keep so many percent, where the mask comes with the call."""
        return self

    def shift(self, seqlen_q: int, seqlen_kv: int) -> int:
        return seqlen_kv - seqlen_q

    def mask(self, seqlen_q: int, seqlen_kv: int) -> NDArray[np.bool_]:
        """The boolean matrix itself, for the reference."""
        import numpy as np

        rows: NDArray[np.bool_] = self.kept(np.arange(seqlen_q), seqlen_q, seqlen_kv)
        return rows

    def share(self, seqlen_q: int, seqlen_kv: int) -> float:
        """The part of all (q, k) that stays, and so of the dense work."""
        return self.count_kept(seqlen_q, seqlen_kv) / (seqlen_q * seqlen_kv)

    def tiles(self, seqlen_q: int, seqlen_kv: int, rows: int, keys: int) -> Tiles:
        """Which tiles a kernel skips, computes, and computes without a mask."""
        import numpy as np

        starts = np.arange(0, seqlen_kv, keys)
        sizes = np.diff([*starts, seqlen_kv])
        kinds = []
        for first in range(0, seqlen_q, rows):
            q = np.arange(first, min(first + rows, seqlen_q))
            counts = np.add.reduceat(self.kept(q, seqlen_q, seqlen_kv).sum(0), starts)
            kinds.append((counts > 0).astype(np.int8) + (counts == sizes * len(q)))
        return Tiles(rows, keys, np.stack(kinds).astype(np.int8))

    def __lt__(self, other: Pattern) -> bool:
        return str(self) < str(other)


class StaticPattern(Pattern):
    """A formula of positions, compiled into the kernel."""

    @abstractmethod
    def keep(self, i: Any, j: Any, seqlen_kv: int) -> Any:
        """Does the query at position i keep key j? Arrays of integers, numpy's or torch's."""

    def kept(self, q: Any, seqlen_q: int, seqlen_kv: int) -> Any:
        import numpy as np

        i = q[:, None] + self.shift(seqlen_q, seqlen_kv)
        rows = self.keep(i, np.arange(seqlen_kv)[None, :], seqlen_kv)
        return np.broadcast_to(rows, (len(q), seqlen_kv)).copy()


class IntervalPattern(StaticPattern):
    """Every row keeps one run of keys: masks are two comparisons, on any hardware."""

    interval: ClassVar[bool] = True

    @abstractmethod
    def row(self, q: int, seqlen_q: int, seqlen_kv: int) -> tuple[int, int]:
        """First and one past the last key that row q keeps; empty when equal."""


def ramp(end: int, top: int) -> int:
    """The sum of min(i, top) for i from 0 to end - 1."""
    rising = max(0, min(end, top))
    return rising * (rising - 1) // 2 + top * max(0, end - top)


def ramps(begin: int, end: int, top: int) -> int:
    """The sum of min(max(i, 0), top) for i from begin to end - 1."""
    return ramp(end, top) - ramp(begin, top)
