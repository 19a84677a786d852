"""The sm90 backward: knobs, rules, and the launch plan of its three kernels.

The sizes below repeat, in Python, what ``templates/device/layout_bwd_sm90.h`` computes; the
rendered kernel asserts that both agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fagen.families.base import HALVES, Kernel, Rule, idle_knobs, knob
from fagen.families.plan import Plan, Region, Step, TensorMap, product
from fagen.families.sm90_sizes import L2_FETCH, padded, panels, round_up, swizzle
from fagen.model import Candidate, Problem
from fagen.patterns import UNBOUNDED, Band
from fagen.target import Target
from fagen.workload import Workload

ENDS_THREADS = 256
CONSUMERS = 2
NOTES = 8  # of steps, where the query tiles of a key block are not one run


def noted(problem: Problem) -> bool:
    """Are a key block's query tiles looked for? Not where they are one run that all agree on."""
    pattern, ordered = problem.pattern, "deterministic" in problem.features
    return not pattern.interval or (ordered and pattern.is_data)


def _sparse(problem: Problem) -> bool:
    """Does the loading warp look for steps, or read a mask?"""
    return noted(problem) or problem.pattern.is_data


def _cuts(problem: Problem) -> tuple[bool, bool]:
    """Does the pattern drop keys on the left, on the right, of a query?"""
    pattern = problem.pattern
    if not isinstance(pattern, Band):
        return True, True
    return pattern.left != UNBOUNDED, pattern.right != UNBOUNDED


