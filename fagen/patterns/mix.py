"""Heads that follow different patterns: templates/patterns/mix.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fagen.patterns.base import Pattern, StaticPattern


@dataclass(frozen=True)
class Share:
    """So many heads in a row of one pattern."""

    heads: int
    pattern: StaticPattern

    def __str__(self) -> str:
        return f"{self.heads}_" * (self.heads > 1) + str(self.pattern)


@dataclass(frozen=True)
class Mix(Pattern):
    """The shares take the query heads in turns, round after round."""

    shares: tuple[Share, ...]

    header = "patterns/mix.h"

    def __str__(self) -> str:
        return "_".join(("mix", *map(str, self.shares)))

    @property
    def headers(self) -> tuple[str, ...]:
        return *dict.fromkeys(share.pattern.header for share in self.shares), self.header

    @property
    def cpp(self) -> str:
        return f"Mix<{', '.join(f'HeadsOf<{s.heads}, {s.pattern.cpp}>' for s in self.shares)}>"

    @property
    def span(self) -> int:
        return max(share.pattern.span for share in self.shares)

    @property
    def round(self) -> tuple[StaticPattern, ...]:
        """The pattern of each head of a round."""
        return tuple(share.pattern for share in self.shares for _ in range(share.heads))

    def of_head(self, head: int) -> StaticPattern:
        return self.round[head % len(self.round)]

    def kept(self, q: Any, seqlen_q: int, seqlen_kv: int) -> Any:
        """What one head or another keeps."""
        first, *others = (share.pattern.kept(q, seqlen_q, seqlen_kv) for share in self.shares)
        for other in others:
            first = first | other
        return first

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        """Of an average head."""
        return self.count_heads(len(self.round), seqlen_q, seqlen_kv) // len(self.round)

    def count_heads(self, heads: int, seqlen_q: int, seqlen_kv: int) -> int:
        rounds, rest = divmod(heads, len(self.round))
        counts = [share.pattern.count_kept(seqlen_q, seqlen_kv) for share in self.shares]
        each = [n for n, share in zip(counts, self.shares, strict=True) for _ in range(share.heads)]
        return rounds * sum(each) + sum(each[:rest])
