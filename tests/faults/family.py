"""Two families, for the host and for GPUs, whose knob is what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fagen import paths
from fagen.families.base import Family, Kernel, knob
from fagen.families.plan import Plan, Region, Step, product
from fagen.model import Candidate, Problem
from fagen.render import Renderer, symbol
from fagen.target import Target

FAULTS = (
    "none", "segfault", "abort", "exit", "hang", "wrong", "nan", "unwritten", "past_the_end",
    "far_away", "input", "garbage", "garbage_everywhere", "large", "unsteady",
    "compile_error", "compile_hang",
)
GPU_FAULTS = (
    "none", "illegal_address", "trap", "hang", "wrong", "nan", "past_the_end", "out_of_memory",
    "too_much_shared", "unsteady",
)


@dataclass(frozen=True)
class Knobs:
    fault: str = knob(*FAULTS, default="none", says="what goes wrong", enum="Fault")
    # Two candidates without a fault are needed to compare one with another.
    twin: int = knob(0, 1, default=0, says="nothing")


@dataclass(frozen=True)
class GpuKnobs:
    fault: str = knob(*GPU_FAULTS, default="none", says="what goes wrong", enum="Fault")


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


def _gpu_plan(c: Candidate) -> Plan:
    grid = (product(q_tiles=64), product(heads=1), product(batch=1))
    shared = 1 << 20 if c.config.fault == "too_much_shared" else 0
    memory = Region(product(one=1 << 30, batch=1 << 14), zero=False)  # 16 TiB
    regions = (memory,) if c.config.fault == "out_of_memory" else ()
    return Plan((Step(symbol(c), grid, 64, shared),), regions)


GPU_FAMILY = Family(
    name="gpu-faults",
    says="goes wrong on purpose",
    toolchain="nvcc",
    kernels={
        "fwd": Kernel("fwd_faults.cu.j2", GpuKnobs, (), _gpu_plan, lambda p, t: GpuKnobs(),
                      lambda c, w: 0),
    },
    runs_on=lambda target: target.kind == "cuda",
    arch=lambda target: f"sm_{target.capability[0]}{target.capability[1]}",
)


def candidate(target: Target, problem: str = "fwd-fp32-d16-causal", **knobs: object) -> Candidate:
    family = FAMILY if target.kind == "cpu" else GPU_FAMILY
    return family.default(Problem.parse(problem), target).with_config(**knobs)


def renderer(folder: Path) -> Renderer:
    """The shipped headers beside this family's own kernels."""
    for shared in ("device", "patterns", "macros"):
        (folder / shared).symlink_to(paths.templates() / shared)
    (folder / "kernels").symlink_to(Path(__file__).parent / "templates" / "kernels")
    return Renderer(folder)
