"""Run-time sizes: what is counted and moved for a problem of these sizes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fagen.errors import UsageError
from fagen.packing import draw

if TYPE_CHECKING:
    from fagen.model import Problem


@dataclass(frozen=True, order=True)
class Workload:
    """Run-time sizes, and how much this size counts among several.

    With ``total_q`` rows it is a packed batch: ``batch`` sequences, the longest as long as the
    lengths say, drawn so that they come to the totals. A problem for packed sequences takes any
    other workload as sequences of equal length.
    """

    batch: int
    heads: int
    kv_heads: int
    seqlen_q: int
    seqlen_kv: int
    weight: float = 1.0
    total_q: int = 0  # 0: not packed
    total_kv: int = 0
    density: int = 0  # percent that a mask drawn for the call keeps; 0: as its pattern likes

    def __post_init__(self) -> None:
        for name in ("batch", "heads", "kv_heads", "seqlen_q", "seqlen_kv"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value < 2**31:
                raise UsageError(f"{name} {value!r} is not a positive 32-bit integer")
        if self.heads % self.kv_heads:
            raise UsageError(
                f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}",
                "each key/value head serves heads / kv_heads query heads",
            )
        if not 0 <= self.density <= 100:
            raise UsageError(f"density {self.density} is not a percentage", "from 1 to 100")
        if not self.weight > 0:
            raise UsageError(f"weight {self.weight!r} is not positive")
        for total, longest in ((self.total_q, self.seqlen_q), (self.total_kv, self.seqlen_kv)):
            if self.packed and not longest <= total <= min(self.batch * longest, 2**31 - 1):
                raise UsageError(
                    f"{total} rows in all do not fit {self.batch} sequences, the longest of "
                    f"{longest} rows", f"from {longest} to {self.batch * longest}"
                )

    def __str__(self) -> str:
        heads, seqlen, total = (
            f"{a}" + (f"x{b}" if b != a else "") for a, b in (
                (self.heads, self.kv_heads), (self.seqlen_q, self.seqlen_kv),
                (self.total_q, self.total_kv))
        )
        return (f"b{self.batch}-h{heads}-s{seqlen}" + (f"-t{total}" if self.packed else "")
                + (f"-k{self.density}" if self.density else ""))

    _SLUG = re.compile(
        r"b(N)-h(N)(?:x(N))?-s(N)(?:x(N))?(?:-t(T)(?:x(T))?)?(?:-k(T))?"
        .replace("N", r"\d{1,10}").replace("T", r"[1-9]\d{0,9}"),
        re.ASCII,
    )

    @classmethod
    def parse(cls, slug: str, weight: float = 1.0) -> Workload:
        match = cls._SLUG.fullmatch(slug)
        if match is None:
            raise UsageError(
                f"cannot read the workload {slug!r}",
                "bBATCH-hHEADS[xKV_HEADS]-sSEQLEN[xSEQLEN_KV][-tTOTAL[xTOTAL_KV]][-kKEPT], for "
                "example b4-h32x8-s8192, b64-h16-s16384-t65536 for packed sequences, or "
                "b1-h16-s16384-k10 for a mask that keeps 10 percent",
            )
        b, h, hk, s, sk, t, tk, kept = match.groups()
        return cls(int(b), int(h), int(hk or h), int(s), int(sk or s), weight,
                   int(t or 0), int(tk or t or 0), int(kept or 0))

    @property
    def packed(self) -> bool:
        return bool(self.total_q or self.total_kv)

    def of(self, problem: Problem) -> Workload:
        """As kernels for this problem take it."""
        if self.density and not problem.pattern.is_data:
            raise UsageError(f"{self} says how much a mask keeps; {problem.pattern} knows itself",
                             "leave out -k")
        if "varlen" not in problem.features:
            if self.packed:
                raise UsageError(f"{self} is a packed batch, which {problem} does not take",
                                 f"{problem}+varlen does")
            return self
        if self.packed:
            return self
        return replace(self, total_q=self.rows_q, total_kv=self.rows_kv)

    @property
    def rows_q(self) -> int:
        """Of one head, over the batch."""
        return self.total_q or self.batch * self.seqlen_q

    @property
    def rows_kv(self) -> int:
        return self.total_kv or self.batch * self.seqlen_kv

    def lengths(self) -> tuple[tuple[int, int], ...]:
        """Queries and keys of each sequence."""
        if not self.packed:
            return ((self.seqlen_q, self.seqlen_kv),) * self.batch
        sizes = (self.seqlen_q, self.total_q), (self.seqlen_kv, self.total_kv)
        same = sizes[0] == sizes[1]
        queries, keys = (draw(self.batch, longest, total, "" if same else name)
                         for name, (longest, total) in zip(("q", "kv"), sizes, strict=True))
        return tuple(zip(queries, keys, strict=True))

    def kept(self, problem: Problem) -> int:
        """Score elements that the pattern keeps, over all heads."""
        lengths = Counter(self.of(problem).lengths())
        count = problem.pattern.drawn_with(self.density).count_heads
        return sum(n * count(self.heads, q, kv) for (q, kv), n in lengths.items() if q and kv)

    def scores(self, problem: Problem) -> int:
        """All of them."""
        return self.heads * sum(q * kv for q, kv in self.of(problem).lengths())

    def flops(self, problem: Problem) -> int:
        """A multiply-add counts two; only kept scores count. The backward has five products."""
        qk, v = problem.head_dim, problem.head_dim_v
        per_score = 2 * (qk + v) if problem.op == "fwd" else 2 * (3 * qk + 2 * v)
        return self.kept(problem) * per_score

    def min_bytes(self, problem: Problem) -> int:
        """The least an exact kernel moves: every input read once, every output written once."""
        q = self.heads * self.rows_q
        kv = self.kv_heads * self.rows_kv
        qkv = q * problem.head_dim + kv * (problem.head_dim + problem.head_dim_v)
        o = q * problem.head_dim_v
        if problem.op == "fwd":
            return (qkv + o) * problem.element_bytes + 4 * q
        return (2 * qkv + 2 * o) * problem.element_bytes + 4 * q
