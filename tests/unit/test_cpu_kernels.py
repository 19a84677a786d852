"""The CPU kernels against an fp64 reference: every dtype, pattern, layout and awkward size."""

from __future__ import annotations

import ctypes
import errno
import math
import random
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from fagen.families.base import Space  # noqa: E402
from fagen.families.cpu import CPU  # noqa: E402
from fagen.model import Candidate, Problem  # noqa: E402
from fagen.target import Target  # noqa: E402
from fagen.workload import Workload  # noqa: E402
from tests.cpu.harness import TORCH_DTYPE, Harness, default, make_params  # noqa: E402

GUARD = 64  # elements on either side of every tensor, which must stay as they are
Tensors = dict[str, "torch.Tensor"]


def _host_isa() -> set[str]:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else "flags"
    return set(text.partition("flags")[2].partition("\n")[0].split())


TARGETS = [name for name in ("x86-64-v3", "x86-64-v4", "x86-64-v4-bf16")
           if set(Target.known(name).isa) <= _host_isa()]
BEST, NEXT, LEAST = (TARGETS[-1], TARGETS[-2:][0], TARGETS[0]) if TARGETS else ("x86-64-v3",) * 3
pytestmark = pytest.mark.skipif(not TARGETS, reason="this CPU has no AVX2")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20)
    torch.set_num_threads(1)  # small tensors: more threads would mostly wait for each other


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(tmp_path_factory.mktemp("cpu"))


@dataclass(frozen=True)
class Sizes:
    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    seqlen_q: int = 77
    seqlen_kv: int = 131
    packed: bool = True  # [batch, head, row, dim]; else a view of [batch, row, head, dim]
    gap: int = 0  # elements between two rows


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, n: Sizes, normal: bool) -> torch.Tensor:
    """Rows of normal numbers, or of NaN; NaN everywhere around and between them."""
    b, h, s, d = shape
    size = b * h * s * (d + n.gap)
    flat = torch.full((2 * GUARD + size,), math.nan, dtype=dtype)[GUARD:GUARD + size]
    rows = (flat.view(b, h, s, d + n.gap) if n.packed
            else flat.view(b, s, h, d + n.gap).transpose(1, 2))[..., :d]
    return rows.copy_(torch.randn(shape)) if normal else rows


def _around_untouched(t: torch.Tensor) -> bool:
    raw = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).clone()
    raw.as_strided(t.shape, t.stride(), t.storage_offset()).fill_(math.nan)
    return bool(raw.isnan().all())


def make_inputs(problem: Problem, n: Sizes) -> Tensors:
    dtype = TORCH_DTYPE[problem.dtype]
    q = (n.batch, n.heads, n.seqlen_q)
    kv = (n.batch, n.kv_heads, n.seqlen_kv)
    d, dv = problem.head_dim, problem.head_dim_v
    shapes = {"q": (*q, d), "k": (*kv, d), "v": (*kv, dv), "dout": (*q, dv)}
    return {name: _tensor(shape, dtype, n, True) for name, shape in shapes.items()}


def reference(problem: Problem, x: Tensors, scale: float, dlse: torch.Tensor | None,
              dtype: torch.dtype) -> Tensors:
    """o, lse, dq, dk, dv by plain autograd, computed in `dtype`."""
    q, k, v = (x[name].to(dtype).detach().requires_grad_() for name in "qkv")
    group = q.shape[1] // k.shape[1]
    keep = torch.from_numpy(problem.pattern.mask(q.shape[2], k.shape[2]))
    s = q @ k.repeat_interleave(group, 1).mT * scale
    s = s.masked_fill(~keep, -math.inf)
    # A row that keeps nothing: o is 0, lse is -inf, and no gradient flows.
    alive = keep.any(-1)[:, None]
    p = s.masked_fill(~alive, 0.0).softmax(-1) * alive
    o = p @ v.repeat_interleave(group, 1)
    lse = s.masked_fill(~alive, 0.0).float().logsumexp(-1).to(dtype) if dtype.itemsize < 4 else (
        s.masked_fill(~alive, 0.0).logsumexp(-1))
    lse = lse.masked_fill(~alive[:, 0], -math.inf)
    total = (o * x["dout"].to(dtype)).sum()
    if dlse is not None:
        total = total + (lse.masked_fill(~alive[:, 0], 0.0) * dlse.to(dtype)).sum()
    dq, dk, dv = torch.autograd.grad(total, (q, k, v))
    return {"o": o.detach(), "lse": lse.detach(), "dq": dq, "dk": dk, "dv": dv}


