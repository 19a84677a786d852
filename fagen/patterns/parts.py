"""Patterns that are unions of simple parts: templates/patterns/parts.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fagen.patterns.base import StaticPattern

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.int64]
    Run = tuple[Array, Array]  # first keys and ends, one of each per row


class Sparse(StaticPattern):
    """A union of parts, each of which may be cut at the diagonal."""

    header: ClassVar[str] = "patterns/parts.h"
    causal: bool  # a field of every subclass

    def _text(self, part: str, *parameters: int) -> str:
        """A part that has a causal form."""
        return f"{part}<{', '.join(map(str, (*parameters, str(self.causal).lower())))}>"

    def _near(self, reach: int) -> str:
        return f"Near<{reach}, {0 if self.causal else reach}>"

    def _cut(self, kept: Any, i: Any, j: Any) -> Any:
        return kept & (j <= i) if self.causal else kept

    def _row_end(self, i: Array, seqlen_kv: int) -> Array:
        """One past the last key that each row may keep."""
        import numpy as np

        return np.clip(i + 1, 0, seqlen_kv) if self.causal else np.full_like(i, seqlen_kv)


def positions(seqlen_q: int, seqlen_kv: int) -> Array:
    import numpy as np

    return np.arange(seqlen_kv - seqlen_q, seqlen_kv, dtype=np.int64)


def covered(runs: list[Run], end: Array) -> int:
    """How many keys lie in one of the runs: keys from 0 to each row's end, none counted twice."""
    import numpy as np

    begins, ends = (np.clip(np.stack(side), 0, end) for side in zip(*runs, strict=True))
    order = begins.argsort(axis=0)
    begins, ends = (np.take_along_axis(x, order, 0) for x in (begins, ends))
    seen = np.zeros_like(end)
    total = 0
    for begin, stop in zip(begins, ends, strict=True):
        total += int(np.maximum(stop - np.maximum(begin, seen), 0).sum())
        seen = np.maximum(seen, stop)
    return total


@dataclass(frozen=True)
class Dilated(Sparse):
    """``window`` keys on either side of the query, ``step`` positions apart, and its own."""

    window: int
    step: int
    causal: bool = False

    def __str__(self) -> str:
        return f"dilated-w{self.window}-d{self.step}" + "-causal" * self.causal

    @property
    def cpp(self) -> str:
        reach = self.window * self.step
        return f"AnyOf<Steps<{self.step}, {reach}, {0 if self.causal else reach}>>"

    @property
    def span(self) -> int:
        return self.window * self.step

    def keep(self, i: Any, j: Any, seqlen_kv: int) -> Any:
        kept = ((i - j) % self.step == 0) & (abs(i - j) <= self.window * self.step)
        return self._cut(kept, i, j)

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        import numpy as np

        i = positions(seqlen_q, seqlen_kv)
        last = self._row_end(i, seqlen_kv) - 1
        before = np.minimum(i // self.step, self.window)
        after = np.maximum((i - last + self.step - 1) // self.step, -self.window)
        return int(np.maximum(before - after + 1, 0).sum())


@dataclass(frozen=True)
class Strided(Sparse):
    """The ``stride`` - 1 keys next to the query, and every ``stride``-th beyond."""

    stride: int
    causal: bool = False

    def __str__(self) -> str:
        return f"strided-s{self.stride}" + "-causal" * self.causal

    @property
    def cpp(self) -> str:
        after = 0 if self.causal else "FAR"
        return f"AnyOf<{self._near(self.stride - 1)}, Steps<{self.stride}, FAR, {after}>>"

    @property
    def span(self) -> int:
        return 2 * self.stride

    def keep(self, i: Any, j: Any, seqlen_kv: int) -> Any:
        kept = ((i - j) % self.stride == 0) | (abs(i - j) < self.stride)
        return self._cut(kept, i, j)

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        import numpy as np

        i = positions(seqlen_q, seqlen_kv)
        last = self._row_end(i, seqlen_kv) - 1
        near = np.minimum(i + self.stride - 1, last) - np.maximum(i - self.stride + 1, 0) + 1
        # Multiples of the stride in [i - last, i], but for 0, which is near.
        far = i // self.stride - (i - last - 1) // self.stride - ((i >= 0) & (last >= i))
        return int((np.maximum(near, 0) + np.where(last >= 0, far, 0)).sum())


@dataclass(frozen=True)
class Fixed(Sparse):
    """The query's own block of ``stride`` positions, and the last ``columns`` of every block."""

    stride: int
    columns: int
    causal: bool = False

    def __str__(self) -> str:
        return f"fixed-s{self.stride}-c{self.columns}" + "-causal" * self.causal

    @property
    def cpp(self) -> str:
        ends = self._text("BlockEnds", self.stride, self.columns)
        return f"AnyOf<{self._text('OwnBlock', self.stride)}, {ends}>"

    @property
    def span(self) -> int:
        return 2 * self.stride

    def keep(self, i: Any, j: Any, seqlen_kv: int) -> Any:
        own = i // self.stride == j // self.stride
        return self._cut(own | (j % self.stride >= self.stride - self.columns), i, j)

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        import numpy as np

        i = positions(seqlen_q, seqlen_kv)
        end = self._row_end(i, seqlen_kv)
        first = i // self.stride * self.stride
        own_begin, own_end = np.clip(first, 0, end), np.clip(first + self.stride, 0, end)
        shared = self._ends_before(end) - self._ends_before(own_end) + self._ends_before(own_begin)
        return int((own_end - own_begin + shared).sum())

    def _ends_before(self, key: Array) -> Array:
        """How many keys below this one are block ends."""
        import numpy as np

        blocks, rest = np.divmod(key, self.stride)
        ends: Array = blocks * self.columns + np.maximum(rest - (self.stride - self.columns), 0)
        return ends


@dataclass(frozen=True)
class Longformer(Sparse):
    """``window`` keys on either side of the query; the first ``globals`` see and are seen."""

    window: int
    globals: int
    causal: bool = False

    def __str__(self) -> str:
        return f"longformer-w{self.window}-g{self.globals}" + "-causal" * self.causal

    @property
    def cpp(self) -> str:
        return f"AnyOf<{', '.join(self._parts())}>"

    def _parts(self) -> list[str]:
        rows = [] if self.causal else [f"FirstQueries<{self.globals}>"]  # else within FirstKeys
        return [self._near(self.window), self._text("FirstKeys", self.globals), *rows]

    @property
    def span(self) -> int:
        return self.window + self.globals

    def keep(self, i: Any, j: Any, seqlen_kv: int) -> Any:
        seen = (j < self.globals) | ((i >= 0) & (i < self.globals))
        return self._cut(seen | (abs(i - j) <= self.window), i, j)

    def _runs(self, i: Array, seqlen_kv: int) -> list[Run]:
        import numpy as np

        begin = np.zeros_like(i)
        sees = np.where((i >= 0) & (i < self.globals), seqlen_kv, self.globals)
        return [(begin, sees), (i - self.window, i + self.window + 1)]

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        i = positions(seqlen_q, seqlen_kv)
        return covered(self._runs(i, seqlen_kv), self._row_end(i, seqlen_kv))
