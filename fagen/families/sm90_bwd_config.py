"""The knobs of the sm90 backward, and what they take of registers and shared memory.

The sizes repeat, in Python, what ``templates/device/layout_bwd_sm90.h`` computes; the
rendered kernel asserts that both agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from fagen.families.base import knob
from fagen.families.sm90_sizes import L2_FETCH, padded, panels, round_up
from fagen.model import Problem
from fagen.patterns import UNBOUNDED, Band
from fagen.target import Target

CONSUMERS = 2
NOTES = 8  # of steps, where the query tiles of a key block are not one run


def noted(problem: Problem) -> bool:
    """Are a key block's query tiles looked for? Not where they are one run that all agree on."""
    pattern, ordered = problem.pattern, "deterministic" in problem.features
    return not pattern.interval or (ordered and pattern.is_data)


def sparse(problem: Problem) -> bool:
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
            return granted - (24 if sparse(problem) else 16)
        return granted - 32

    def fits(self, problem: Problem, target: Target) -> bool:
        return (
            bool(self.dq_cut(problem))
            and self.registers(problem) <= self.register_budget(problem)
            and self.shared_bytes(problem) <= target.shared_bytes
        )
