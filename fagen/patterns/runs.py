"""Patterns whose rows are one run of keys: bands, prefix-LM, blocks on the diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fagen.patterns.base import UNBOUNDED, IntervalPattern, ramps


@dataclass(frozen=True)
class Band(IntervalPattern):
    """A diagonal band: row q keeps keys q+shift-left .. q+shift+right, either side unbounded.

    ``shift`` aligns the diagonal to the bottom-right corner (seqlen_kv - seqlen_q) or, with
    ``top_left``, to the first key (0).
    """

    left: int = UNBOUNDED
    right: int = UNBOUNDED
    top_left: bool = False

    header = "patterns/band.h"

    def __str__(self) -> str:
        if self.left == UNBOUNDED and self.right in (UNBOUNDED, 0):
            return ("dense" if self.right else "causal") + "-topleft" * self.top_left
        return f"window{self.left}" + (f"x{self.right}" if self.right else "")

    @property
    def cpp(self) -> str:
        align = "Align::top_left" if self.top_left else "Align::bottom_right"
        left, right = ("UNBOUNDED" if n == UNBOUNDED else str(n) for n in (self.left, self.right))
        return f"Band<{left}, {right}, {align}>"

    @property
    def span(self) -> int:
        return max(self.left, self.right, 0)

    def shift(self, seqlen_q: int, seqlen_kv: int) -> int:
        return 0 if self.top_left else seqlen_kv - seqlen_q

    def row(self, q: int, seqlen_q: int, seqlen_kv: int) -> tuple[int, int]:
        diagonal = q + self.shift(seqlen_q, seqlen_kv)
        begin = 0 if self.left == UNBOUNDED else max(0, diagonal - self.left)
        end = seqlen_kv if self.right == UNBOUNDED else min(seqlen_kv, diagonal + self.right + 1)
        return begin, max(begin, end)

    def keep(self, i: Any, j: Any, seqlen_kv: int) -> Any:
        kept = (j >= 0) & (i == i)
        if self.left != UNBOUNDED:
            kept = kept & (j >= i - self.left)
        if self.right != UNBOUNDED:
            kept = kept & (j <= i + self.right)
        return kept

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        """Keys before the band's right edge less those before its left."""
        shift = self.shift(seqlen_q, seqlen_kv)

        def before(edge: int) -> int:
            return ramps(edge, seqlen_q + edge, seqlen_kv)

        left = 0 if self.left == UNBOUNDED else before(shift - self.left)
        right = (
            seqlen_q * seqlen_kv if self.right == UNBOUNDED else before(shift + self.right + 1)
        )
        return right - left


DENSE = Band()
CAUSAL = Band(right=0)
CAUSAL_TOP_LEFT = Band(right=0, top_left=True)


@dataclass(frozen=True)
class PrefixLM(IntervalPattern):
    """Causal, but every query sees the first ``prefix`` keys."""

    prefix: int

    header = "patterns/runs.h"

    def __str__(self) -> str:
        return f"prefix{self.prefix}"

    @property
    def cpp(self) -> str:
        return f"PrefixCausal<{self.prefix}>"

    @property
    def span(self) -> int:
        return self.prefix

    def row(self, q: int, seqlen_q: int, seqlen_kv: int) -> tuple[int, int]:
        return 0, min(max(q + self.shift(seqlen_q, seqlen_kv) + 1, self.prefix), seqlen_kv)

    def keep(self, i: Any, j: Any, seqlen_kv: int) -> Any:
        return (j <= i) | (j < self.prefix)

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        end, prefix = seqlen_kv + 1, min(self.prefix, seqlen_kv)
        begin = end - seqlen_q  # one more than the first position
        raised = min(max(prefix - begin, 0), seqlen_q)  # rows that keep the prefix and no more
        return raised * prefix + ramps(begin + raised, end, seqlen_kv)


@dataclass(frozen=True)
class BlockDiagonal(IntervalPattern):
    """Blocks of ``size`` positions that see themselves only."""

    size: int
    causal: bool = False

    header = "patterns/runs.h"

    def __str__(self) -> str:
        return f"blockdiag{self.size}" + "-causal" * self.causal

    @property
    def cpp(self) -> str:
        return f"BlockDiagonal<{self.size}, {str(self.causal).lower()}>"

    @property
    def span(self) -> int:
        return self.size

    def row(self, q: int, seqlen_q: int, seqlen_kv: int) -> tuple[int, int]:
        i = q + self.shift(seqlen_q, seqlen_kv)
        first = i // self.size * self.size
        begin, end = max(first, 0), min(i + 1 if self.causal else first + self.size, seqlen_kv)
        return begin, max(begin, end)

    def keep(self, i: Any, j: Any, seqlen_kv: int) -> Any:
        kept = i // self.size == j // self.size
        return kept & (j <= i) if self.causal else kept

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        first = max(seqlen_kv - seqlen_q, 0)
        return self._before(seqlen_kv, seqlen_kv) - self._before(first, seqlen_kv)

    def _before(self, end: int, seqlen_kv: int) -> int:
        """What the rows at positions 0 .. end - 1 keep."""
        blocks, rest = divmod(end, self.size)
        if self.causal:
            return blocks * (self.size * (self.size + 1) // 2) + rest * (rest + 1) // 2
        return blocks * self.size**2 + rest * min(self.size, seqlen_kv - blocks * self.size)
