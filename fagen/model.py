"""The nouns: frozen values that every other module passes around. Names round-trip."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fagen.errors import UsageError
from fagen.patterns import Mix, Pattern, parse_pattern
from fagen.target import Target
from fagen.workload import Workload

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