def run(harness: Harness, fwd: Candidate, bwd: Candidate | None, x: Tensors, n: Sizes,
        scale: float, dlse: torch.Tensor | None = None, threads: int = 2) -> Tensors:
    """What the kernels compute, into poisoned and guarded outputs."""
    p, dtype = fwd.problem, x["q"].dtype
    o = _tensor((n.batch, n.heads, n.seqlen_q, p.head_dim_v), dtype, n, False)
    lse = _tensor((n.batch, n.heads, n.seqlen_q, 1), torch.float32, Sizes(), False)
    out = {"o": o, "lse": lse}
    harness.call(fwd, {**{name: x[name] for name in "qkv"}, "o": o}, lse, scale, threads=threads)
    if bwd is not None:
        shapes = {f"d{name}": tuple(x[name].shape) for name in "qkv"}
        grads = {name: _tensor(shape, dtype, n, False) for name, shape in shapes.items()}
        harness.call(bwd, {**x, "o": o, **grads}, lse, scale, dlse, threads)
        out.update(grads)
    assert all(_around_untouched(t) for t in out.values())
    return {**out, "lse": lse[..., 0]}


def check(problem: Problem, got: Tensors, x: Tensors, scale: float,
          dlse: torch.Tensor | None = None) -> None:
    """At most twice the error of a plain computation in the problem's dtype, plus a floor."""
    exact = reference(problem, x, scale, dlse, torch.float64)
    plain = reference(problem, x, scale, dlse, TORCH_DTYPE[problem.dtype])
    for name, value in got.items():
        want = exact[name]
        assert torch.equal(value.isneginf(), want.isneginf()), name
        finite = want.isfinite()
        error = (value.double() - want)[finite].abs().max().item()
        bound = (plain[name].double() - want)[finite].abs().max().item()
        resolution = max(torch.finfo(TORCH_DTYPE[problem.dtype]).eps / 16, 2.0**-18)
        floor = resolution * (1.0 + want[finite].abs().max().item())
        assert error <= 2.0 * bound + floor, f"{name}: error {error:.3g}, plain {bound:.3g}"


def both(slug: str, target: str, **knobs: object) -> tuple[Candidate, Candidate]:
    return default(f"fwd-{slug}", target), default(f"bwd-{slug}", target, **knobs)


def verify(harness: Harness, slug: str, target: str, n: Sizes, threads: int = 2) -> None:
    fwd, bwd = both(slug, target)
    torch.manual_seed(zlib.crc32(f"{slug} {n}".encode()))
    x = make_inputs(fwd.problem, n)
    dlse = torch.randn(n.batch, n.heads, n.seqlen_q)
    scale = fwd.problem.head_dim**-0.5
    got = run(harness, fwd, bwd, x, n, scale, dlse, threads)
    check(fwd.problem, got, x, scale, dlse)


AWKWARD = (
    Sizes(),
    Sizes(2, 6, 3, 200, 65, packed=False),
    Sizes(1, 1, 1, 1, 1),
    Sizes(1, 1, 1, 300, 3),  # causal: most rows keep nothing
    Sizes(1, 4, 1, 5, 517, packed=False, gap=3),
)
CASES = (
    ("fp32-d64-dense", BEST), ("fp32-d40x24-window20x3", BEST), ("fp32-d128-causal", BEST),
    ("bf16-d64-causal", BEST), ("bf16-d8x136-window9", BEST), ("fp16-d72x64-causal-topleft", BEST),
    ("fp16-d256-dense", BEST), ("bf16-d64-causal", NEXT), ("fp32-d72x8-causal", LEAST),
    ("bf16-d40x24-window20x3", LEAST), ("fp16-d32-causal-topleft", LEAST),
    ("bf16-d64-bigbird-w20-g10-r64-seed3", BEST), ("fp16-d64-butterfly-b32-causal", BEST),
    ("fp32-d40-dilated-w9-d3-causal", LEAST), ("fp32-d64-prefix40", LEAST),
)


