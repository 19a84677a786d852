"""The sm90 forward: knobs, rules, and the launch plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fagen.families.base import HALVES, Kernel, Rule, knob
from fagen.families.plan import Plan, Region, Step, TensorMap, product
from fagen.families.sm90_sizes import L2_FETCH, padded, tile_map
from fagen.model import Candidate, Problem
from fagen.patterns import UNBOUNDED, Band, BlockDiagonal
from fagen.target import Target
from fagen.workload import Workload

CONTROL_BYTES = 512  # barriers and tile notes, see struct Control of the template
RESERVED_SHARED = 1024  # what the system keeps of each CTA's shared memory
SHARED_PER_SM = 228 * 1024
REGISTERS_PER_SM = 65536


@dataclass(frozen=True)
class ForwardConfig:
    warpgroups: int = knob(1, 2, 3, 4, default=2, says="consumer warpgroups, 64 query rows each")
    block_n: int = knob(
        64, 80, 96, 112, 128, 160, 176, 192, default=128, says="keys per block"
    )
    stages: int = knob(2, 3, 4, default=2, says="buffers for K, and as many for V")
    q_buffers: int = knob(1, 2, default=1, says="2 loads the next tile's queries early")
    softmax: str = knob(
        "lazy", "anchored", "exact", default="anchored", enum="Softmax",
        says="how closely the row maximum is followed; all are exact in the end",
    )
    ping_pong: bool = knob(True, False, default=True, says="warpgroups issue products in turns")
    schedule: str = knob(
        "strided", "snake", "dynamic", "grid", default="strided", enum="Schedule",
        says="how a CTA gets its next tile: in turns, in turns that go to and fro, from a counter; "
        "grid: it has one only",
    )
    epilogue: str = knob(
        "staged", "direct", default="staged", enum="Epilogue",
        says="O through shared memory and TMA, or from registers",
    )
    ctas_per_sm: int = knob(1, 2, default=1, says="several CTAs per SM hide each other's ends")
    half_blocks: bool = knob(
        True, False, default=False,
        says="64 rows that keep nothing of their last block's second half compute the first only",
    )
    seam: str = knob(
        "crossed", "early", "apart", default="crossed", enum="Seam",
        says="a tile ends behind the next one's first scores; early: whose queries come two blocks "
        "into the tile; apart: it ends while they are on their way",
    )
    l2_fetch: int = knob(256, 128, default=256, says=L2_FETCH, launch=True)

    @property
    def block_m(self) -> int:
        return 64 * self.warpgroups

    @property
    def threads(self) -> int:
        return 128 * (self.warpgroups + 1)

    def shared_bytes(self, problem: Problem) -> int:
        qk, v = padded(problem.head_dim), padded(problem.head_dim_v)
        arrays = (
            self.q_buffers * self.block_m * qk,
            self.stages * self.block_n * qk,
            self.stages * self.block_n * v,
            self.block_m * v if self.epilogue == "staged" else 0,
        )
        return sum(-(-2 * elements // 1024) * 1024 for elements in arrays) + CONTROL_BYTES

    def multiply_sizes(self, problem: Problem) -> list[int]:
        """Every N of a 64 x N multiply."""
        half = [padded(self.block_n // 2)] if self.half_blocks else []
        return [self.block_n, *half, padded(problem.head_dim_v)]

    def registers(self, problem: Problem) -> int:
        """What a consumer thread gets; the formula of the template."""
        launch = REGISTERS_PER_SM // (self.threads * self.ctas_per_sm) // 8 * 8
        producer = (32 if self.warpgroups > 2 else 40) if _counted(problem) else 56
        left = (launch * (self.warpgroups + 1) - producer) // self.warpgroups // 8 * 8
        return min(256, left)

    def accumulators(self, problem: Problem) -> int:
        """Registers for scores, probabilities and output, all live at once."""
        return self.block_n // 2 + self.block_n // 4 + padded(problem.head_dim_v) // 2


def _fits(c: Candidate) -> bool:
    return fits(c.config, c.problem, c.target)


def _fits_with(c: Candidate, **changed: int | str) -> bool:
    return fits(replace(c.config, **changed), c.problem, c.target)


def fits(config: ForwardConfig, problem: Problem, target: Target) -> bool:
    shared = config.shared_bytes(problem)
    per_sm = config.ctas_per_sm * (shared + RESERVED_SHARED)
    return shared <= target.shared_bytes and per_sm <= SHARED_PER_SM


def _counted(problem: Problem) -> bool:
    """Do consumers count the blocks of a tile themselves?"""
    return problem.pattern.interval and "varlen" not in problem.features


def _ends_by_pattern(problem: Problem) -> bool:
    """Does the pattern say where a row's keys end, or the sequence alone?"""
    pattern = problem.pattern
    return not isinstance(pattern, Band) or pattern.right != UNBOUNDED


def _may_halve(problem: Problem, block_n: int) -> bool:
    """May the last block of 64 rows be half empty, and do the rows' own warps know?"""
    return _counted(problem) and _ends_by_pattern(problem) and block_n > 64


def _unequal(problem: Problem) -> bool:
    """Do tiles differ in length all along, as under a causal mask?"""
    pattern = problem.pattern
    if "varlen" in problem.features:
        return True
    if isinstance(pattern, Band):
        return (pattern.left == UNBOUNDED) != (pattern.right == UNBOUNDED)
    return not isinstance(pattern, BlockDiagonal)


def _schedules(problem: Problem) -> tuple[str, ...]:
    """Ways to deal out more than one tile to a CTA; the first is the default."""
    return ("dynamic", "snake") if _unequal(problem) else ("strided",)


