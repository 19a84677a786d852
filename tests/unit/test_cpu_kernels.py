"""The CPU kernels against an fp64 reference: every dtype, pattern, layout and awkward size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from fagen.families.base import Space  # noqa: E402
from fagen.families.cpu import CPU  # noqa: E402
from fagen.model import Candidate, Problem, Target  # noqa: E402
from tests.cpu.harness import TORCH_DTYPE, Harness, default  # noqa: E402

GUARD = 64  # elements on either side of every output that must stay as they were
Tensors = dict[str, "torch.Tensor"]


def _host_isa() -> set[str]:
    info = Path("/proc/cpuinfo")
    return set(info.read_text().split("flags")[1].split("\n")[0].split()) if info.exists() else set()


TARGETS = [name for name in ("x86-64-v3", "x86-64-v4", "x86-64-v4-bf16")
           if set(Target.known(name).isa) <= _host_isa()]
pytestmark = pytest.mark.skipif(not TARGETS, reason="this CPU has no AVX2")


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


def _random(shape: tuple[int, ...], dtype: torch.dtype, packed: bool, fill: str) -> torch.Tensor:
    """A tensor whose rows are not contiguous unless packed; outputs are poisoned with NaN."""
    b, h, s, d = shape
    raw = torch.full((2 * GUARD + b * h * s * d,), math.nan, dtype=dtype)
    flat = raw[GUARD:GUARD + b * h * s * d]
    if fill == "normal":
        flat.copy_(torch.randn(flat.shape))
    return flat.view(b, h, s, d) if packed else flat.view(b, s, h, d).transpose(1, 2)


def _guards_untouched(t: torch.Tensor) -> bool:
    raw = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
    return bool(raw[:GUARD].isnan().all() and raw[-GUARD:].isnan().all())


def make_inputs(problem: Problem, n: Sizes) -> Tensors:
    dtype = TORCH_DTYPE[problem.dtype]
    q = (n.batch, n.heads, n.seqlen_q)
    kv = (n.batch, n.kv_heads, n.seqlen_kv)
    d, dv = problem.head_dim, problem.head_dim_v
    shapes = {"q": (*q, d), "k": (*kv, d), "v": (*kv, dv), "dout": (*q, dv)}
    return {name: _random(shape, dtype, n.packed, "normal") for name, shape in shapes.items()}


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
    o = _random((n.batch, n.heads, n.seqlen_q, p.head_dim_v), dtype, n.packed, "nan")
    lse = _random((n.batch, n.heads, n.seqlen_q, 1), torch.float32, True, "nan")
    out = {"o": o, "lse": lse}
    harness.call(fwd, {"q": x["q"], "k": x["k"], "v": x["v"], "o": o}, lse, scale, threads=threads)
    if bwd is not None:
        grads = {f"d{name}": _random(tuple(x[name].shape), dtype, n.packed, "nan") for name in "qkv"}
        harness.call(bwd, {**x, "o": o, **grads}, lse, scale, dlse, threads)
        out.update(grads)
    assert all(_guards_untouched(t) for t in out.values())
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
        floor = 2.0**-18 * (1.0 + want[finite].abs().max().item())
        assert error <= 2.0 * bound + floor, f"{name}: error {error:.3g}, plain {bound:.3g}"


def both(slug: str, target: str, **knobs: object) -> tuple[Candidate, Candidate]:
    return default(f"fwd-{slug}", target), default(f"bwd-{slug}", target, **knobs)


def verify(harness: Harness, slug: str, target: str, n: Sizes, threads: int = 2) -> None:
    fwd, bwd = both(slug, target)
    torch.manual_seed(hash((slug, n)) % 2**31)
    x = make_inputs(fwd.problem, n)
    dlse = torch.randn(n.batch, n.heads, n.seqlen_q)
    scale = fwd.problem.head_dim**-0.5
    got = run(harness, fwd, bwd, x, n, scale, dlse, threads)
    check(fwd.problem, got, x, scale, dlse)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("rest", [
    "d64-dense", "d64-causal", "d32-causal-topleft", "d40x24-window20x3", "d8x136-window9",
    "d72x64-causal",
])
def test_matches_reference(harness: Harness, target: str, dtype: str, rest: str) -> None:
    for n in (Sizes(), Sizes(2, 6, 3, 200, 65, packed=False), Sizes(1, 1, 1, 1, 1),
              Sizes(1, 1, 1, 300, 3), Sizes(1, 2, 2, 5, 517, packed=False)):
        verify(harness, f"{dtype}-{rest}", target, n)
