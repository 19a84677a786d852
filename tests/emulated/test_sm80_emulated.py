"""The sm80 kernels run on the host: every fragment layout, swizzle, mask and pipeline, no GPU.

``emulator/ptx_sm80.h`` replaces the one header that holds PTX; all other text of the kernel is what
ships. Copies land as late as the hardware allows, and shared memory starts as NaN.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fagen import paths  # noqa: E402
from fagen.cases import Case  # noqa: E402
from fagen.families.sm80 import SM80  # noqa: E402
from fagen.library import Params, View  # noqa: E402
from fagen.masks import drawn, point  # noqa: E402
from fagen.model import Candidate, Problem  # noqa: E402
from fagen.patterns import Mix  # noqa: E402
from fagen.pieces import Pieces  # noqa: E402
from fagen.render import Renderer, symbol  # noqa: E402
from fagen.target import Target  # noqa: E402
from fagen.workload import Workload  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}
GUARD = 64


class Emulator:
    """Compiles candidates for the host and runs their launch plan."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        templates = scratch / "templates"
        shutil.copytree(paths.templates(), templates)
        shutil.copy(Path(__file__).parent / "emulator" / "ptx_sm80.h", templates / "device")
        self.renderer = Renderer(templates)

    def run(self, candidate: Candidate, params: Params, workload: Workload) -> None:
        plan = candidate.family.kernel(candidate.problem.op).plan(candidate)
        work = [torch.full((r.bytes.value(workload) // 4,), 0.0 if r.zero else math.nan)
                for r in plan.regions]
        for i, region in enumerate(work):
            params.work[i] = region.data_ptr()
        launches = ""
        for step in plan.steps:
            grid = ", ".join(str(g.value(workload)) for g in step.grid)
            launches += (f"  launch({step.symbol}, *p, {{{grid}}}, {step.block},"
                         f" {step.shared_bytes});\n")
        text = (self.renderer.render(candidate).text
                + f'\nextern "C" void run(const fagen_params *p) {{\n{launches}}}\n')
        source = self.scratch / f"{symbol(candidate)}-{workload}.cpp"
        library = source.with_suffix(".so")
        source.write_text(text)
        subprocess.run(["g++", "-std=c++20", "-O2", "-w", "-shared", "-fPIC", "-Bsymbolic",
                        "-o", library, source], check=True)
        ctypes.CDLL(str(library)).run(ctypes.byref(params))


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("sm80"))


@dataclass(frozen=True)
class Guarded:
    """A tensor between guard zones; ``seen`` is [batch, head, row, dim]."""

    raw: Any
    seen: Any

    @classmethod
    def make(cls, shape: tuple[int, ...], dtype: Any, packed: bool, random: bool) -> Guarded:
        b, h, s, d = shape
        raw = torch.full((2 * GUARD + b * h * s * d,), math.nan, dtype=dtype)
        inside = raw[GUARD : GUARD + b * h * s * d]
        if random:
            inside.copy_(torch.randn(inside.shape))
        seen = inside.view(b, h, s, d) if packed else inside.view(b, s, h, d).transpose(1, 2)
        return cls(raw, seen)

    def view(self) -> View:
        return View(self.seen.data_ptr(), *self.seen.stride()[:3])

    def unharmed(self) -> bool:
        return bool(self.raw[:GUARD].isnan().all() and self.raw[-GUARD:].isnan().all())


def kept(problem: Problem, case: Case) -> Any:
    """[batch, heads, queries, keys]."""
    w, mask = case.workload, drawn(problem, case)
    whole = (w.batch, w.heads, w.seqlen_q, w.seqlen_kv)
    if w.packed:  # no sequence sees another
        return torch.block_diag(*(
            torch.from_numpy(problem.pattern.mask(*n)).int() for n in w.lengths()
        )).bool().expand(1, w.heads, w.total_q, w.total_kv)
    if isinstance(problem.pattern, Mix):
        members = map(problem.pattern.of_head, range(w.heads))
        return torch.stack([torch.from_numpy(p.mask(*whole[2:])) for p in members]).expand(whole)
    if mask is None:
        return torch.from_numpy(problem.pattern.mask(*whole[2:])).expand(whole)
    group = w.heads // w.kv_heads
    return torch.stack([
        torch.cat([mask.keeps((b, h), group, slice(None), "cpu").expand(group, *whole[2:])
                   for h in range(w.kv_heads)]) for b in range(w.batch)
    ])


def reference(problem: Problem, x: dict[str, Any], keep: Any, scale: float,
              dlse: Any) -> dict[str, Any]:
    """Everything in fp64 by autograd."""
    q, k, v = (x[n].seen.double().detach().requires_grad_() for n in "qkv")
    group = q.shape[1] // k.shape[1]
    s = (q @ k.repeat_interleave(group, 1).mT * scale).masked_fill(~keep, -math.inf)
    alive = keep.any(-1, keepdim=True)
    safe = torch.where(alive, s, torch.zeros(()).double())
    o = torch.where(alive, safe.softmax(-1) @ v.repeat_interleave(group, 1), 0.0)
    lse = torch.where(alive[..., 0], safe.logsumexp(-1), -math.inf)
    out = {"o": o, "lse": lse}
    if problem.op == "bwd":
        loss = (o * x["dout"].seen.double()).sum()
        loss = loss + (torch.where(alive[..., 0], lse, 0.0) * dlse).sum()
        loss.backward()
        out |= {"dq": q.grad, "dk": k.grad, "dv": v.grad}
    return {name: t.detach() for name, t in out.items()}


def check(emulator: Emulator, slug: str, sizes: str, target: str = "h200", packed: bool = True,
          **knobs: Any) -> None:
    torch.manual_seed(7)
    problem = Problem.parse(slug)
    w = Workload.parse(sizes).of(problem)
    candidate = SM80.default(problem, Target.known(target)).with_config(**knobs)
    assert not SM80.broken_rules(candidate)
    dtype = TORCH[problem.dtype]
    q, kv = (w.batch, w.heads, w.seqlen_q), (w.batch, w.kv_heads, w.seqlen_kv)
    if w.packed:
        q, kv = (1, w.heads, w.total_q), (1, w.kv_heads, w.total_kv)
    d, dv = problem.head_dim, problem.head_dim_v
    shapes = {"q": (*q, d), "k": (*kv, d), "v": (*kv, dv), "o": (*q, dv), "dout": (*q, dv),
              "dq": (*q, d), "dk": (*kv, d), "dv": (*kv, dv)}
    x = {n: Guarded.make(s, dtype, packed, n in ("q", "k", "v", "dout"))
         for n, s in shapes.items()}
    scale = d**-0.5
    dlse = torch.randn(q)
    case = Case(w, layout="bhsd" if packed else "bshd")
    want = reference(problem, x, kept(problem, case), scale, dlse.double())
    lse = torch.full(q, math.nan)
    if problem.op == "bwd":
        x["o"].seen.copy_(want["o"])
        lse.copy_(want["lse"])
    params = Params(batch=w.batch, heads=w.heads, kv_heads=w.kv_heads, seqlen_q=w.seqlen_q,
                    seqlen_kv=w.seqlen_kv, scale=scale, lse=lse.data_ptr(),
                    dlse=dlse.data_ptr(), **{n: t.view() for n, t in x.items()})
    offsets = [torch.tensor(starts, dtype=torch.int32) for starts in Pieces.of(problem, w).starts]
    if w.packed:
        params.cu_q, params.cu_kv = (cu.data_ptr() for cu in offsets)
        params.total_q, params.total_kv = w.total_q, w.total_kv
    mask = drawn(problem, case)
    arrays = {} if mask is None else mask.arrays("cpu")
    if mask is not None:
        point(params, {name: array.data_ptr() for name, array in arrays.items()}, mask.sharing)
    emulator.run(candidate, params, w)
    got = {n: t.seen.double() for n, t in x.items()} | {"lse": lse.double()}
    epsilon = 2.0**-7 if problem.dtype == "bf16" else 2.0**-10
    for name in ("o", "lse") if problem.op == "fwd" else ("dq", "dk", "dv"):
        assert not got[name].isnan().any(), name
        finite = want[name].isfinite()
        assert torch.equal(got[name][~finite], want[name][~finite]), name
        error = (got[name] - want[name])[finite].norm() / (want[name][finite].norm() + 1e-3)
        assert error < (1e-5 if name == "lse" else epsilon), (name, float(error))
    assert all(t.unharmed() for t in x.values())


FORWARD: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fwd-bf16-d64-causal", "b1-h2x1-s77x131", {}),
    ("fwd-fp16-d128", "b1-h1-s65x70", {"stages": 2}),
    ("fwd-bf16-d40x24-causal", "b2-h2-s50x33", {"block_m": 64, "block_n": 32, "stages": 3}),
    ("fwd-bf16-d80-window20x5", "b1-h2-s120x90",
     {"block_m": 32, "warps": 2, "block_n": 16, "stages": 3, "heads_first": True}),
    ("fwd-fp16-d24x72-causal-topleft", "b1-h4x2-s40x60",
     {"block_m": 32, "warps": 2, "block_n": 48, "q_in_registers": True}),
    ("fwd-bf16-d256-causal", "b1-h1-s80x40", {"block_m": 64, "warps": 4, "block_n": 32}),
    ("fwd-bf16-d16-window3", "b1-h1-s200x100",
     {"block_m": 64, "warps": 4, "block_n": 16, "stages": 2, "q_in_registers": True}),
)


