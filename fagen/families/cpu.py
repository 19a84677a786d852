"""The CPU family: x86-64 with AVX2 or AVX-512, any x86 laptop or server. SIMD lanes are query rows.

The knobs are micro-tiles (sums held in registers), cache tiles and unrolling; the templates
``fwd_cpu.cpp.j2`` and ``bwd_cpu.cpp.j2`` say what each does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fagen.families.base import Family, Kernel, Rule, knob
from fagen.families.plan import Plan
from fagen.model import Candidate, Problem
from fagen.target import Target
from fagen.workload import Workload

BASELINE = frozenset({"avx2", "f16c", "fma"})


@dataclass(frozen=True)
class CpuForward:
    q_vectors: int = knob(1, 2, 3, 4, default=4, says="vectors of query rows in a panel")
    panels: int = knob(1, 2, 4, 8, default=1, says="panels in a task, sharing each tile of k and v")
    block_n: int = knob(32, 48, 64, 96, 128, 192, default=96, says="keys in one softmax step")
    qk_rows: int = knob(4, 6, 8, 12, default=6, says="keys in the micro-tile of K Q^T")
    pv_rows: int = knob(4, 6, 8, 12, default=6, says="dimensions in the micro-tile of V^T P^T")
    unroll: int = knob(1, 2, 4, default=1, says="unrolling of the inner products")
    stage_kv: bool = knob(False, True, default=False, says="copy tiles of k and v that need not be")
    bf16_dot: bool = knob(False, True, default=False, says="multiply bf16 in pairs, not as fp32")


@dataclass(frozen=True)
class CpuBackward:
    q_vectors: int = knob(1, 2, 3, 4, default=4, says="vectors of query rows in a panel")
    d_vectors: int = knob(1, 2, 3, 4, default=4, says="vectors of d in the dk, dv micro-tile")
    block_n: int = knob(32, 48, 64, 96, default=48, says="keys in one step")
    block_kv: int = knob(96, 192, 384, 768, default=384, says="keys whose dk, dv stay in cache")
    qk_rows: int = knob(4, 6, 8, 12, default=6, says="keys in the micro-tile of K Q^T and V dO^T")
    dkv_rows: int = knob(4, 6, 8, 12, default=6, says="keys in the dk, dv micro-tile")
    dq_rows: int = knob(4, 6, 8, 12, default=6, says="dimensions in the micro-tile of K^T dS^T")
    unroll: int = knob(1, 2, 4, default=1, says="unrolling of the inner products")
    bf16_dot: bool = knob(False, True, default=False, says="multiply bf16 in pairs, not as fp32")


def lanes(target: Target) -> int:
    return 16 if "avx512f" in target.isa else 8


def registers(target: Target) -> int:
    return 32 if "avx512f" in target.isa else 16


def _has_dot(target: Target) -> bool:
    return "avx512_bf16" in target.isa


def _padded(n: int, step: int) -> int:
    return -(-n // step) * step


def _fits(c: Candidate, vectors: int, *rows: int) -> bool:
    """Sums, one row of vectors and one broadcast element, all in registers."""
    return all(vectors * r + vectors + 1 <= registers(c.target) for r in rows)


def _dims(c: Candidate) -> int:
    """Of a key and its value, as they lie in scratch."""
    step = lanes(c.target)
    return _padded(c.problem.head_dim, step) + _padded(c.problem.head_dim_v, step)


def _fwd_scratch(c: Candidate) -> int:
    """Bytes one thread touches over and over."""
    config: CpuForward = c.config
    width = config.q_vectors * lanes(c.target)
    panel = (c.problem.head_dim + c.problem.head_dim_v) * width
    return 4 * (config.panels * panel + config.block_n * (width + _dims(c)))


def _bwd_scratch(c: Candidate) -> int:
    config: CpuBackward = c.config
    width = config.q_vectors * lanes(c.target)
    panel = width * (2 * c.problem.head_dim + c.problem.head_dim_v + _dims(c))
    return 4 * (panel + 2 * config.block_n * width + 2 * config.block_kv * _dims(c))


DOT_RULE = Rule(
    "bf16_dot needs a bf16 problem and a target with avx512_bf16",
    lambda c: not c.config.bf16_dot or (c.problem.dtype == "bf16" and _has_dot(c.target)),
)

FORWARD_RULES = (
    DOT_RULE,
    Rule("the micro-tiles fit in the vector registers",
         lambda c: _fits(c, c.config.q_vectors, c.config.qk_rows, c.config.pv_rows)),
    Rule("block_n is a multiple of qk_rows", lambda c: c.config.block_n % c.config.qk_rows == 0),
    Rule("16-bit keys and values that are widened are always staged (stage_kv)",
         lambda c: c.problem.element_bytes == 4 or c.config.bf16_dot or c.config.stage_kv),
    Rule("a thread's scratch fits in its L2 cache",
         lambda c: _fwd_scratch(c) <= c.target.l2_bytes),
)

BACKWARD_RULES = (
    DOT_RULE,
    Rule("the query micro-tiles fit in the vector registers",
         lambda c: _fits(c, c.config.q_vectors, c.config.qk_rows, c.config.dq_rows)),
    Rule("the dk, dv micro-tile fits in the vector registers",
         lambda c: _fits(c, c.config.d_vectors, c.config.dkv_rows)),
    Rule("block_n is a multiple of qk_rows and dkv_rows",
         lambda c: not c.config.block_n % c.config.qk_rows + c.config.block_n % c.config.dkv_rows),
    Rule("block_kv is a multiple of block_n", lambda c: c.config.block_kv % c.config.block_n == 0),
    Rule("a thread's scratch fits in its L2 cache",
         lambda c: _bwd_scratch(c) <= c.target.l2_bytes),
)


def _default_forward(problem: Problem, target: Target) -> CpuForward:
    dot = problem.dtype == "bf16" and _has_dot(target)
    halves = problem.element_bytes == 2
    config = CpuForward(panels=2 if halves else 1, stage_kv=halves and not dot, bf16_dot=dot)
    if not problem.pattern.interval:  # sparse blocks are 64 or so, and tiles should match them
        config = replace(config, panels=1, block_n=64, qk_rows=4)
    if lanes(target) == 8:
        config = replace(config, q_vectors=2, block_n=48 if config.qk_rows == 6 else 64)
    return config


def _default_backward(problem: Problem, target: Target) -> CpuBackward:
    dot = problem.dtype == "bf16" and _has_dot(target)
    long = problem.head_dim + problem.head_dim_v > 256
    config = CpuBackward(block_kv=96 if long else 384, bf16_dot=dot)
    if not problem.pattern.interval:
        config = replace(config, block_n=64, qk_rows=4, dkv_rows=4, block_kv=192)
    if lanes(target) == 8:
        config = replace(config, q_vectors=2, d_vectors=2, block_kv=min(config.block_kv, 192))
    return config


def _forward_bytes(c: Candidate, w: Workload) -> int:
    """q and o once; every block of queries reads the keys and values that it keeps."""
    p, config = c.problem, c.config
    rows: int = config.panels * config.q_vectors * lanes(c.target)
    q = w.heads * w.rows_q * (p.head_dim + p.head_dim_v) * p.element_bytes
    kv = w.kept(p) // rows * (p.head_dim + p.head_dim_v) * p.element_bytes
    return q + kv + 4 * w.heads * w.rows_q


def _backward_bytes(c: Candidate, w: Workload) -> int:
    """k, v, dk, dv once; every chunk of keys reads q, o, dout and adds to an fp32 dq."""
    p = c.problem
    chunk: int = min(c.config.block_kv, w.seqlen_kv)
    kv = 2 * w.kv_heads * w.rows_kv * (p.head_dim + p.head_dim_v) * p.element_bytes
    rows = w.kept(p) // chunk  # query rows, once per chunk
    per_row = (p.head_dim + 2 * p.head_dim_v) * p.element_bytes + 8 * p.head_dim + 4
    dq = w.heads * w.rows_q * p.head_dim * (p.element_bytes + 4)
    return kv + rows * per_row + dq


CPU = Family(
    name="cpu",
    says="x86-64 with AVX2 or AVX-512; threads over heads and query blocks",
    toolchain="host",
    kernels={
        "fwd": Kernel("fwd_cpu.cpp.j2", CpuForward, FORWARD_RULES, lambda c: Plan(),
                      _default_forward, _forward_bytes, _fwd_scratch),
        "bwd": Kernel("bwd_cpu.cpp.j2", CpuBackward, BACKWARD_RULES, lambda c: Plan(),
                      _default_backward, _backward_bytes, _bwd_scratch),
    },
    runs_on=lambda target: target.kind == "cpu" and set(target.isa) >= BASELINE,
    arch=lambda target: "x86-64-v4" if "avx512f" in target.isa else "x86-64-v3",
)
