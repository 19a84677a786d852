"""Portable tensor-core kernels (mma.sync): every NVIDIA GPU from compute capability 8.0 on."""

from __future__ import annotations

from dataclasses import dataclass

from fagen.families.base import (
    Family,
    Kernel,
    Plan,
    Rule,
    Step,
    knob,
    product,
    symbol,
)
from fagen.model import Candidate, Problem, Target, Workload

REGISTERS_PER_THREAD, REGISTERS_PER_SM = 255, 65536


@dataclass(frozen=True)
class Forward:
    block_m: int = knob(32, 64, 128, 192, 256, default=64, says="query rows of one CTA")
    block_n: int = knob(16, 32, 48, 64, 80, 96, 128, default=64, says="keys per step")
    warps: int = knob(2, 4, 8, default=4, says="warps of one CTA")
    stages: int = knob(1, 2, 3, default=1, says="key/value tiles in shared memory")
    q_in_registers: bool = knob(False, True, default=False, says="read Q's operands once")
    min_ctas: int = knob(1, 2, 3, 4, default=1, says="CTAs per SM that registers must allow")
    heads_first: bool = knob(False, True, default=False, says="launch every head's last rows first")


def padded(dim: int) -> int:
    """A head dimension as computed: the 16 of one mma step is the only padding."""
    return -(-dim // 16) * 16


def forward_shared_bytes(c: Candidate) -> int:
    """Q and the K/V stages; the output reuses the same memory."""
    d, dv, knobs = padded(c.problem.head_dim), padded(c.problem.head_dim_v), c.config
    tiles = 2 * (knobs.block_m * d + knobs.stages * knobs.block_n * (d + dv))
    return int(max(tiles, 2 * knobs.block_m * dv))


def forward_registers(c: Candidate) -> int:
    """Accumulators and operands that live at once, and room for addresses."""
    d, dv, k = padded(c.problem.head_dim), padded(c.problem.head_dim_v), c.config
    rows = k.block_m // k.warps  # of one warp
    q = rows * d // 64 if k.q_in_registers else 0
    return int(rows * (dv + k.block_n) // 32 + q + 4 * (rows // 16) + 36)


def fits_registers(registers: int, threads: int, min_ctas: int) -> bool:
    per_thread = REGISTERS_PER_SM // (threads * min_ctas) // 8 * 8
    return registers <= min(REGISTERS_PER_THREAD, per_thread)


def fits_shared(shared: int, min_ctas: int, target: Target) -> bool:
    """Each CTA takes 1 KB more, and the SM holds 1 KB more than one CTA may ask for."""
    return shared <= target.shared_bytes and (
        min_ctas * (shared + 1024) <= target.shared_bytes + 1024
    )


def _forward_plan(c: Candidate) -> Plan:
    tiles = product(q_tiles=c.config.block_m)
    if c.config.heads_first:
        grid = (product(heads=1, batch=1), tiles, product())
    else:
        grid = (tiles, product(heads=1), product(batch=1))
    return Plan((Step(symbol(c), grid, 32 * c.config.warps, forward_shared_bytes(c)),))


FORWARD_RULES = (
    Rule("each warp owns whole blocks of 16 query rows: block_m is a multiple of 16 warps",
         lambda c: c.config.block_m % (16 * c.config.warps) == 0),
    Rule("the tiles fit the target's shared memory, min_ctas times per SM",
         lambda c: fits_shared(forward_shared_bytes(c), c.config.min_ctas, c.target)),
    Rule("the accumulators and operands fit the registers of a thread",
         lambda c: fits_registers(
             forward_registers(c), 32 * c.config.warps, c.config.min_ctas)),
)


def _forward_default(problem: Problem, target: Target) -> Forward:
    """The largest tiles that are legal: wide heads need their registers for the output."""
    width = max(padded(problem.head_dim), padded(problem.head_dim_v))
    if width <= 64:
        tiles = ((128, 128, 4), (128, 64, 4))
    elif width <= 128:
        tiles = ((128, 64, 4), (128, 48, 4), (128, 32, 4))
    else:
        tiles = ((128, 64, 8), (64, 64, 4), (64, 48, 4), (64, 32, 4), (64, 16, 4))
    configs = [Forward(m, n, warps) for m, n, warps in tiles]
    for config in configs:
        candidate = Candidate(problem, target, SM80, config)
        if not SM80.broken_rules(candidate):
            return config
    return configs[-1]


def _forward_bytes(c: Candidate, w: Workload) -> int:
    """Q, O and LSE once; every block of rows streams the keys and values it keeps."""
    kept = w.kept(c.problem) / (w.batch * w.heads * w.seqlen_q)  # keys of an average row
    tiles = w.batch * w.heads * -(-w.seqlen_q // c.config.block_m)
    widths = c.problem.head_dim + c.problem.head_dim_v
    rows = w.batch * w.heads * w.seqlen_q
    return int((rows + tiles * kept) * widths * c.problem.element_bytes) + 4 * rows


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
                      _forward_bytes),
    },
    runs_on=runs_on,
    arch=arch,
)
