"""Patterns that link blocks of positions by their numbers: templates/patterns/blocks.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fagen.patterns.parts import Longformer, Sparse, positions

if TYPE_CHECKING:
    from fagen.patterns.parts import Array, Run


@dataclass(frozen=True)
class BigBird(Longformer):
    """Longformer's keys, and ``random`` more for every query, in blocks drawn from a seed."""

    random: int = 64
    block: int = 64
    seed: int = 0

    header: ClassVar[str] = "patterns/blocks.h"

    def __str__(self) -> str:
        size = f"b{self.block}-" * (self.block != 64)
        return (f"bigbird-w{self.window}-g{self.globals}-r{self.random}-{size}seed{self.seed}"
                + "-causal" * self.causal)

    @property
    def draws(self) -> int:
        return self.random // self.block

    def _parts(self) -> list[str]:
        drawn = self._text("DrawnBlocks", self.block, self.draws, self.seed)
        return [*super()._parts(), drawn]

    @property
    def span(self) -> int:
        return max(super().span, 4 * self.block)

    def _drawn(self, row: Any, draw: int, seqlen_kv: int) -> Any:
        """The number of the block of keys, as DrawnBlocks::draw computes it in 32 bits."""
        low = 0xFFFFFFFF
        x = (self.seed * 0x9E3779B1 + row * 0x85EBCA77 + draw * 0xC2B2AE3D) & low
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & low
        x = ((x ^ (x >> 15)) * 0x846CA68B) & low
        x = x ^ (x >> 16)
        return x * (row + 1 if self.causal else -(-seqlen_kv // self.block)) >> 32

    def keep(self, i: Any, j: Any, seqlen_kv: int) -> Any:
        row, column = i // self.block, j // self.block
        kept = super().keep(i, j, seqlen_kv)
        for draw in range(self.draws):
            drawn = (self._drawn(row, draw, seqlen_kv) == column) & (i >= 0)
            kept = kept | self._cut(drawn, i, j)
        return kept

    def _runs(self, i: Array, seqlen_kv: int) -> list[Run]:
        import numpy as np

        runs = super()._runs(i, seqlen_kv)
        for draw in range(self.draws):
            first = self._drawn(i // self.block, draw, seqlen_kv) * self.block
            runs.append((first, np.where(i >= 0, first + self.block, first)))
        return runs


@dataclass(frozen=True)
class Butterfly(Sparse):
    """Blocks of positions that see the blocks whose numbers differ from theirs in at most a bit."""

    block: int
    causal: bool = False

    header: ClassVar[str] = "patterns/blocks.h"

    def __str__(self) -> str:
        return f"butterfly-b{self.block}" + "-causal" * self.causal

    @property
    def cpp(self) -> str:
        return f"AnyOf<{self._text('Butterfly', self.block)}>"

    @property
    def span(self) -> int:
        return 4 * self.block

    def keep(self, i: Any, j: Any, seqlen_kv: int) -> Any:
        differ = (i // self.block) ^ (j // self.block)
        return self._cut((i >= 0) & (differ & (differ - 1) == 0), i, j)

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        import numpy as np

        i = positions(seqlen_q, seqlen_kv)
        i = i[i >= 0]
        blocks = -(-seqlen_kv // self.block)
        bits = [0, *(1 << n for n in range((blocks - 1).bit_length()))]
        starts = [((i // self.block) ^ bit) * self.block for bit in bits]
        end = self._row_end(i, seqlen_kv)
        # Blocks do not overlap: no key is counted twice.
        return sum(int(np.clip(end - first, 0, self.block).sum()) for first in starts)
