"""The sm80 backward: knobs, rules, and the launch plan of its three kernels."""

from __future__ import annotations

from dataclasses import dataclass

from fagen.families.base import HALVES, Rule, knob, symbol
from fagen.families.plan import Plan, Region, Step, product
from fagen.families.sm80_limits import fits_registers, fits_shared, padded
from fagen.model import Candidate, Problem
from fagen.patterns import UNBOUNDED
from fagen.target import Target
from fagen.workload import Workload

STATS_THREADS = 128


@dataclass(frozen=True)
class Backward:
    block_m: int = knob(16, 32, 64, 96, 128, default=64, says="query rows per step")
    block_n: int = knob(16, 32, 64, 96, 128, 192, 256, default=128, says="keys of one CTA")
    warps: int = knob(2, 4, 8, default=8, says="warps of one CTA")
    kv_warps: int = knob(1, 2, 4, 8, default=4, says="ways to split the keys over the warps")
    dq_warps: int = knob(1, 2, 4, 8, default=2, says="ways to split dQ by rows")
    stages: int = knob(1, 2, default=2, says="Q and dO tiles in shared memory")
    min_ctas: int = knob(1, 2, 3, default=1, says="CTAs per SM that registers must allow")

    @property
    def sharing(self) -> int:
        """Warps that hold the same keys."""
        return self.warps // self.kv_warps or 1

    def shared_bytes(self, problem: Problem) -> int:
        """K and V; per stage Q, dO, LSE and delta; dS, and P where warps share keys."""
        width = padded(problem.head_dim) + padded(problem.head_dim_v)
        stage = 2 * self.block_m * width + 8 * self.block_m
        exchanged = 2 * self.block_m * self.block_n * (1 if self.sharing == 1 else 2)
        return 2 * self.block_n * width + self.stages * stage + exchanged

    def dq_shared_bytes(self, problem: Problem) -> int:
        """The deterministic pass: Q, dO and one block of keys and values."""
        keys = 32 if max(problem.head_dim, problem.head_dim_v) > 128 else 64
        width = padded(problem.head_dim) + padded(problem.head_dim_v)
        return 2 * (self.block_m + keys) * width

    def registers(self, problem: Problem) -> int:
        """dK, dV and the widest phase of a step, per thread, and room for addresses."""
        d, dv = padded(problem.head_dim), padded(problem.head_dim_v)
        keys = self.block_n // self.kv_warps
        widths = sum(-(-n // 16 // self.sharing) * 16 for n in (d, dv))
        scores = 2 * keys * self.block_m // self.sharing // 32
        dq_width = -(-d // 16 // (self.warps // self.dq_warps or 1)) * 16
        dq = dq_width * self.block_m // self.dq_warps // 32
        return keys * widths // 32 + max(scores, dq) + 4 * (keys // 16) + 36


def _deterministic(c: Candidate) -> bool:
    return "deterministic" in c.problem.features


BACKWARD_RULES = (
    HALVES,
    Rule("kv_warps and dq_warps divide warps",
         lambda c: c.config.warps % c.config.kv_warps == 0 == c.config.warps % c.config.dq_warps),
    Rule("each warp owns whole blocks of 16 keys: block_n is a multiple of 16 kv_warps",
         lambda c: c.config.block_n % (16 * c.config.kv_warps) == 0),
    Rule("warps that share keys own whole blocks of 16 rows: block_m is a multiple of "
         "16 warps / kv_warps",
         lambda c: c.config.block_m % (16 * c.config.sharing) == 0),
    Rule("dQ's rows split into whole blocks of 16: block_m is a multiple of 16 dq_warps",
         lambda c: c.config.block_m % (16 * c.config.dq_warps) == 0),
    Rule("one pass of the threads copies the rows' statistics: block_m is at most 64 warps",
         lambda c: c.config.block_m <= 64 * c.config.warps),
    Rule("the tiles fit the target's shared memory, min_ctas times per SM",
         lambda c: fits_shared(c.config.shared_bytes(c.problem), c.config.min_ctas, c.target)),
    Rule("the deterministic pass fits the target's shared memory",
         lambda c: not _deterministic(c)
         or c.config.dq_shared_bytes(c.problem) <= c.target.shared_bytes),
    Rule("the accumulators and operands fit the registers of a thread",
         lambda c: fits_registers(
             c.config.registers(c.problem), 32 * c.config.warps, c.config.min_ctas)),
)


def plan(c: Candidate) -> Plan:
    k, name = c.config, symbol(c)
    rows = (product(q_tiles=k.block_m), product(heads=1), product(batch=1))
    keys = (product(kv_tiles=k.block_n), product(kv_heads=1), product(batch=1))
    stats = Region(product(q_padded=k.block_m, heads=1, batch=1, one=8))
    steps = (Step(f"{name}_stats", rows, STATS_THREADS),
             Step(f"{name}_main", keys, 32 * k.warps, k.shared_bytes(c.problem)))
    if _deterministic(c):
        dq = Step(f"{name}_dq", rows, 2 * k.block_m, k.dq_shared_bytes(c.problem))
        return Plan((*steps, dq), (stats,))
    width = padded(c.problem.head_dim)
    sums = Region(product(q_padded=k.block_m, heads=1, batch=1, one=4 * width), zero=True)
    convert = Step(f"{name}_convert", rows, 2 * k.block_m, 2 * k.block_m * width)
    return Plan((*steps, convert), (stats, sums))


def preferred(problem: Problem, target: Target) -> tuple[Backward, ...]:
    """The largest tiles first: dK and dV of wide heads fill the registers, K and V the memory."""
    width = max(padded(problem.head_dim), padded(problem.head_dim_v))
    # A last column block that is masked takes registers, where a width fills them already.
    rows = 4 if problem.head_dim % 16 and width in (128, 256) else 2
    if width <= 64:
        return (Backward(64, 128, 8, 4, 4), Backward(64, 64, 4, 4, 2, 1))
    if width <= 128:
        narrow = (Backward(64, 128, 8, 4, rows, 2), Backward(64, 128, 8, 4, rows, 1),
                  Backward(64, 64, 8, 4, 2, 1), Backward(32, 64, 8, 4, 2, 1))
        return narrow[2:] if problem.pattern.is_data else narrow  # runs are loaded, and held
    wide = (Backward(64, 64, 8, 2, rows, 1), Backward(64, 64, 8, 4, rows, 1),
            Backward(32, 64, 8, 4, 2, 1),
            Backward(64, 16, 4, 1, 4, 1) if rows == 4 and target.capability >= (12, 0)
            else Backward(32, 32, 4, 2, 2, 1))
    # A sequence's place takes registers, and so do two bounds of a row, and 64 rows of dQ alone.
    two_bounds = problem.pattern.left != UNBOUNDED and width > 192
    dq_alone = "deterministic" in problem.features and width > 240
    return wide[2:] if "varlen" in problem.features or two_bounds or dq_alone else wide


def bytes_moved(c: Candidate, w: Workload) -> int:
    """Every block of keys streams the rows it keeps, and adds to their dQ in fp32."""
    p = c.problem
    width, element = p.head_dim + p.head_dim_v, p.element_bytes
    rows = w.heads * w.rows_q
    # Rows streamed by all blocks of keys together.
    passed = w.kept(p) / w.rows_kv * sum(-(-kv // c.config.block_n) for _, kv in w.lengths())
    streamed = passed * (width * element + 8)
    dq = 2 * passed * width * element if _deterministic(c) else 8 * passed * padded(p.head_dim)
    kv = 2 * w.kv_heads * w.rows_kv * width * element
    return int(streamed + dq + kv + rows * (2 * p.head_dim_v * element + 12 + p.head_dim * element))
