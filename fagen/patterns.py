"""Sparsity patterns: the name, its C++ type, and the numpy mask that proves the header right.

A pattern's slug is a word with its parameters, such as ``causal`` or ``window1024x0``. The C++
side of each lives in ``templates/patterns/``; ``tests/unit/test_patterns.py`` compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fagen.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNBOUNDED = -1


@dataclass(frozen=True, order=True)
class Pattern:
    """A diagonal band: row q keeps keys q+shift-left .. q+shift+right, either side unbounded.

    ``shift`` aligns the diagonal to the bottom-right corner (seqlen_kv - seqlen_q) or, with
    ``top_left``, to the first key (0).
    """

    left: int = UNBOUNDED
    right: int = UNBOUNDED
    top_left: bool = False

    header = "patterns/band.h"

    def __str__(self) -> str:
        return next(row.show(self) for row in PATTERNS if row.matches(self))

    @property
    def cpp(self) -> str:
        """The C++ type, as the header spells it."""
        align = "Align::top_left" if self.top_left else "Align::bottom_right"
        left, right = ("UNBOUNDED" if n == UNBOUNDED else str(n) for n in (self.left, self.right))
        return f"Band<{left}, {right}, {align}>"

    def shift(self, seqlen_q: int, seqlen_kv: int) -> int:
        return 0 if self.top_left else seqlen_kv - seqlen_q

    def row(self, q: int, seqlen_q: int, seqlen_kv: int) -> tuple[int, int]:
        """First and one past the last key that row q keeps; empty when equal."""
        diagonal = q + self.shift(seqlen_q, seqlen_kv)
        begin = 0 if self.left == UNBOUNDED else max(0, diagonal - self.left)
        end = seqlen_kv if self.right == UNBOUNDED else min(seqlen_kv, diagonal + self.right + 1)
        return begin, max(begin, end)

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        """How many (q, k) stay: keys before the band's right edge less those before its left."""
        shift = self.shift(seqlen_q, seqlen_kv)

        def before(edge: int) -> int:  # sum over the rows of min(max(row + edge, 0), seqlen_kv)
            return _ramp(seqlen_q + edge, seqlen_kv) - _ramp(edge, seqlen_kv)

        left = 0 if self.left == UNBOUNDED else before(shift - self.left)
        right = (
            seqlen_q * seqlen_kv if self.right == UNBOUNDED else before(shift + self.right + 1)
        )
        return right - left

    def mask(self, seqlen_q: int, seqlen_kv: int) -> NDArray[np.bool_]:
        """The boolean matrix itself, for the reference."""
        import numpy as np

        diagonal = np.arange(seqlen_q)[:, None] + self.shift(seqlen_q, seqlen_kv)
        k = np.arange(seqlen_kv)[None, :]
        keep = np.ones((seqlen_q, seqlen_kv), dtype=bool)
        if self.left != UNBOUNDED:
            keep &= k >= diagonal - self.left
        if self.right != UNBOUNDED:
            keep &= k <= diagonal + self.right
        return keep


def _ramp(end: int, top: int) -> int:
    """The sum of min(i, top) for i from 0 to end - 1."""
    rising = max(0, min(end, top))
    return rising * (rising - 1) // 2 + top * max(0, end - top)


@dataclass(frozen=True)
class PatternRow:
    """One line of the table: how a slug is read, recognised and written."""

    slug: str  # for help texts
    regex: str
    make: Callable[[re.Match[str]], Pattern]
    matches: Callable[[Pattern], bool]
    show: Callable[[Pattern], str]
    says: str


def _window(match: re.Match[str]) -> Pattern:
    return Pattern(int(match[1]), int(match[2] or 0))


DENSE = Pattern()
CAUSAL = Pattern(right=0)
CAUSAL_TOP_LEFT = Pattern(right=0, top_left=True)

PATTERNS: tuple[PatternRow, ...] = (
    PatternRow("dense", "dense", lambda m: DENSE, lambda p: p == DENSE, lambda p: "dense",
               "every query sees every key"),
    PatternRow("causal", "causal", lambda m: CAUSAL, lambda p: p == CAUSAL, lambda p: "causal",
               "keys up to the query; the last query sees the last key"),
    PatternRow("causal-topleft", "causal-topleft", lambda m: CAUSAL_TOP_LEFT,
               lambda p: p == CAUSAL_TOP_LEFT, lambda p: "causal-topleft",
               "keys up to the query; the first query sees the first key"),
    PatternRow("windowL[xR]", r"window(\d{1,9})(?:x(\d{1,9}))?", _window,
               lambda p: p.left >= 0 and p.right >= 0 and not p.top_left,
               lambda p: f"window{p.left}" + (f"x{p.right}" if p.right else ""),
               "L keys before the query, itself, and R after; aligned as causal is"),
)


def parse_pattern(slug: str) -> Pattern:
    for row in PATTERNS:
        match = re.fullmatch(row.regex, slug, re.ASCII)
        if match:
            return row.make(match)
    raise UsageError(
        f"unknown pattern {slug!r}", "one of: " + ", ".join(row.slug for row in PATTERNS)
    )