@dataclass(frozen=True)
class Config:
    """Who computes what, the tile, and the depths in shared memory."""

    roles: str = knob("rows", "split", default="rows", enum="Roles",
                      says="rows: a warpgroup owns 64 keys; split: one makes dV, one dK")
    dq: str = knob("lockstep", "delayed", "own", default="lockstep", enum="Dq",
                   says="who makes dQ: the consumers together, one step later, or a warpgroup")
    block_m: int = knob(64, 80, 96, 112, 128, default=64, says="queries per step")
    stages_q: int = knob(1, 2, 3, default=2, says="stages of Q")
    stages_do: int = knob(1, 2, 3, default=2, says="stages of dO")
    stages_ds: int = knob(1, 2, 3, default=2, says="stages of dS on its way to dQ")
    dq_columns: int = knob(64, 128, default=64, says="width of a piece of dQ", only=("dq", "own"))
    stages_dq: int = knob(1, 2, default=2, says="pieces of dQ on their way out",
                          only=("dq", "own"))
    p_fp32: bool = knob(True, False, default=True, says="P stays in fp32 until dS is made",
                        only=("roles", "rows"))
    order: str = knob("by_head", "by_section", "heavy_first", default="by_head", enum="Order",
                      says="heads one after the other, or the longest key blocks of a few first, "
                      "or of as many as fit the L2 cache")
    overlap: bool = knob(True, False, default=True,
                         says="each kernel may start while the one before it ends")
    sums: str = knob("zeroed", "counted", default="zeroed", enum="Sums",
                     says="what begins and ends dQ: kernels before and behind, or the first and "
                     "the last key block of each query tile")
    schedule: str = knob("grid", "dynamic", default="grid", enum="Schedule",
                         says="a CTA has one key block, or there is one CTA per SM that takes them "
                         "from a counter")
    stages_kv: int = knob(1, 2, default=1, says="places for K and V",
                          only=("schedule", "dynamic"))
    l2_fetch: int = knob(256, 128, default=256, says=L2_FETCH, launch=True)

    @property
    def block_n(self) -> int:
        """Keys of a CTA: a third warpgroup of 64 leaves too few registers to each."""
        return 64 if self.roles == "split" else 128

    @property
    def own_dq(self) -> bool:
        return self.dq == "own"

    @property
    def counted(self) -> bool:
        return self.sums == "counted"

    @property
    def resident(self) -> bool:
        return self.schedule == "dynamic"

    @property
    def threads(self) -> int:
        """A producer warpgroup, perhaps one for dQ, and the consumers."""
        return 128 * ((2 if self.own_dq else 1) + CONSUMERS)

    def dq_cut(self, problem: Problem) -> str:
        """How a tile of dQ is cut into pieces; empty when it cannot be."""
        d = padded(problem.head_dim)
        if self.own_dq:
            return "rows" if self.block_m % 64 == 0 else ""
        if self.block_m == 64 * CONSUMERS:
            return "rows"
        if self.block_m == 64 and panels(d) % CONSUMERS == 0:
            return "columns"
        if d == 64 * CONSUMERS:
            return "dims"
        if d == 64 and self.block_m % (8 * CONSUMERS) == 0:
            return "dims_and_rows"
        return ""

    def dq_piece_columns(self, problem: Problem) -> int:
        d = padded(problem.head_dim)
        if self.own_dq:
            return min(self.dq_columns, d)
        return {
            "rows": d,
            "columns": d // CONSUMERS,
            "dims": self.block_m,
            "dims_and_rows": self.block_m // CONSUMERS,
        }[self.dq_cut(problem)]

    def multiply_sizes(self, problem: Problem) -> list[int]:
        """Every N of a 64 x N multiply."""
        d, dv = padded(problem.head_dim), padded(problem.head_dim_v)
        piece = self.dq_piece_columns(problem)
        rest = [d % piece] if self.own_dq and d % piece else []
        wide = [n for dim in (d, dv) for n in (min(dim, 128), dim - 128) if n > 0]
        return [self.block_m, *wide, piece, *rest]

    def dq_tile_floats(self, problem: Problem) -> int:
        return self.block_m * padded(problem.head_dim)

    def shared_bytes(self, problem: Problem) -> int:
        d, dv = padded(problem.head_dim), padded(problem.head_dim_v)
        m, n = self.block_m, self.block_n
        kv = self.stages_kv * (round_up(2 * n * d, 1024) + round_up(2 * n * dv, 1024))
        q = self.stages_q * round_up(2 * m * d, 1024)
        do = self.stages_do * round_up(2 * m * dv, 1024)
        ds = self.stages_ds * 2 * m * n
        stages_p = 2 if self.roles == "split" else 0
        buffers = self.stages_dq if self.own_dq else CONSUMERS
        staging = buffers * 256 * self.dq_piece_columns(problem)
        rows = 4 * m * (self.stages_q + self.stages_do)
        rings = self.stages_q + self.stages_do + self.stages_ds + stages_p + self.stages_kv
        barriers = 16 * rings + (32 * self.stages_kv if self.resident else 0)
        notes = 8 * NOTES if noted(problem) else 0
        told = 16 if self.counted else 0
        return kv + q + do + ds + stages_p * 128 * m + staging + rows + barriers + notes + told

    def post_bytes(self, problem: Problem) -> int:
        """Shared memory of bwd_post: a tile of dQ, rows apart by the width of the banks."""
        return 2 * self.block_m * (padded(problem.head_dim) + 8)

    def registers(self, problem: Problem) -> int:
        """Accumulators and operands that a consumer holds at its fullest."""
        d, dv = padded(problem.head_dim) // 2, padded(problem.head_dim_v) // 2
        scores = self.block_m // 2
        if self.roles == "split":
            return max(d, dv) + 3 * scores // 2
        making_ds = 2 * scores if self.p_fp32 else 3 * scores // 2
        making_dq = scores + (0 if self.own_dq else self.dq_piece_columns(problem) // 2)
        wide = noted(problem) and self.block_m > 64
        mask = 8 if wide or problem.pattern.is_data else 0  # its bits, and where they belong
        return d + dv + max(making_ds, making_dq) + mask

    def register_budget(self, problem: Problem) -> int:
        """The most that compiled without spills under what setmaxnreg grants."""
        return self._budget(problem) - (self._kept_between(problem) if self.resident else 0)

    def _kept_between(self, problem: Problem) -> int:
        """What a resident consumer holds besides from one key block to the next, or lacks."""
        left, right = _cuts(problem)
        if self.roles == "split":
            return 8  # that the loading warps took
        if self.own_dq:
            return 32 if left else 8 if right and self.counted else 0
        return 24 if left or problem.features else 8

    def _budget(self, problem: Problem) -> int:
        if not self.own_dq:
            # Of masks of the call the loading warp keeps more, which consumers then lack.
            short = problem.pattern.is_data and (self.dq == "lockstep" or bool(problem.features))
            return 196 if short else 208
        granted = 208 if self.dq_columns == 64 else 192
        if self.roles == "split":
            return granted - (24 if _sparse(problem) else 16)
        return granted - 32

    def fits(self, problem: Problem, target: Target) -> bool:
        return (
            bool(self.dq_cut(problem))
            and self.registers(problem) <= self.register_budget(problem)
            and self.shared_bytes(problem) <= target.shared_bytes
        )


def _maps(problem: Problem, config: Config) -> tuple[TensorMap, ...]:
    def view(tensor: str, dim: int, rows: int) -> TensorMap:
        span = swizzle(padded(dim))
        return TensorMap(tensor, span // 2, rows, span, dim, config.l2_fetch)

    d, dv, m, n = problem.head_dim, problem.head_dim_v, config.block_m, config.block_n
    return (view("q", d, m), view("dout", dv, m), view("k", d, n), view("v", dv, n),
            view("dk", d, 64), view("dv", dv, 64))


def _plan(candidate: Candidate) -> Plan:
    problem, config = candidate.problem, candidate.config
    m = config.block_m
    ends = (product(q_tiles=m), product(heads=1), product(batch=1))
    blocks = (product(kv_tiles=config.block_n, kv_heads=1, batch=1), product(), product())
    rows = Region(product(q_padded=m, heads=1, batch=8))
    sums = Region(product(q_padded=m, heads=padded(problem.head_dim), batch=4))
    turns = Region(product(q_tiles=m, heads=1 if config.own_dq else CONSUMERS, batch=4))
    pre = Step("bwd_pre", ends, ENDS_THREADS)
    main = Step("bwd_main", blocks, config.threads, config.shared_bytes(problem),
                ctas_per_sm=1 if config.resident else 0, overlap=config.overlap,
                maps=_maps(problem, config))
    post = Step("bwd_post", ends, ENDS_THREADS, config.post_bytes(problem), overlap=config.overlap)
    takes_turns = config.counted or "deterministic" in problem.features
    counter = Region(product(one=16))
    return Plan(
        steps=(pre, main) if config.counted else (pre, main, post),
        regions=(rows, sums, *([turns] if takes_turns else []),
                 *([counter] if config.resident else [])),
    )


def _bytes_moved(candidate: Candidate, w: Workload) -> int:
    """Device memory traffic if every re-read of Q, dO and dQ hits the L2 cache."""
    problem, config = candidate.problem, candidate.config
    q_rows = product(q_padded=config.block_m, heads=1, batch=1).value(w.of(problem))
    pre = q_rows * (4 * problem.head_dim_v + 12)
    passes = 1 if config.counted else 3  # summed; else zeroed before and read behind
    sums = passes * 4 * q_rows * padded(problem.head_dim)
    return w.min_bytes(problem) + pre + sums


_RULES = (
    HALVES,
    *(idle.rule for idle in idle_knobs(Config)),
    Rule("split roles leave dQ to a warpgroup of its own",
         lambda c: c.config.roles == "rows" or c.config.own_dq),
    Rule("dQ can be cut into 64-row pieces among those who make it",
         lambda c: bool(c.config.dq_cut(c.problem))),
    Rule("lockstep needs two stages of dS, one to read while the next is written",
         lambda c: c.config.dq != "lockstep" or c.config.stages_ds == 2),
    Rule("delayed needs two or more stages of dS",
         lambda c: c.config.dq != "delayed" or c.config.stages_ds >= 2),
    Rule("CTAs that take several key blocks walk over one run of query tiles, known beforehand: no "
         "notes of steps, no mask of the call, no packed sequences",
         lambda c: not c.config.resident
         or not (_sparse(c.problem) or "varlen" in c.problem.features)),
    Rule("key blocks are counted by a dQ warpgroup, where each query tile has one run of them, "
         "known beforehand",
         lambda c: not c.config.counted or (c.config.own_dq and not _sparse(c.problem))),
    Rule("the accumulators fit in registers",
         lambda c: not c.config.dq_cut(c.problem)
         or c.config.registers(c.problem) <= c.config.register_budget(c.problem)),
    Rule("tiles, stages and barriers fit in shared memory",
         lambda c: not c.config.dq_cut(c.problem)
         or c.config.shared_bytes(c.problem) <= c.target.shared_bytes),
)


def _preferred(problem: Problem) -> Iterator[Config]:
    """What should be fast first; later ones serve wider heads."""
    order = "by_head" if str(problem.pattern) == "dense" else "by_section"
    # Turns, and the places of packed sequences, leave fewer registers to the consumers.
    tight = bool(problem.features)
    if not tight:
        yield Config(dq="lockstep", block_m=128, order=order)
        if order == "by_head":
            yield Config(dq="lockstep", block_m=80, order=order)
    yield Config(dq="delayed", block_m=128, stages_ds=3, order=order)
    if padded(problem.head_dim) == 128:
        yield Config(dq="delayed", block_m=64, stages_ds=3, p_fp32=not tight, order=order)
    if not noted(problem):
        yield Config(dq="own", block_m=64, dq_columns=128, order=order)
    yield Config(dq="own", block_m=64, order=order)
    for stages_do in (2, 1):
        yield Config(roles="split", dq="own", stages_do=stages_do, order=order)


def _default(problem: Problem, target: Target) -> Config:
    *others, last = _preferred(problem)
    return next((config for config in others if config.fits(problem, target)), last)


def _instead(problem: Problem) -> dict[str, str]:
    found = {}
    if _sparse(problem):
        found["device/registers_bwd_sm90.h"] = "device/registers_sparse_bwd_sm90.h"
    if problem.pattern.is_data and "deterministic" not in problem.features:
        found["device/key_block_bwd_sm90.h"] = "device/key_block_listed_bwd_sm90.h"
    return found


BWD = Kernel(
    template="bwd_sm90.cu.j2",
    config=Config,
    rules=_RULES,
    plan=_plan,
    default=_default,
    bytes_moved=_bytes_moved,
    instead=_instead,
)