@pytest.mark.parametrize("packed", [True, False], ids=["bhsd", "bshd"])
@pytest.mark.parametrize(("slug", "sizes", "knobs"), FORWARD, ids=[row[0] for row in FORWARD])
def test_forward(emulator: Emulator, slug: str, sizes: str, knobs: dict[str, Any],
                 packed: bool) -> None:
    check(emulator, slug, sizes, packed=packed, **knobs)


BACKWARD: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("bwd-bf16-d64-causal", "b1-h2x1-s77x131", {}),
    ("bwd-fp16-d32-causal", "b1-h2-s70x40",
     {"block_m": 32, "block_n": 64, "warps": 4, "kv_warps": 4, "dq_warps": 2}),
    ("bwd-bf16-d80x48-window20x5", "b2-h2x1-s90x100",
     {"block_m": 32, "block_n": 64, "warps": 4, "kv_warps": 2, "dq_warps": 1, "stages": 1}),
    ("bwd-fp16-d24x72-causal-topleft", "b1-h2-s40x60",
     {"block_m": 32, "block_n": 32, "warps": 4, "kv_warps": 2, "dq_warps": 2, "stages": 2}),
    ("bwd-bf16-d128", "b1-h1-s65x70", {"block_n": 64, "stages": 1}),
    ("bwd-bf16-d256-causal", "b1-h1-s40x66", {"block_m": 32, "block_n": 64, "kv_warps": 4}),
    ("bwd-bf16-d40-causal+deterministic", "b1-h2x1-s77x50", {"block_m": 32, "dq_warps": 2}),
    ("bwd-fp16-d16x136-window9+deterministic", "b1-h2x1-s60x90",
     {"block_m": 64, "block_n": 64, "warps": 4, "kv_warps": 4, "dq_warps": 1, "stages": 1}),
)