@pytest.mark.parametrize(("slug", "target"), sorted(set(CASES)))
def test_matches_reference(harness: Harness, slug: str, target: str) -> None:
    for n in AWKWARD:
        verify(harness, slug, target, n)


def sample(op: str, slug: str, target: str, count: int) -> list[Candidate]:
    """Legal configs that between them use every choice of every knob, as far as `count` goes."""
    problem = Problem.parse(f"{op}-{slug}")
    legal = list(Space(problem, Target.known(target), CPU).legal())
    random.Random(slug).shuffle(legal)
    seen: set[tuple[str, object]] = set()
    chosen = []
    while len(chosen) < count:
        best = max(legal, key=lambda c: len(set(asdict(c.config).items()) - seen))
        seen |= set(asdict(best.config).items())
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("slug", ["fp32-d72-causal", "bf16-d64x40-window30x5"])
def test_every_knob(harness: Harness, slug: str) -> None:
    for fwd, bwd in zip(sample("fwd", slug, BEST, 6), sample("bwd", slug, BEST, 6), strict=True):
        for n in (Sizes(1, 2, 1, 333, 270, packed=False), Sizes(1, 1, 1, 40, 1100)):
            x = make_inputs(fwd.problem, n)
            got = run(harness, fwd, bwd, x, n, 0.2)
            check(fwd.problem, got, x, 0.2)


@pytest.mark.parametrize("n", [Sizes(1, 1, 1, 260, 777), Sizes(1, 6, 3, 100, 400)])
def test_threads_share_a_head_and_repeat_bit_for_bit(harness: Harness, n: Sizes) -> None:
    fwd, bwd = both("fp32-d64-causal", BEST)
    x = make_inputs(fwd.problem, n)
    alone = run(harness, fwd, bwd, x, n, 0.125, threads=1)
    for threads in (2, 5, 16):
        got = run(harness, fwd, bwd, x, n, 0.125, threads=threads)
        check(fwd.problem, got, x, 0.125)
        again = run(harness, fwd, bwd, x, n, 0.125, threads=threads)
        assert all(torch.equal(got[name], again[name]) for name in got)
        assert torch.equal(got["o"], alone["o"])


