"""A family whose only knob is what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fagen import paths
from fagen.families.base import Family, Kernel, Plan, knob
from fagen.model import Candidate, Problem, Target
from fagen.render import Renderer

FAULTS = (
    "none", "segfault", "abort", "exit", "hang", "wrong", "nan", "unwritten", "past_the_end",
    "far_away", "input", "garbage", "large", "compile_error", "compile_hang",
)


@dataclass(frozen=True)
class Knobs:
    fault: str = knob(*FAULTS, default="none", says="what goes wrong", enum="Fault")
    # Two candidates without a fault are needed to compare one with another.
    twin: int = knob(0, 1, default=0, says="nothing")


FAMILY = Family(
    name="faults",
    says="goes wrong on purpose",
    toolchain="host",
    kernels={
        "fwd": Kernel("fwd_faults.cpp.j2", Knobs, (), lambda c: Plan(), lambda p, t: Knobs(),
                      lambda c, w: 0),
    },
    runs_on=lambda target: target.kind == "cpu",
    arch=lambda target: "x86-64",
)


def candidate(target: Target, problem: str = "fwd-fp32-d16-causal", **knobs: object) -> Candidate:
    return FAMILY.default(Problem.parse(problem), target).with_config(**knobs)


def renderer(folder: Path) -> Renderer:
    """The shipped headers beside this family's own kernels."""
    for shared in ("device", "patterns", "macros"):
        (folder / shared).symlink_to(paths.templates() / shared)
    (folder / "kernels").symlink_to(Path(__file__).parent / "templates" / "kernels")
    return Renderer(folder)
