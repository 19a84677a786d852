"""Portable tensor-core kernels (mma.sync): every NVIDIA GPU from compute capability 8.0 on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from fagen.families.base import HALVES, Family, Kernel, Rule, knob, symbol
from fagen.families.plan import Plan, Step, product
from fagen.families.sm80_bwd import BACKWARD_RULES, Backward
from fagen.families.sm80_bwd import bytes_moved as backward_bytes
from fagen.families.sm80_bwd import plan as backward_plan
from fagen.families.sm80_bwd import preferred as preferred_backward
from fagen.families.sm80_limits import fits_registers, fits_shared, padded
from fagen.model import Candidate, Problem
from fagen.patterns import UNBOUNDED
from fagen.target import Target
from fagen.workload import Workload

Config = TypeVar("Config")


@dataclass(frozen=True)
class Forward:
    block_m: int = knob(32, 64, 128, 192, 256, default=64, says="query rows of one CTA")
    block_n: int = knob(16, 32, 48, 64, 80, 96, 128, default=64, says="keys per step")
    warps: int = knob(2, 4, 8, default=4, says="warps of one CTA")
    stages: int = knob(1, 2, 3, default=1, says="key/value tiles in shared memory")
    q_in_registers: bool = knob(False, True, default=False, says="read Q's operands once")
    min_ctas: int = knob(1, 2, 3, 4, default=1, says="CTAs per SM that registers must allow")
    heads_first: bool = knob(False, True, default=False, says="launch every head's last rows first")

    def shared_bytes(self, problem: Problem) -> int:
        """Q and the K/V stages; the output reuses the same memory."""
        d, dv = padded(problem.head_dim), padded(problem.head_dim_v)
        tiles = 2 * (self.block_m * d + self.stages * self.block_n * (d + dv))
        return max(tiles, 2 * self.block_m * dv)

    def registers(self, problem: Problem) -> int:
        """Accumulators and operands that live at once, and room for addresses."""
        d, dv = padded(problem.head_dim), padded(problem.head_dim_v)
        rows = self.block_m // self.warps  # of one warp
        q = rows * d // 64 if self.q_in_registers else 0
        return rows * (dv + self.block_n) // 32 + q + 4 * (rows // 16) + 36


def _forward_plan(c: Candidate) -> Plan:
    tiles = product(q_tiles=c.config.block_m)
    if c.config.heads_first:
        grid = (product(heads=1, batch=1), tiles, product())
    else:
        grid = (tiles, product(heads=1), product(batch=1))
    return Plan((Step(symbol(c), grid, 32 * c.config.warps, c.config.shared_bytes(c.problem)),))


FORWARD_RULES = (
    HALVES,
    Rule("each warp owns whole blocks of 16 query rows: block_m is a multiple of 16 warps",
         lambda c: c.config.block_m % (16 * c.config.warps) == 0),
    Rule("the tiles fit the target's shared memory, min_ctas times per SM",
         lambda c: fits_shared(c.config.shared_bytes(c.problem), c.config.min_ctas, c.target)),
    Rule("the accumulators and operands fit the registers of a thread",
         lambda c: fits_registers(
             c.config.registers(c.problem), 32 * c.config.warps, c.config.min_ctas)),
)


def preferred_forward(problem: Problem) -> tuple[Forward, ...]:
    """The largest tiles first: wide heads need their registers for the output."""
    width = max(padded(problem.head_dim), padded(problem.head_dim_v))
    if not problem.pattern.interval:  # tiles as small as sparse blocks, and room for the walk
        tiles = [(64, 64, 4), (64, 32, 4), (64, 16, 4)]
    elif width <= 64:
        tiles = [(128, 96, 4), (128, 64, 4)]
    elif width <= 128:
        tiles = [(128, 64, 4), (128, 48, 4), (128, 32, 4)]
        # Two bounds per row leave fewer registers, the place of a packed sequence fewer still.
        if "varlen" in problem.features:
            tiles = tiles[2:]
        elif problem.pattern.left != UNBOUNDED:
            tiles = tiles[1:]
    else:
        tiles = [(128, 64, 8), (64, 64, 4), (64, 48, 4), (64, 32, 4), (64, 16, 4)]
    return tuple(Forward(m, n, warps) for m, n, warps in tiles)


def _forward_default(problem: Problem, target: Target) -> Forward:
    return _first_legal(problem, target, preferred_forward(problem))


def _backward_default(problem: Problem, target: Target) -> Backward:
    return _first_legal(problem, target, preferred_backward(problem, target))


def _first_legal(problem: Problem, target: Target, configs: Sequence[Config]) -> Config:
    """The last one stands even if it breaks a rule: then no default is legal on this target."""
    for config in configs:
        if not SM80.broken_rules(Candidate(problem, target, SM80, config)):
            return config
    return configs[-1]


def _forward_bytes(c: Candidate, w: Workload) -> int:
    """Q, O and LSE once; every block of rows streams the keys and values it keeps."""
    rows = w.heads * w.rows_q
    kept = w.kept(c.problem) / rows  # keys of an average row
    tiles = w.heads * sum(-(-q // c.config.block_m) for q, _ in w.lengths())
    widths = c.problem.head_dim + c.problem.head_dim_v
    return int((rows + tiles * kept) * widths * c.problem.element_bytes) + 4 * rows


def _footprint(c: Candidate) -> int:
    return int(c.config.shared_bytes(c.problem))


def runs_on(target: Target) -> bool:
    return target.kind == "cuda" and target.capability >= (8, 0)


def arch(target: Target) -> str:
    major, minor = target.capability
    return f"sm_{major}{minor}"


SM80 = Family(
    name="sm80",
    says="mma.sync tensor-core kernels for every NVIDIA GPU from Ampere on",
    toolchain="nvcc",
    kernels={
        "fwd": Kernel("fwd_sm80.cu.j2", Forward, FORWARD_RULES, _forward_plan, _forward_default,
                      _forward_bytes, _footprint),
        "bwd": Kernel("bwd_sm80.cu.j2", Backward, BACKWARD_RULES, backward_plan,
                      _backward_default, backward_bytes, _footprint),
    },
    runs_on=runs_on,
    arch=arch,
)