@pytest.mark.parametrize("target", sorted({BEST, LEAST}))
@pytest.mark.parametrize("scale", [1.0, -1.0, 0.0])
def test_large_logits(harness: Harness, target: str, scale: float) -> None:
    """Scores around +-1e4: nothing overflows, and the largest of a row decides."""
    fwd, bwd = both("fp32-d64-dense", target)
    n = Sizes(1, 1, 1, 70, 200)
    x = make_inputs(fwd.problem, n)
    x["q"] *= 300.0
    x["k"] *= 4.0
    got = run(harness, fwd, bwd, x, n, scale)
    want = reference(fwd.problem, x, scale, None, torch.float64)
    for name in ("o", "dv"):
        torch.testing.assert_close(got[name].double(), want[name], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(got["lse"].double(), want["lse"], rtol=1e-5, atol=1e-5)
    assert all(got[name].isfinite().all() for name in ("dq", "dk"))


@pytest.mark.parametrize("target", sorted({BEST, LEAST}))
@pytest.mark.parametrize("slug", ["fp32-d32-causal", "bf16-d32-dense"])
@pytest.mark.parametrize("rise", [60.0, -60.0])
def test_scores_that_run_away(harness: Harness, target: str, slug: str, rise: float) -> None:
    """Scores that keep rising (or falling) by far more than a tile's P can hold."""
    fwd, bwd = both(slug, target)
    n = Sizes(1, 2, 1, 140, 700)
    x = make_inputs(fwd.problem, n)
    x["q"][..., 0] = 1.0
    x["k"][..., 0] = (rise * torch.arange(n.seqlen_kv) / 50).to(x["k"].dtype)
    got = run(harness, fwd, bwd, x, n, 1.0)
    check(fwd.problem, {name: got[name] for name in ("o", "lse")}, x, 1.0)


SPECIAL = ("fp32-d64-causal", "bf16-d64-causal", "fp16-d40-causal")


@pytest.mark.parametrize("target", sorted({BEST, LEAST}))
@pytest.mark.parametrize("slug", SPECIAL)
@pytest.mark.parametrize("name", ["q", "k", "v", "dout"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_numbers_reach_whom_they_concern(
    harness: Harness, target: str, slug: str, name: str, value: float
) -> None:
    """NaN and inf spread to every row that sees them and to no other, in every result."""
    fwd, bwd = both(slug, target)
    n, at = Sizes(1, 1, 1, 130, 130), 100
    x = make_inputs(fwd.problem, n)
    x[name][0, 0, at, 3] = value
    got = run(harness, fwd, bwd, x, n, 0.15)
    bad = {out: ~t[0, 0].isfinite() for out, t in got.items()}
    rows = {out: mask.any(-1) if mask.dim() == 2 else mask for out, mask in bad.items()}
    seen_from = slice(at, None) if name in "kv" else slice(at, at + 1)
    if (name in ("q", "k") and value != value) or name == "v":
        assert rows["o"][seen_from].all()
    if name == "dout":
        assert not rows["o"].any()
        assert rows["dv"][:at + 1].all()
    clean = torch.ones(130, dtype=torch.bool)
    clean[seen_from] = False
    assert not rows["o"][clean].any()
    assert not rows["lse"][clean].any()
    assert not rows["dq"][clean].any()
    if name in ("q", "dout"):  # keys after the row never meet it
        assert not rows["dk"][at + 1:].any()
        assert not rows["dv"][at + 1:].any()


@pytest.mark.parametrize("target", sorted({BEST, LEAST}))
@pytest.mark.parametrize("slug", SPECIAL)
def test_a_row_of_minus_infinity_is_zero(harness: Harness, target: str, slug: str) -> None:
    """As torch's own attention: no key has any weight, and no NaN appears."""
    fwd, _ = both(slug, target)
    n = Sizes(1, 1, 1, 50, 50)
    x = make_inputs(fwd.problem, n)
    x["q"].abs_()
    x["k"].abs_()
    x["k"][0, 0, :20] = -math.inf  # rows 0..19 see nothing else
    got = run(harness, fwd, None, x, n, 0.2)
    assert (got["o"][0, 0, :20] == 0).all()
    assert got["lse"][0, 0, :20].isneginf().all()
    assert got["o"][0, 0, 20:].isfinite().all()
    torch.testing.assert_close(got["o"][0, 0, 20], x["v"][0, 0, 20])


def test_no_memory_is_an_error_code(harness: Harness) -> None:
    """The backward asks for fp32 dq before it touches any tensor: 128 TB are not to be had."""
    candidate = default("bwd-fp32-d256-dense", LEAST)
    x = make_inputs(candidate.problem, Sizes(1, 1, 1, 1, 1))
    tensors = {**x, "o": x["v"], "dq": x["q"], "dk": x["k"], "dv": x["v"]}
    params = make_params(tensors, torch.zeros(1, 1, 1), 1.0, None)
    params.batch, params.heads, params.kv_heads, params.seqlen_q = 1, 64, 1, 2**31 - 1
    assert harness.team.call(harness.compile(candidate), ctypes.byref(params), 1) == errno.ENOMEM


@pytest.mark.parametrize("op", ["fwd", "bwd"])
def test_every_problem_has_a_legal_default(op: str) -> None:
    for name in ("x86-64-v3", "x86-64-v4", "x86-64-v4-bf16"):
        for dtype in TORCH_DTYPE:
            for dims in (*range(8, 257, 8), "8x256", "256x8"):
                candidate = default(f"{op}-{dtype}-d{dims}-causal", name)
                assert not CPU.broken_rules(candidate), candidate


def test_bytes_moved_is_at_least_the_tensors() -> None:
    for op in ("fwd", "bwd"):
        candidate = default(f"{op}-fp32-d64-dense", "x86-64-v3")
        w = Workload(2, 8, 4, 1000, 1000)
        moved = CPU.kernels[op].bytes_moved(candidate, w)
        assert moved >= w.min_bytes(candidate.problem)