def _others(c: Candidate) -> int:
    """Registers for everything else, many of them for masks."""
    pattern, config = c.problem.pattern, c.config
    cuts_left = not isinstance(pattern, Band) or pattern.left != UNBOUNDED
    half = config.warpgroups == 1 and config.ctas_per_sm == 2
    if not _counted(c.problem) or (half and cuts_left):
        return 44
    return 32 if config.softmax == "anchored" and config.block_n > 96 else 28


FORWARD_RULES = (
    HALVES,
    Rule("Q, the K and V stages and the staged O fit shared memory", _fits),
    Rule(
        "scores, probabilities and output leave a consumer thread 28 registers, 32 if anchored "
        "with more than 96 keys, 44 where rows are no runs of keys, or packed, or cut on the left "
        "by one warpgroup with half of an SM",
        lambda c: c.config.accumulators(c.problem) + _others(c) <= c.config.registers(c.problem),
    ),
    Rule(
        "ping-pong needs two warpgroups or more",
        lambda c: not c.config.ping_pong or c.config.warpgroups > 1,
    ),
    Rule(
        "tiles of unequal length are not dealt out in one direction, equal ones need nothing else",
        lambda c: c.config.schedule in ("grid", *_schedules(c.problem)),
    ),
    Rule(
        "half blocks are for more than 64 keys a block, where consumers count the blocks "
        "themselves and the pattern sets their end",
        lambda c: not c.config.half_blocks or _may_halve(c.problem, c.config.block_n),
    ),
    Rule(
        "a CTA with one tile needs one buffer for queries; others have two where they fit",
        lambda c: c.config.q_buffers
        == (1 if c.config.schedule == "grid" or not _fits_with(c, q_buffers=2) else 2),
    ),
    Rule(
        "queries are asked for early where they have two buffers and blocks are counted, tiles end "
        "apart where they have one; a CTA with one tile has no seam",
        lambda c: c.config.seam == "crossed" or (
            c.config.schedule != "grid"
            and (c.config.seam == "early") == (c.config.q_buffers == 2)
            and (c.config.seam == "apart" or _counted(c.problem))
        ),
    ),
    Rule(
        "O is staged in shared memory where it fits",
        lambda c: c.config.epilogue == "staged" or not _fits_with(c, epilogue="staged"),
    ),
    Rule(
        "more than two stages hold at most 288 keys: more keys are no faster",
        lambda c: c.config.stages == 2 or c.config.stages * c.config.block_n <= 288,
    ),
)


def _maps(c: Candidate) -> tuple[TensorMap, ...]:
    problem, config = c.problem, c.config

    def view(tensor: str, dim: int, rows: int) -> TensorMap:
        return tile_map(tensor, dim, rows, config.l2_fetch)

    return (
        view("q", problem.head_dim, 64),
        view("k", problem.head_dim, config.block_n),
        view("v", problem.head_dim_v, config.block_n),
        view("o", problem.head_dim_v, 64),
    )


def forward_plan(c: Candidate) -> Plan:
    config = c.config
    tiles = product(q_tiles=config.block_m, heads=1, batch=1)
    counted = config.schedule == "dynamic"
    step = Step(
        symbol="fwd",
        grid=(tiles, product(), product()),
        block=config.threads,
        shared_bytes=config.shared_bytes(c.problem),
        ctas_per_sm=0 if config.schedule == "grid" else config.ctas_per_sm,
        overlap=counted,
        maps=_maps(c),
    )
    if not counted:
        return Plan((step,))
    zero = Step("fwd_zero", (product(), product(), product()), 32)
    return Plan((zero, step), (Region(product(one=16)),))


# (head dimensions up to, warpgroups, block_n, stages): a starting point for dense attention.
_TILES = ((64, 4, 64, 3), (80, 3, 96, 2), (96, 3, 80, 2), (112, 3, 64, 2), (128, 2, 128, 2),
          (160, 2, 112, 2), (192, 2, 96, 2), (256, 2, 80, 2))
# Where rows are no runs, or are read: smaller tiles skip more, and masks need registers.
_SPARSE_TILES = ((128, 2, 128, 2), (160, 2, 96, 2), (192, 2, 80, 2), (256, 2, 64, 2))


def forward_default(problem: Problem, target: Target) -> ForwardConfig:
    widest = max(padded(problem.head_dim), padded(problem.head_dim_v))
    simple = _counted(problem) and not problem.pattern.is_data
    tiles = _TILES if simple else _SPARSE_TILES
    _, warpgroups, block_n, stages = next(row for row in tiles if widest <= row[0])
    schedule = _schedules(problem)[0]
    choices = [
        ForwardConfig(warpgroups, block_n, stages, q_buffers, schedule=schedule, epilogue=epilogue,
                      half_blocks=_may_halve(problem, block_n))
        for q_buffers in (2, 1)
        for epilogue in ("staged", "direct")
    ]
    return next((config for config in choices if fits(config, problem, target)), choices[-1])


def forward_bytes(c: Candidate, w: Workload) -> int:
    """Q, O and LSE once; K and V once for each query tile of a head, as far as the mask reaches."""
    problem, size = c.problem, c.problem.element_bytes
    rows = w.rows_q * w.heads
    block_m: int = c.config.block_m
    keys_read = w.kept(problem) // block_m
    dims = problem.head_dim + problem.head_dim_v
    return (rows + keys_read) * dims * size + 4 * rows


def _instead(problem: Problem) -> dict[str, str]:
    if not problem.pattern.is_data:
        return {}
    return {"device/order_fwd_sm90.h": "device/order_listed_fwd_sm90.h"}


FORWARD = Kernel(
    template="fwd_sm90.cu.j2",
    config=ForwardConfig,
    rules=FORWARD_RULES,
    plan=forward_plan,
    default=forward_default,
    bytes_moved=forward_bytes,
    instead=_instead,
)
