"""The nouns: frozen values that every other module passes around. Names round-trip."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fagen.errors import UsageError
from fagen.packing import draw
from fagen.patterns import Mix, Pattern, parse_pattern
from fagen.target import Target

if TYPE_CHECKING:
    from fagen.families.base import Family

OPS = ("fwd", "bwd")
DTYPES = {"fp32": 4, "fp16": 2, "bf16": 2}  # bytes per element
FEATURES = ("deterministic", "varlen")
HEAD_DIM_STEP = 8
HEAD_DIM_MAX = 256


@dataclass(frozen=True, order=True)
class Problem:
    """What the compiler must know. ``str()`` is the slug, ``parse`` its inverse."""

    op: str
    dtype: str
    head_dim: int
    pattern: Pattern
    head_dim_v: int = 0  # 0 means head_dim
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise UsageError(f"unknown op {self.op!r}", f"one of: {', '.join(OPS)}")
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}", f"one of: {', '.join(DTYPES)}")
        object.__setattr__(self, "head_dim_v", self.head_dim_v or self.head_dim)
        for name, dim in (("head_dim", self.head_dim), ("head_dim_v", self.head_dim_v)):
            if not (HEAD_DIM_STEP <= dim <= HEAD_DIM_MAX and dim % HEAD_DIM_STEP == 0):
                raise UsageError(
                    f"{name} {dim} is not served",
                    f"multiples of {HEAD_DIM_STEP} from {HEAD_DIM_STEP} to {HEAD_DIM_MAX}",
                )
        for feature in self.features:
            if feature not in FEATURES:
                raise UsageError(f"unknown feature {feature!r}", f"one of: {', '.join(FEATURES)}")
        if "deterministic" in self.features and self.op == "fwd":
            raise UsageError(
                "the forward is always deterministic", "leave out +deterministic for fwd"
            )
        if "varlen" in self.features and self.pattern.is_data:
            raise UsageError(f"{self.pattern} is not served for packed sequences",
                             "documents say the same without +varlen")
        if "varlen" in self.features and isinstance(self.pattern, Mix):
            raise UsageError(f"{self.pattern} is not served for packed sequences",
                             "one pattern for all heads is")
        object.__setattr__(self, "features", tuple(sorted(set(self.features))))

    _SLUG = re.compile(
        r"(?P<op>[a-z]+)-(?P<dtype>[a-z0-9]+)-d(?P<d>\d{1,9})(?:x(?P<dv>\d{1,9}))?"
        r"(?:-(?P<pattern>[a-z0-9_-]+))?(?P<features>(?:\+[a-z]+)*)",
        re.ASCII,
    )

    @classmethod
    def parse(cls, slug: str) -> Problem:
        match = cls._SLUG.fullmatch(slug)
        if match is None:
            raise UsageError(
                f"cannot read the problem {slug!r}",
                "OP-DTYPE-dHEAD_DIM[-PATTERN], for example fwd-bf16-d128-causal",
            )
        return cls(
            op=match["op"],
            dtype=match["dtype"],
            head_dim=int(match["d"]),
            head_dim_v=int(match["dv"] or 0),
            pattern=parse_pattern(match["pattern"] or "dense"),
            features=tuple(match["features"].split("+")[1:]),
        )

    def __str__(self) -> str:
        dims = f"d{self.head_dim}" + (
            f"x{self.head_dim_v}" if self.head_dim_v != self.head_dim else ""
        )
        features = "".join(f"+{f}" for f in self.features)
        return f"{self.op}-{self.dtype}-{dims}-{self.pattern}{features}"

    @property
    def element_bytes(self) -> int:
        return DTYPES[self.dtype]


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


@dataclass(frozen=True)
class Candidate:
    """One kernel that could be built: a problem on a target with a family's knobs set."""

    problem: Problem
    target: Target
    family: Family
    config: Any  # the family's config dataclass for problem.op

    def __str__(self) -> str:
        knobs = self.family.show(self.config)
        return f"{self.problem}@{self.target.name}:{self.family.name}({knobs})"

    def with_config(self, **knobs: Any) -> Candidate:
        return replace(self, config=replace(self.config, **knobs))


@dataclass(frozen=True)
class Source:
    """A self-contained text; its digest is the kernel's identity."""

    text: str
    digest: str
    language: str  # "cpp" or "cuda"


@dataclass(frozen=True)
class Binary:
    """What a compiler made of a Source, and what it said about it."""

    path: str
    sha256: str
    compiler: str
    arch: str
    registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    advice: tuple[str, ...] = ()
    seconds: float = 0.0
    cached: bool = False


@dataclass(frozen=True)
class Measurement:
    """A verified, timed kernel. Times are per call, all launches of the op included."""

    median_us: float
    low_us: float  # 25th percentile
    high_us: float  # 75th percentile
    samples: int
    error: float  # worst error over tensors, as a share of its bound
    bound_by: str  # which tensor that was
    clock_mhz: float = 0.0
    tflops: float = 0.0
    bytes_peak: int = 0  # scratch memory


@dataclass(frozen=True)
class Failure:
    """A candidate that did not make it: where, why, and the command that shows it again."""

    stage: str  # rule, render, build, run, verify, measure
    kind: str  # error class name
    reason: str
    reproduce: str = ""


Outcome = Measurement | Failure


@dataclass(frozen=True)
class Entry:
    """One piece of knowledge in ``tuned/``."""

    problem: Problem
    target: Target
    workload: Workload
    family: str
    config: dict[str, Any]
    measurement: Measurement
    binary: dict[str, Any] = field(default_factory=dict)
    runners_up: tuple[dict[str, Any], ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
