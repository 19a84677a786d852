"""The sm90 backward: rules, and the launch plan of its two or three kernels."""

from __future__ import annotations

from collections.abc import Iterator

from fagen.families.base import HALVES, Kernel, Rule, idle_knobs
from fagen.families.plan import Plan, Region, Step, TensorMap, product
from fagen.families.sm90_bwd_config import CONSUMERS, Config, noted, sparse
from fagen.families.sm90_sizes import padded, tile_map
from fagen.model import Candidate, Problem
from fagen.target import Target
from fagen.workload import Workload

ENDS_THREADS = 256


def _maps(problem: Problem, config: Config) -> tuple[TensorMap, ...]:
    def view(tensor: str, dim: int, rows: int) -> TensorMap:
        return tile_map(tensor, dim, rows, config.l2_fetch)

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
         or not (sparse(c.problem) or "varlen" in c.problem.features)),
    Rule("key blocks are counted by a dQ warpgroup, where each query tile has one run of them, "
         "known beforehand",
         lambda c: not c.config.counted or (c.config.own_dq and not sparse(c.problem))),
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
    if sparse(problem):
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
