"""What a kernel is asked to compute when it is verified: sizes, layouts, inputs; plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from fagen.errors import UsageError
from fagen.model import Problem
from fagen.patterns import DENSE
from fagen.workload import Workload

LAYOUTS = ("bhsd", "bshd", "padded")  # padded: rows further apart than the head dimension

# normal: N(0, 1). large: scores near 1e4. rising, falling: scores climb or drop along the keys.
# huge_first, huge_last: one key outweighs the rest. equal: all keys the same. The others put one
# not-a-number or infinity into one tensor.
FINITE = ("normal", "large", "rising", "falling", "huge_first", "huge_last", "equal")
NOT_FINITE = ("nan_q", "nan_k", "nan_v", "inf_k", "inf_v")
INPUTS = FINITE + NOT_FINITE


@dataclass(frozen=True)
class Case:
    """One call of a kernel."""

    workload: Workload
    inputs: str = "normal"
    layout: str = "bhsd"
    scale: float = 0.0  # 0: one over the square root of head_dim
    dlse: bool = False  # backward: a gradient flows into the log-sum-exp as well
    sampled: bool = False  # compare some heads only; for sizes where all would take long

    def __post_init__(self) -> None:
        for given, known in ((self.inputs, INPUTS), (self.layout, LAYOUTS)):
            if given not in known:
                raise UsageError(f"unknown case option {given!r}", f"one of: {', '.join(known)}")

    def __str__(self) -> str:
        words = [str(self.workload)]
        words += [self.layout] if self.layout != "bhsd" else []
        words += [self.inputs] if self.inputs != "normal" else []
        words += [f"scale={self.scale:g}"] if self.scale else []
        words += ["dlse"] if self.dlse else []
        return " ".join(words)

    def scale_for(self, problem: Problem) -> float:
        return self.scale or problem.head_dim**-0.5

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Case:
        return cls(**{**data, "workload": Workload(**data["workload"])})


def _case(sizes: str, inputs: str = "normal", layout: str = "bhsd", **options: Any) -> Case:
    return Case(Workload.parse(sizes), inputs, layout, **options)


def of_workload(workload: Workload) -> Case:
    """A tuning workload: too large to compare everywhere, and too important not to compare."""
    return Case(replace(workload, weight=1.0), sampled=True)


def short_list(problem: Problem) -> tuple[Case, ...]:
    """What every candidate must pass before it is timed."""
    if "varlen" in problem.features:
        return _packed_short() + _past_the_span(problem)
    cases = (
        _case("b1-h1-s128"),
        _case("b2-h4x2-s193x257", layout="bshd", dlse=True),
        _case("b1-h2-s300x77", layout="padded"),
        _case("b1-h2x1-s1x129", scale=0.3),
        _case("b1-h1-s1100x1031", "rising"),
    )
    return cases + _past_the_span(problem)


def long_list(problem: Problem) -> tuple[Case, ...]:
    """The conformance suite's cases for one problem."""
    if "varlen" in problem.features:
        return short_list(problem) + _packed_long()
    ragged = (
        _case("b1-h1-s1"),
        _case("b1-h3-s63x64", layout="bshd"),
        _case("b3-h2-s64x1"),
        _case("b1-h6x1-s127x129", layout="padded"),
        _case("b2-h2-s257x512", layout="bshd", scale=1.0),
        _case("b1-h8x2-s512x320", dlse=True),
    )
    inputs = FINITE[1:] + (NOT_FINITE if problem.pattern == DENSE else ())
    strange = tuple(_case("b1-h2x1-s161x290", kind, dlse=kind == "large") for kind in inputs)
    return short_list(problem) + ragged + strange


def _packed_short() -> tuple[Case, ...]:
    """Sequences of all lengths, empty ones too, with queries only, with keys only."""
    return (
        _case("b1-h1-s128-t128"),
        _case("b5-h4x2-s193x257-t400x500", layout="bshd", dlse=True),
        _case("b9-h2-s300x77-t307x80", layout="padded"),
        _case("b3-h2x1-s1x129-t2x200", scale=0.3),
        _case("b2-h1-s1100x1031-t1500x1600", "rising"),
    )


def _packed_long() -> tuple[Case, ...]:
    return (
        _case("b1-h1-s1-t1"),
        _case("b4-h3-s64-t256", layout="bshd"),
        _case("b40-h6x1-s127-t1000", layout="bshd", dlse=True),
        _case("b3-h2-s64x1-t150x2", layout="padded"),
        _case("b16-h2-s257x512-t1500", "large", dlse=True),
        _case("b4-h2x1-s161x290-t500x1000", "falling"),
        _case("b4-h2x1-s161x290-t500x1000", "huge_last"),
    )


def _past_the_span(problem: Problem) -> tuple[Case, ...]:
    """A pattern that reaches further than the other cases needs a longer sequence."""
    span = problem.pattern.span
    if not 100 < span <= 4096:
        return ()
    return (Case(Workload(1, 1, 1, span + 150, span + 171)),)