# Long and short sequences, empty ones, some with queries only or with keys only.
PACKED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fwd-bf16-d64-causal+varlen", "b7-h2x1-s77x131-t120x200", {"block_m": 32, "warps": 2}),
    ("fwd-fp16-d40-window20x5+varlen", "b9-h2-s90x40-t95x50",
     {"block_m": 32, "warps": 2, "block_n": 16, "stages": 3, "heads_first": True}),
    ("bwd-bf16-d64-causal+varlen", "b7-h2x1-s77x131-t120x200", {"block_m": 32, "dq_warps": 2}),
    ("bwd-fp16-d24x40-dense+varlen", "b9-h2-s90x40-t95x50",
     {"block_m": 32, "block_n": 32, "warps": 4, "kv_warps": 2, "dq_warps": 2, "stages": 1}),
    ("bwd-bf16-d40-window9+deterministic+varlen", "b6-h2x1-s50x77-t90x160",
     {"block_m": 32, "dq_warps": 2}),
)


@pytest.mark.parametrize(("slug", "sizes", "knobs"), PACKED, ids=[row[0] for row in PACKED])
def test_packed_sequences(emulator: Emulator, slug: str, sizes: str, knobs: dict[str, Any]) -> None:
    check(emulator, slug, sizes, packed=False, **knobs)


@pytest.mark.parametrize("packed", [True, False], ids=["bhsd", "bshd"])
@pytest.mark.parametrize(("slug", "sizes", "knobs"), BACKWARD, ids=[row[0] for row in BACKWARD])
def test_backward(emulator: Emulator, slug: str, sizes: str, knobs: dict[str, Any],
                  packed: bool) -> None:
    check(emulator, slug, sizes, packed=packed, **knobs)
