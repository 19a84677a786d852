"""Patterns whose mask is data of the call: templates/patterns/lists.h and documents.h.

A kernel for one of these serves any mask of its kind. Where fagen itself needs a mask (to verify,
to tune, to draw), it draws one: the same for the same sizes, density and seed. Seed 0 is what is
timed; other seeds are for verification, and leave out what some rows would have seen.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fagen.patterns.base import Pattern

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DENSITY = 25  # percent


@dataclass(frozen=True)
class DataPattern(Pattern):
    """Drawn with about ``density`` percent of the scores (of the causal ones)."""

    causal: bool = False
    density: int = DENSITY

    is_data: ClassVar[bool] = True

    def drawn_with(self, density: int) -> Self:
        return replace(self, density=density or DENSITY)

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        return _counted(self, seqlen_q, seqlen_kv)

    @abstractmethod
    def _count(self, seqlen_q: int, seqlen_kv: int) -> int:
        """The same, each time anew."""

    @abstractmethod
    def drawn(self, seqlen_q: int, seqlen_kv: int, seed: int = 0) -> NDArray[Any]:
        """What the mask is made of."""


@functools.lru_cache(maxsize=256)
def _counted(pattern: DataPattern, seqlen_q: int, seqlen_kv: int) -> int:
    return pattern._count(seqlen_q, seqlen_kv)


@dataclass(frozen=True)
class BlockLists(DataPattern):
    """Blocks of ``block_q`` queries by ``block_kv`` keys; each row of blocks has its list."""

    block_q: int = 128
    block_kv: int = 128

    header = "patterns/lists.h"
    reads: ClassVar[str] = "blocks"

    def __str__(self) -> str:
        size = f"{self.block_q}" + f"x{self.block_kv}" * (self.block_kv != self.block_q)
        return f"blocks{size}" + "-causal" * self.causal

    @property
    def cpp(self) -> str:
        return f"Lists<{self.block_q}, {self.block_kv}, {str(self.causal).lower()}>"

    @property
    def span(self) -> int:
        return 4 * max(self.block_q, self.block_kv)

    def drawn(self, seqlen_q: int, seqlen_kv: int, seed: int = 0) -> NDArray[np.bool_]:
        """Blocks, [rows of blocks, columns of blocks]: random ones, and those on the diagonal."""
        import numpy as np

        rows, columns = -(-seqlen_q // self.block_q), -(-seqlen_kv // self.block_kv)
        random = np.random.default_rng((rows, columns, self.density, seed))
        blocks = random.random((rows, columns)) * 100 < self.density
        last = np.minimum(np.arange(1, rows + 1) * self.block_q, seqlen_q) - 1
        diagonal = (last + self.shift(seqlen_q, seqlen_kv)) // self.block_kv
        inside = diagonal >= 0
        blocks[np.flatnonzero(inside), diagonal[inside]] = True
        if seed:
            blocks[random.integers(rows)] = False
            blocks[:, random.integers(columns)] = False
        return blocks

    def kept(self, q: Any, seqlen_q: int, seqlen_kv: int) -> Any:
        import numpy as np

        k = np.arange(seqlen_kv)
        blocks = self.drawn(seqlen_q, seqlen_kv)
        stays = blocks[q[:, None] // self.block_q, k // self.block_kv]
        return stays & (k <= q[:, None] + self.shift(seqlen_q, seqlen_kv)) if self.causal else stays

    def _count(self, seqlen_q: int, seqlen_kv: int) -> int:
        import numpy as np

        blocks = self.drawn(seqlen_q, seqlen_kv)
        rows, columns = (np.arange(n)[:, None] for n in blocks.shape)
        q0, k0 = rows * self.block_q, columns.T * self.block_kv
        q1 = np.minimum(q0 + self.block_q, seqlen_q)
        width = np.minimum(self.block_kv, seqlen_kv - k0)
        if not self.causal:
            return int(((q1 - q0) * width)[blocks].sum())
        ahead = self.shift(seqlen_q, seqlen_kv) + 1 - k0  # keys of a block before row 0's next
        return int((_ramp(q1 + ahead, width) - _ramp(q0 + ahead, width))[blocks].sum())


def _ramp(end: Any, top: Any) -> Any:
    """The sum of min(max(i, 0), top) for i below end."""
    import numpy as np

    rising = np.clip(end, 0, top)
    return rising * (rising - 1) // 2 + top * np.maximum(end - top, 0)


@dataclass(frozen=True)
class Documents(DataPattern):
    """Documents one after another, each of which sees itself only."""

    header = "patterns/documents.h"
    reads: ClassVar[str] = "runs"
    interval: ClassVar[bool] = True

    def __str__(self) -> str:
        return "documents" + "-causal" * self.causal

    @property
    def cpp(self) -> str:
        return "Documents"

    @property
    def span(self) -> int:
        return 0

    def drawn(self, seqlen_q: int, seqlen_kv: int, seed: int = 0) -> NDArray[np.int64]:
        """Where documents end, [queries or keys, documents]."""
        import numpy as np

        count = max(1, round(100 / self.density))
        random = np.random.default_rng((seqlen_q, seqlen_kv, self.density, seed))
        cuts = np.sort(random.random((2, count)), 1)
        if seqlen_q == seqlen_kv:
            cuts[1] = cuts[0]
        ends = (cuts * [[seqlen_q + 1], [seqlen_kv + 1]]).astype(np.int64)
        if not seed:  # else what comes after the last document sees nothing
            ends[:, -1] = seqlen_q, seqlen_kv
        return ends

    def runs(self, seqlen_q: int, seqlen_kv: int, seed: int = 0) -> NDArray[np.int64]:
        """[begin, end) of the keys of each query. Causal: a document's last query sees its last
        key."""
        import numpy as np

        ends_q, ends_kv = self.drawn(seqlen_q, seqlen_kv, seed)
        q = np.arange(seqlen_q)
        mine = np.searchsorted(ends_q, q, "right")
        starts = np.append(0, ends_kv)
        begin, end = starts[mine], np.append(ends_kv, ends_kv[-1])[mine]
        if self.causal:
            left = np.append(ends_q, seqlen_q)[mine] - 1 - q
            end = np.maximum(begin, end - left)
        return np.stack((begin, end), 1)

    def kept(self, q: Any, seqlen_q: int, seqlen_kv: int) -> Any:
        import numpy as np

        begin, end = self.runs(seqlen_q, seqlen_kv)[q].T[:, :, None]
        k = np.arange(seqlen_kv)
        return (k >= begin) & (k < end)

    def _count(self, seqlen_q: int, seqlen_kv: int) -> int:
        begin, end = self.runs(seqlen_q, seqlen_kv).T
        return int((end - begin).sum())
