"""The emitted package as its users see it: results, gradients, torch's machinery, bad input.

Kernels are the textbook ones of toykernel.py; what real kernels compute is tested elsewhere.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fagen import paths
from fagen.build import Builder, Cache
from fagen.emit import Shipped, emit
from fagen.link import Part, find_cc
from fagen.model import Entry, Measurement, Source
from fagen.patterns import parse_pattern
from fagen.workload import Workload
from tests.unit import toykernel
from tests.unit.imported import imported

NAME = "toy_attention"
PATTERNS = ("dense", "causal", "causal-topleft", "window2x1", "window3")
BANDS = tuple(
    f"{op}-fp32-{dims}-{pattern}{feature}"
    for dims in ("d8", "d16x8") for pattern in PATTERNS
    for op, feature in (("fwd", ""), ("bwd", ""), ("bwd", "+deterministic"))
    if not (dims == "d16x8" and (pattern == "window3" or feature))
)
MIX = "mix_2_causal_longformer-w1-g2"
SLUGS = (*BANDS, "fwd-fp32-d8-longformer-w1-g2", "bwd-fp32-d8-longformer-w1-g2",
         f"fwd-fp32-d8-{MIX}", f"bwd-fp32-d8-{MIX}")


def _shipped(slug: str, target: str = "") -> Shipped:
    isa = {"name": target, "isa": ("amx_fantasy",)} if target else {}
    return _ship(toykernel.part(slug, paths.cache(), **isa))


def _shipped_source(part: Part, text: str) -> Shipped:
    """The same kernel from another text."""
    source = Source(text, hashlib.sha256(text.encode()).hexdigest(), "cpp")
    binary = Builder(Cache(paths.cache())).build(part.candidate, source)
    return _ship(replace(part, source=source, binary=binary))


def _ship(part: Part) -> Shipped:
    measured = Measurement(10.0, 9.0, 11.0, 5, 0.25, "lse", tflops=1.5)
    problem = part.candidate.problem
    # Of the toys, torch beats one pair.
    beaten = str(problem) not in ("fwd-fp32-d16x8-causal-topleft", "bwd-fp32-d16x8-causal-topleft")
    provenance = {"search": {"peers": {"torch": {"us": 9.0, "beaten": beaten}}}}
    return Shipped(part, Entry(problem, part.candidate.target, Workload(1, 2, 2, 64, 64), "toy",
                               {"answer": 0}, measured, provenance=provenance))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield emit([_shipped(slug) for slug in SLUGS], tmp_path_factory.mktemp("made") / NAME)


@pytest.fixture(scope="module")
def package(folder: Path) -> Iterator[Any]:
    with imported(folder) as module:
        yield module


def tensors(b: int = 2, h: int = 4, hk: int = 2, sq: int = 7, sk: int = 7, d: int = 8,
            dv: int | None = None, grad: bool = False) -> list[Tensor]:
    made = torch.Generator().manual_seed(0)
    shapes = ((b, h, sq, d), (b, hk, sk, d), (b, hk, sk, dv or d))
    return [torch.randn(s, generator=made).requires_grad_(grad) for s in shapes]


def keep(sq: int, sk: int, left: float, right: float, top_left: bool) -> Tensor:
    diagonal = torch.arange(sq)[:, None] + (0 if top_left else sk - sq)
    key = torch.arange(sk)
    return (key >= diagonal - left) & (key <= diagonal + right)


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """In fp64, by torch's autograd; no row is without a key."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), *(x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = (q @ k.mT * scale).masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


CASES = [
    ({}, (math.inf, math.inf, False)),
    ({"causal": True}, (math.inf, 0, False)),
    ({"causal": "top-left"}, (math.inf, 0, True)),
    ({"window": (2, 1)}, (2, 1, False)),
    ({"window": 3}, (3, 0, False)),
    ({"window": (3, 5), "causal": True}, (3, 0, False)),
]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


# --- results -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(7, 7), (5, 9), (1, 9)])
@pytest.mark.parametrize(("options", "band"), CASES)
def test_output_lse_and_gradients(
    package: Any, options: dict[str, Any], band: tuple[float, float, bool], lengths: tuple[int, int]
) -> None:
    sq, sk = lengths
    given = tensors(sq=sq, sk=sk, grad=True)
    mask = keep(sq, sk, *band)
    out, lse = package.attention(*given, **options, scale=0.3, return_lse=True)
    expected, expected_lse = formula(*given, mask, 0.3)
    close(out, expected)
    close(lse, expected_lse)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    found = torch.autograd.grad([out, lse], given, [dout, dlse])
    for x, y in zip(found, torch.autograd.grad(
            [expected, expected_lse], given, [dout.double(), dlse.double()]), strict=True):
        close(x, y.double())


def test_one_output_alone_has_a_gradient(package: Any) -> None:
    given = tensors(grad=True)
    mask = keep(7, 7, math.inf, 0, False)
    for which in (0, 1):
        found = package.attention(*given, causal=True, return_lse=True)[which]
        expected = formula(*given, mask, 8**-0.5)[which]
        grads = torch.autograd.grad(found.sum(), given, allow_unused=True)
        wanted = torch.autograd.grad(expected.sum(), given, allow_unused=True)
        for x, y in zip(grads, wanted, strict=True):
            if y is None:
                assert x is None or not x.any()
            else:
                close(x, y.double())


def test_rows_that_see_nothing(package: Any) -> None:
    q, k, v = tensors(sq=6, sk=2, grad=True)
    out, lse = package.attention(q, k, v, causal=True, return_lse=True)
    assert not out[:, :, :4].any()
    assert (lse[:, :, :4] == -math.inf).all()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert grad.isfinite().all()


def test_head_dimensions_may_differ(package: Any) -> None:
    given = tensors(d=16, dv=8, grad=True)
    out = package.attention(*given, window=(2, 1))
    assert out.shape == (2, 4, 7, 8)
    close(out, formula(*given, keep(7, 7, 2, 1, False), 16**-0.5)[0])
    assert [g.shape[-1] for g in torch.autograd.grad(out.sum(), given)] == [16, 16, 8]


def test_layouts_and_strides(package: Any) -> None:
    q, k, v = tensors()
    expected = package.attention(q, k, v, causal=True)
    assert expected.is_contiguous()
    # The other layout, in and out.
    out = package.attention(*(x.transpose(1, 2).contiguous() for x in (q, k, v)), causal=True,
                            layout="bshd")
    assert out.is_contiguous()
    torch.testing.assert_close(out.transpose(1, 2), expected, atol=0, rtol=0)
    # [batch, seqlen, heads, dim] memory under the first layout keeps that order.
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    out = package.attention(*views, causal=True)
    assert out.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(out, expected, atol=0, rtol=0)
    # Slices of something larger, and the last dimension not dense.
    padded = F.pad(q, (3, 5, 1, 1))[:, :, 1:-1, 3:-5]
    crooked = k.mT.contiguous().mT
    assert padded.stride(3) == 1
    assert crooked.stride(3) != 1
    out = package.attention(padded, crooked, v, causal=True)
    torch.testing.assert_close(out, expected, atol=0, rtol=0)


def test_a_call_is_worked_out_once(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second call of a kind on only addresses change; the slower way stands ready."""
    plan, launch = sys.modules[f"{NAME}.plan"], sys.modules[f"{NAME}.launch"]
    slower: list[str] = []
    for name in ("forward", "backward"):
        before = getattr(launch, name)
        monkeypatch.setattr(launch, name, lambda *x, n=name, f=before: (slower.append(n), f(*x))[1])
    for layout in ("bhsd", "bshd"):
        given = [x.detach().transpose(1, 2).contiguous().requires_grad_() if layout == "bshd" else x
                 for x in tensors(grad=True)]

        def run(dout: Tensor, given: list[Tensor] = given, layout: str = layout) -> list[Tensor]:
            out = package.attention(*given, causal=True, layout=layout)
            return [out, *torch.autograd.grad(out, given, dout)]

        dout = torch.linspace(-1, 1, given[0].numel()).view_as(given[0])
        expected = run(dout)
        torch.testing.assert_close(run(dout), expected, atol=0, rtol=0)
        assert slower == []
        for grad, x in zip(expected[1:], given, strict=True):
            assert grad.stride() == x.stride()
        # Saved tensors that come back as others, and a gradient that lies otherwise in memory.
        hooks = torch.autograd.graph.saved_tensors_hooks
        with hooks(lambda x: x.mT.contiguous().mT if x.dim() == 4 else x, lambda x: x):
            torch.testing.assert_close(run(dout), expected, atol=0, rtol=0)
        torch.testing.assert_close(run(dout.mT.contiguous().mT), expected, atol=0, rtol=0)
        assert slower == ["backward", "backward"]
        # What CUDA kernels cannot read: a start that is not aligned.
        made = plan.Plan(*given, plan.Options(-1, 0, False, "", 8**-0.5, True, False), layout, True)
        made.aligned = True
        odd = [torch.empty(x.numel() + 1)[1:].view_as(x).copy_(x.detach()) for x in given]
        torch.testing.assert_close(made.attend(*odd)[0], expected[0], atol=0, rtol=0)
        assert slower == ["backward", "backward", "forward"]
        slower.clear()


def test_expanded_tensors(package: Any) -> None:
    q, k, v = tensors(b=1, hk=1)
    k4, v4 = k.expand(1, 4, 7, 8), v.expand(1, 4, 7, 8)
    expected = package.attention(q, k, v)
    torch.testing.assert_close(package.attention(q, k4, v4), expected)
    leaf = q.clone().requires_grad_()
    package.attention(leaf, k4, v4).sum().backward()  # its gradient is expanded from one number
    (grad,) = torch.autograd.grad(formula(leaf, k, v, keep(7, 7, 9, 9, False), 8**-0.5)[0].sum(),
                                  leaf)
    close(leaf.grad, grad.double())


@pytest.mark.parametrize(("shape", "where", "copied"), [
    ((2, 4, 7, 64), (256, 1792, 448, 64), False),
    ((2, 4, 7, 64), (256, 1792, 64, 256), False),
    ((1, 1, 7, 64), (256, 3, 5, 64), False),  # a stride that is never used
    ((1, 4, 7, 64), (256, 0, 448, 64), False),
    ((2, 4, 7, 64), (256, 0, 448, 64), True),  # expanded
    ((2, 4, 7, 64), (264, 1792, 448, 64), True),
    ((2, 4, 7, 64), (256, 1792, 448, 68), True),
    ((2, 4, 7, 64), (256, 1796, 448, 64), True),
])
def test_what_cuda_kernels_cannot_read_is_copied(
    package: Any, shape: tuple[int, ...], where: tuple[int, ...], copied: bool
) -> None:
    launch = sys.modules[f"{NAME}.launch"]
    assert launch.crooked(torch.Size(shape), where, 2) is copied


@pytest.mark.parametrize("sizes", [{"b": 0}, {"sq": 0}, {"sk": 0}, {"h": 0, "hk": 0}])
def test_nothing_in_nothing_out(package: Any, sizes: dict[str, int]) -> None:
    given = tensors(**sizes, grad=True)
    out, lse = package.attention(*given, causal=True, return_lse=True)
    assert out.shape == given[0].shape
    assert lse.shape == given[0].shape[:3]
    assert not out.any()
    assert (lse == -math.inf).all()
    for grad, x in zip(torch.autograd.grad(out.sum(), given), given, strict=True):
        assert grad.shape == x.shape
        assert not grad.any()


def test_a_pattern_that_comes_to_the_same_is_served(package: Any) -> None:
    """window3 with 3 keys is causal; a last query alone sees everything; and so on."""
    for slug_free, same in (({"window": (99, 0)}, {"causal": True}),
                            ({"window": (99, 99)}, {}),
                            ({"window": (2, 1), "causal": False}, {"window": (2, 1)})):
        q, k, v = tensors()
        torch.testing.assert_close(
            package.attention(q, k, v, **slug_free), package.attention(q, k, v, **same))
    q, k, v = tensors(sq=1, d=16, dv=8)
    torch.testing.assert_close(package.attention(q, k, v, window=(99, 7)),
                               package.attention(q, k, v))


def test_a_named_pattern(package: Any) -> None:
    given = tensors(grad=True)
    q = torch.arange(7)
    near = (q[:, None] - q).abs() <= 1
    mask = near | (q < 2) | (q[:, None] < 2)
    out, lse = package.attention(*given, pattern="longformer-w1-g2", return_lse=True)
    expected = formula(*given, mask, 8**-0.5)
    close(out, expected[0])
    close(lse, expected[1])
    for x, y in zip(torch.autograd.grad(out.sum(), given),
                    torch.autograd.grad(expected[0].sum(), given), strict=True):
        close(x, y.double())
    for name, options in (
        ("dense", {}), ("causal", {"causal": True}), ("window2x1", {"window": (2, 1)}),
        ("causal-topleft", {"causal": "top-left"}),
    ):
        torch.testing.assert_close(package.attention(*given, pattern=name),
                                   package.attention(*given, **options), atol=0, rtol=0)
    with pytest.raises(package.NoKernel, match="fagen tune fwd-fp32-d8-butterfly-b64"):
        package.attention(*given, pattern="butterfly-b64")
    with pytest.raises(package.NoKernel, match="torch cannot compute the pattern butterfly-b64"):
        package.attention(*given, pattern="butterfly-b64", fallback="sdpa")


def test_heads_that_follow_different_patterns(package: Any) -> None:
    given = tensors(grad=True)
    heads, rows, keys = given[0].shape[1], given[0].shape[2], given[1].shape[2]
    members = [parse_pattern(slug).mask(rows, keys) for slug in ("causal", "longformer-w1-g2")]
    mask = torch.stack([torch.from_numpy(members[h % 3 == 2]) for h in range(heads)])
    out = package.attention(*given, pattern=MIX)
    expected = formula(*given, mask, 8**-0.5)[0]
    close(out, expected)
    for x, y in zip(torch.autograd.grad(out.sum(), given),
                    torch.autograd.grad(expected.sum(), given), strict=True):
        close(x, y.double())


def test_merge(package: Any) -> None:
    q, k, v = tensors(sk=9, grad=True)
    whole, lse = package.attention(q, k, v, return_lse=True)
    for layout in ("bhsd", "bshd"):
        def turned(x: Tensor, layout: str = layout) -> Tensor:
            return x if layout == "bhsd" else x.transpose(1, 2)

        parts = [package.attention(turned(q), turned(k[:, :, keys]), turned(v[:, :, keys]),
                                   layout=layout, return_lse=True)
                 for keys in (slice(0, 4), slice(4, 9))]
        out, merged = package.merge(*parts[0], *parts[1], layout=layout)
        torch.testing.assert_close(turned(out), whole)
        torch.testing.assert_close(merged, lse)
        found = torch.autograd.grad((out.sum() + merged.sin().sum()), (q, k, v), retain_graph=True)
        wanted = torch.autograd.grad(whole.sum() + lse.sin().sum(), (q, k, v), retain_graph=True)
        for x, y in zip(found, wanted, strict=True):
            torch.testing.assert_close(x, y)
    nothing = torch.full_like(lse, -math.inf)
    out, merged = package.merge(whole * 0, nothing, whole * 0, nothing)
    assert not out.any()
    assert (merged == -math.inf).all()
    with pytest.raises(package.BadArgument, match="calls for"):
        package.merge(whole, lse.mT, whole, lse.mT)


# --- torch's machinery -------------------------------------------------------------------------


@pytest.mark.parametrize("fallback", [None, "sdpa"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(package: Any, dynamic: bool, fallback: str | None) -> None:
    def step(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = package.attention(q * 2, k, v, causal=True, return_lse=True, fallback=fallback)
        return out.sin(), lse

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (7, 9, 12):
        given = tensors(sq=length, sk=length, grad=True)
        found, expected = compiled(*given), step(*given)
        torch.testing.assert_close(found, expected)
        for x, y in zip(torch.autograd.grad([found[0].sum(), found[1].sum()], given),
                        torch.autograd.grad([expected[0].sum(), expected[1].sum()], given),
                        strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.slow
def test_compiles_with_inductor(package: Any) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: package.scaled_dot_product_attention(
        q.cos(), k, v, is_causal=True, enable_gqa=True) + 1, fullgraph=True)
    given = tensors(grad=True)
    expected = F.scaled_dot_product_attention(
        given[0].cos(), given[1], given[2], is_causal=True, enable_gqa=True) + 1
    found = compiled(*given)
    torch.testing.assert_close(found, expected)
    for x, y in zip(torch.autograd.grad(found.sum(), given),
                    torch.autograd.grad(expected.sum(), given), strict=True):
        torch.testing.assert_close(x, y)


def test_compiled_fallback(package: Any) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, v: package.attention(q, k, v, causal=True, fallback="sdpa"),
        fullgraph=True, backend="aot_eager")
    given = [x.double() for x in tensors()]
    before = package.fell_back()
    found = compiled(*given)
    (why,) = (w for w, n in package.fell_back().items() if n != before.get(w, 0))
    assert why == "no kernel of this package serves the fwd (compiled)"
    torch.testing.assert_close(found, package.attention(*given, causal=True, fallback="sdpa"))


@pytest.mark.parametrize("rows_first", [False, True])
@pytest.mark.parametrize("length", [7, 0])
def test_opcheck(package: Any, rows_first: bool, length: int) -> None:
    ops = getattr(torch.ops, NAME)
    q, k, v = tensors(sq=length)
    options = (-1, 0, False, "", 0.5, rows_first, False)
    out, lse = ops.fwd(q, k, v, *options)
    torch.library.opcheck(ops.fwd.default, (q, k, v, *options))
    torch.library.opcheck(ops.fwd.default, (*tensors(sq=length, grad=True), *options))
    torch.library.opcheck(
        ops.bwd.default, (torch.ones_like(out), torch.ones_like(lse), q, k, v, out, lse, *options))
    torch.library.opcheck(
        ops.bwd.default, (torch.ones_like(out), None, q, k, v, out, lse, *options))


def test_the_operator_and_the_short_way_agree(package: Any) -> None:
    """With a mode on, calls go through the dispatcher."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    given = tensors(grad=True)
    direct = package.attention(*given, causal=True)
    expected = torch.autograd.grad(direct.sum(), given)
    with Watch():
        watched = package.attention(*given, causal=True)
        found = torch.autograd.grad(watched.sum(), given)
    assert f"{NAME}.fwd.default" in seen
    assert f"{NAME}.bwd.default" in seen
    torch.testing.assert_close([watched, *found], [direct, *expected], atol=0, rtol=0)


def test_fake_tensors(package: Any) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q, k, v = (torch.empty(2, 4, 5, 16), torch.empty(2, 2, 9, 16), torch.empty(2, 2, 9, 8))
        out, lse = package.attention(q, k, v, return_lse=True)
    assert (out.shape, lse.shape, lse.dtype) == ((2, 4, 5, 8), (2, 4, 5), torch.float32)


def test_export(package: Any) -> None:
    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = package.attention(q, k, v, causal=True)
            return out

    given = tensors()
    exported = torch.export.export(Model(), tuple(given))
    torch.testing.assert_close(exported.module()(*given), package.attention(*given, causal=True))


DEPLOYED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
package = __import__(sys.argv[2])  # its operators are what the model calls
model = torch._inductor.aoti_load_package(sys.argv[3])
for length in (7, 12):
    q, k, v = (torch.randn(2, heads, length, 8) for heads in (4, 2, 2))
    out, lse = package.attention(q, k, v, causal=True, return_lse=True)
    torch.testing.assert_close(model(q, k, v), (out, lse))
print(package.served())
"""


@pytest.mark.slow
def test_compiled_ahead_of_time(package: Any, folder: Path, tmp_path: Path) -> None:
    """AOTInductor: a model as a file that another process loads, at any length."""
    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
            return package.attention(q, k, v, causal=True, return_lse=True)

    length = torch.export.Dim("length", min=2, max=64)
    exported = torch.export.export(
        Model(), tuple(tensors()), dynamic_shapes=({2: length}, {2: length}, {2: length}))
    # The wrapper is large C++ text: without these its compilation takes minutes.
    quick = {"aot_inductor.compile_wrapper_opt_level": "O0", "cpp.vec_isa_ok": True,
             "aot_inductor.precompile_headers": False}
    model = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(tmp_path / "model.pt2"), inductor_configs=quick)
    done = subprocess.run(
        [sys.executable, "-c", DEPLOYED, str(folder.parent), NAME, str(model)],
        capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "{'fwd-fp32-d8-causal': 4}" in done.stdout


def test_checkpointing_and_autocast(package: Any) -> None:
    from torch.utils.checkpoint import checkpoint

    given = tensors(grad=True)
    plain = package.attention(*given, causal=True)
    again = checkpoint(lambda *x: package.attention(*x, causal=True), *given, use_reentrant=False)
    torch.testing.assert_close(
        torch.autograd.grad(again.sum(), given), torch.autograd.grad(plain.sum(), given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = package.attention(*given, fallback="sdpa")
        assert out.dtype is torch.bfloat16
        assert package.scaled_dot_product_attention(*given, enable_gqa=True).dtype is torch.bfloat16


def test_function_transforms(package: Any) -> None:
    from torch.func import grad, vmap

    q, k, v = torch.randn(3, 2, 4, 7, 8), torch.randn(3, 2, 2, 7, 8), torch.randn(2, 2, 7, 8)

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = package.attention(q, k, v, causal=True, return_lse=True)
        return out.sin().sum() + lse.sum()

    values = vmap(loss, in_dims=(2, 0, None))(q.movedim(0, 2), k, v)
    grads = vmap(grad(loss, argnums=(0, 1, 2)), in_dims=(0, 0, None))(q, k, v)
    shared = v.clone().requires_grad_()
    vmap(loss, in_dims=(0, 0, None))(q, k, shared).sum().backward()
    torch.testing.assert_close(shared.grad, grads[2].sum(0))
    for i in range(3):
        own = [x.clone().requires_grad_() for x in (q[i], k[i], v)]
        value = loss(*own)
        torch.testing.assert_close(values[i], value)
        for x, y in zip(grads, torch.autograd.grad(value, own), strict=True):
            torch.testing.assert_close(x[i], y)


def test_gradients_of_gradients_are_refused(package: Any) -> None:
    given = tensors(grad=True)
    (grad,) = torch.autograd.grad(package.attention(*given).sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|does not require grad"):
        grad.sum().backward()


def test_gradcheck_of_the_fallback(package: Any) -> None:
    given = [x.detach().double().requires_grad_() for x in tensors(b=1, h=2, hk=1, sq=4, sk=3)]
    for options in ({}, {"causal": True}, {"window": (1, 1)}):
        torch.autograd.gradcheck(
            lambda *x, o=options: package.attention(*x, **o, fallback="sdpa", return_lse=True)[0],
            given)


def test_deterministic_is_honoured(package: Any) -> None:
    selection = sys.modules[f"{NAME}.selection"]
    call = selection.Call("bwd", torch.float32, torch.device("cpu"), 8, 8, selection.Pattern(),
                          (1, 1, 1, 7, 7), False)
    names = [package.kernels()[selection.choose(call._replace(deterministic=d)).kernel]["problem"]
             for d in (False, True)]
    assert names == ["bwd-fp32-d8-dense", "bwd-fp32-d8-dense+deterministic"]
    given = tensors(d=16, dv=8, grad=True)  # no deterministic backward inside
    package.attention(*given)
    with pytest.raises(package.NoKernel, match=r"bwd-fp32-d16x8-dense\+deterministic"):
        package.attention(*given, deterministic=True)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(package.NoKernel):
            package.attention(*given)
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads_and_forks(package: Any) -> None:
    given = tensors(grad=True)
    expected = package.attention(*given, causal=True)
    wrong = []

    def work() -> None:
        for _ in range(30):
            own = [x.detach().clone().requires_grad_() for x in given]
            out = package.attention(*own, causal=True)
            out.sum().backward()
            if not torch.equal(out, expected):
                wrong.append(out)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    child = os.fork()
    if not child:
        os._exit(not torch.equal(package.attention(*given, causal=True), expected))
    assert os.waitpid(child, 0)[1] == 0


SHARED_TEAM = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
package = __import__(sys.argv[2])
torch.set_num_threads(3)
q = torch.randn(2, 4, 300, 8)
(torch.randn(400, 400) @ torch.randn(400, 400)).exp().sum()  # torch's team exists now
torch.randn(1 << 20).exp_()
before = len(os.listdir("/proc/self/task"))
package.attention(q, q, q, causal=True)
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_torchs_own_threads_do_the_work(folder: Path) -> None:
    """A second team would fight torch's spinning threads for the cores."""
    ran = subprocess.run(
        [sys.executable, "-c", SHARED_TEAM, str(folder.parent), folder.name],
        capture_output=True, text=True, timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) <= 0  # OpenMP lets threads go that a smaller team has no use for


def test_spawned_processes(package: Any, folder: Path) -> None:
    """A child of torch.multiprocessing imports the package anew and gives the same bytes."""
    given = tensors()
    expected = package.attention(*given, causal=True)
    (folder.parent / "spawned_work.py").write_text(
        f"import {NAME}\n"
        "def work(rank, given, out):\n"
        f"    out[rank] = {NAME}.attention(*given, causal=True)\n")
    done = in_a_child(folder, (
        "import torch\nfrom spawned_work import work\n"
        "if __name__ == '__main__':\n"
        "    made = torch.Generator().manual_seed(0)\n"
        "    given = [torch.randn(2, h, 7, 8, generator=made) for h in (4, 2, 2)]\n"
        "    out = torch.zeros(2, 2, 4, 7, 8).share_memory_()\n"
        "    torch.multiprocessing.spawn(work, (given, out), nprocs=2)\n"
        f"    torch.save(out.clone(), {str(folder.parent / 'spawned.pt')!r})\n"))
    assert done.returncode == 0, done.stderr
    for out in torch.load(folder.parent / "spawned.pt"):
        assert torch.equal(out, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_runs_the_forward_again(package: Any, reentrant: bool) -> None:
    """Also for the log-sum-exp, and nested in a function with work of its own."""
    from torch.utils.checkpoint import checkpoint

    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        runs.append(1)
        out, lse = package.attention(q.sin(), k, v, window=(2, 1), return_lse=True)
        return (out * lse[..., None]).cos()

    runs: list[int] = []
    given = tensors(grad=True)
    expected = torch.autograd.grad(block(*given).sum(), given)
    runs.clear()
    again = checkpoint(block, *given, use_reentrant=reentrant)
    again.sum().backward()
    assert len(runs) == 2
    torch.testing.assert_close([x.grad for x in given], list(expected), atol=0, rtol=0)


def test_autocast_lowers_what_it_is_given(package: Any) -> None:
    """The kernel that is asked for is one of the lower type, as for torch's own attention."""
    given = tensors(grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(package.NoKernel, match="serves fwd-bf16-d8-causal"):
            package.attention(*given, causal=True)
        with torch.autocast("cpu", enabled=False):
            assert package.attention(*given, causal=True).dtype is torch.float32
        mixed = given[0], given[1].bfloat16(), given[2]
        out = package.attention(*mixed, causal=True, fallback="sdpa")
        assert out.dtype is torch.bfloat16
    grads = torch.autograd.grad(out.float().sum(), given)
    expected = torch.autograd.grad(package.attention(*given, causal=True).sum(), given)
    assert all(grad.dtype is torch.float32 for grad in grads)
    torch.testing.assert_close(grads, expected, atol=5e-2, rtol=5e-2)


# --- torch's own function ------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "options"), [
    ({"hk": 4}, {}),
    ({"hk": 4}, {"is_causal": True}),
    ({"hk": 4, "sq": 4, "sk": 9}, {"is_causal": True}),
    ({"hk": 4, "sq": 9, "sk": 4}, {"is_causal": True, "scale": 0.2}),
    ({}, {"enable_gqa": True}),
])
def test_drop_in_is_served(package: Any, sizes: dict[str, int], options: dict[str, Any]) -> None:
    given = tensors(**sizes, grad=True)
    before = package.fell_back()
    found = package.scaled_dot_product_attention(*given, **options)
    assert package.fell_back() == before
    expected = F.scaled_dot_product_attention(*given, **options)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), given),
                               torch.autograd.grad(expected.sum(), given))


@pytest.mark.parametrize(("change", "options", "reason"), [
    (lambda x: x, {"attn_mask": torch.ones(7, 7, dtype=torch.bool)}, "attn_mask is given"),
    (lambda x: x.double(), {}, "no kernel of this package serves"),
    (lambda x: x[0], {}, "the tensors are not four-dimensional"),
    (lambda x: x, {"scale": -1.0}, "scale is not a positive number"),
])
def test_drop_in_leaves_the_rest_to_torch(
    package: Any, change: Any, options: dict[str, Any], reason: str
) -> None:
    given = [change(x) for x in tensors(hk=4)]
    before = sum(n for why, n in package.fell_back().items() if reason in why)
    torch.testing.assert_close(package.scaled_dot_product_attention(*given, **options),
                               F.scaled_dot_product_attention(*given, **options))
    assert sum(n for why, n in package.fell_back().items() if reason in why) == before + 1


def test_drop_in_with_dropout_is_torchs(package: Any) -> None:
    given = tensors(hk=4)
    torch.manual_seed(1)
    found = package.scaled_dot_product_attention(*given, dropout_p=0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*given, dropout_p=0.5))
    with pytest.raises(RuntimeError):  # in torch's words
        package.scaled_dot_product_attention(*tensors(h=3))


def test_replacing_torchs_function(package: Any) -> None:
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(16, 2, batch_first=True, bias=False)
    x = torch.randn(2, 7, 16)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(7)

    def run() -> list[Tensor]:
        return [layer(x, x, x, need_weights=False)[0],
                layer(x, x, x, need_weights=False, is_causal=True, attn_mask=causal)[0],
                layer(x, x, x, need_weights=False, key_padding_mask=torch.zeros(2, 7).bool())[0]]

    theirs = F.scaled_dot_product_attention
    expected = run()
    before = sum(package.fell_back().values()), package.fell_back().get("attn_mask is given", 0)
    with package.replacing_sdpa():
        assert F.scaled_dot_product_attention is package.scaled_dot_product_attention
        found = run()
        with pytest.raises(ZeroDivisionError), package.replacing_sdpa():
            raise ZeroDivisionError
    assert F.scaled_dot_product_attention is theirs
    torch.testing.assert_close(found, expected)
    after = sum(package.fell_back().values()), package.fell_back()["attn_mask is given"]
    assert after == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(("options", "ours"), [
    ({}, {}),
    ({"causal": True}, {"causal": True}),
    ({"window_size": (2, 1), "softmax_scale": 0.2}, {"window": (2, 1), "scale": 0.2}),
    ({"window_size": (3, -1), "causal": True}, {"window": (3, 0)}),
    ({"window_size": (-1, 0)}, {"causal": True}),
    ({"window_size": (9, -1)}, {}),
])
def test_flash_attn_func(package: Any, options: dict[str, Any], ours: dict[str, Any]) -> None:
    given = [x.transpose(1, 2) for x in tensors()]
    out, lse, nothing = package.flash_attn_func(*given, **options, return_attn_probs=True)
    expected = package.attention(*given, layout="bshd", return_lse=True, **ours)
    torch.testing.assert_close((out, lse), expected, atol=0, rtol=0)
    assert nothing is None
    torch.testing.assert_close(package.flash_attn_func(*given, **options), out)


def test_flash_attn_func_refuses(package: Any) -> None:
    given = [x.transpose(1, 2) for x in tensors()]
    for options, says in (({"dropout_p": 0.1}, "dropout_p is 0.1"), ({"softcap": 5.0}, "softcap"),
                          ({"alibi_slopes": given[0]}, "alibi_slopes is given")):
        with pytest.raises(package.NoKernel, match=says):
            package.flash_attn_func(*given, **options)
    with pytest.raises(ValueError, match="-1 means unbounded"):
        package.flash_attn_func(*given, window_size=(-2, 0))
    with pytest.raises(TypeError, match="window_size is 3"):
        package.flash_attn_func(*given, window_size=3)
    with pytest.raises(ValueError, match="four dimensions"):
        package.flash_attn_func(given[0], given[1][0], given[2], window_size=(1, 1))


# --- bad input -------------------------------------------------------------------------------


def _with(index: int, change: Any) -> Any:
    def apply(given: list[Tensor]) -> None:
        given[index] = change(given[index])

    return apply


@pytest.mark.parametrize(("change", "options", "kind", "says"), [
    (_with(0, lambda x: x.tolist()), {}, TypeError, "q is list, a torch.Tensor is expected"),
    (_with(1, lambda x: x[0]), {}, ValueError, r"k has shape \[2, 7, 8\], four dimensions"),
    (_with(2, lambda x: x.half()), {}, TypeError, "q, k and v differ in type"),
    (_with(0, lambda x: x.long()), {}, TypeError, "differ in type"),
    (_with(1, lambda x: x.to("meta")), {}, ValueError, "differ in device: cpu, meta, cpu"),
    (_with(0, lambda x: x[:1]), {}, ValueError, "differ in batch: 1, 2, 2"),
    (_with(0, lambda x: x[:, :3]), {}, ValueError, "q has 3 heads, which is not a multiple of"),
    (_with(2, lambda x: x[:, :1]), {}, ValueError, "k and v differ: 2 and 1 heads"),
    (_with(2, lambda x: x[:, :, :3]), {}, ValueError, "7 and 3 rows"),
    (_with(1, lambda x: x[..., :4]), {}, ValueError, "q has head dimension 8, k has 4"),
    (_with(2, lambda x: x[..., :0]), {}, ValueError, "0 makes no sense"),
    (None, {"causal": "bottom"}, ValueError, "causal is 'bottom'"),
    (None, {"pattern": "../dense"}, ValueError, "pattern is '../dense'"),
    (None, {"pattern": 3}, TypeError, "pattern is 3"),
    (None, {"pattern": "dense", "causal": True}, ValueError, "it says it all"),
    (None, {"window": -1}, ValueError, "neither side may be negative"),
    (None, {"window": (1, -1)}, ValueError, "neither side may be negative"),
    (None, {"window": 2.5}, TypeError, "window is 2.5"),
    (None, {"window": [1, 2, 3]}, TypeError, r"window is \[1, 2, 3\]"),
    (None, {"scale": "1"}, TypeError, "scale is '1'"),
    (None, {"scale": 0.0}, ValueError, "scale is 0.0"),
    (None, {"scale": 1e300}, ValueError, r"scale is 1e\+300"),
    (None, {"scale": math.nan}, ValueError, "scale is nan"),
    (None, {"layout": "sbhd"}, ValueError, "layout 'sbhd' is unknown"),
    (None, {"fallback": "numpy"}, ValueError, "fallback 'numpy' is unknown"),
    (None, {"deterministic": 1}, TypeError, "deterministic is 1"),
    (None, {"return_lse": "yes"}, TypeError, "return_lse is 'yes'"),
])
def test_wrong_arguments(
    package: Any, change: Any, options: dict[str, Any], kind: type[Exception], says: str
) -> None:
    given = tensors()
    if change:
        change(given)
    with pytest.raises(kind, match=says) as caught:
        package.attention(*given, **options)
    assert isinstance(caught.value, package.AttentionError)


def test_sizes_beyond_32_bits(package: Any) -> None:
    row = torch.zeros(1, 1, 1, 8)
    for shape, says in (((2**31, 1, 1, 8), "batch: 2147483648"), ((1, 2**31, 1, 8), "heads: 2"),
                        ((1, 1, 2**31, 8), "rows of q: 2147483648")):
        x = row.expand(shape)
        with pytest.raises(ValueError, match=says):
            package.attention(x, x, x)


def test_tensors_without_memory(package: Any) -> None:
    out = package.attention(*(x.to("meta") for x in tensors()), causal=True)
    assert out.device.type == "meta"
    assert out.shape == (2, 4, 7, 8)
    selection = sys.modules[f"{NAME}.selection"]
    call = selection.Call("fwd", torch.float32, torch.device("mps"), 8, 8, selection.Pattern(),
                          (1, 1, 1, 7, 7), False)
    with pytest.raises(package.NoKernel, match=r"kernels are for cpu and cuda; .* are on mps"):
        selection.choose(call)


def test_integers_and_doubles(package: Any) -> None:
    with pytest.raises(TypeError, match=r"q, k and v are torch\.int64"):
        package.attention(*(x.long() for x in tensors()))
    with pytest.raises(package.NoKernel, match=r"torch\.float64"):
        package.attention(*(x.double() for x in tensors()))
    package.attention(*(x.double() for x in tensors()), fallback="sdpa")
    assert any("float64" in reason for reason in package.fell_back())


@pytest.mark.parametrize("grad", [False, True])
def test_torch_computes_what_it_computes_faster_when_asked(package: Any, grad: bool) -> None:
    reason = "torch was as fast when this was tuned"
    given = tensors(d=16, dv=8, grad=grad)
    options: dict[str, Any] = {"causal": "top-left"}
    before = package.fell_back().get(reason, 0)
    ours = package.attention(*given, **options)
    package.attention(*given, **options, fallback="sdpa")
    package.attention(*tensors(grad=grad), **options, fallback="fastest")  # ours is faster there
    package.attention(*given, **options, fallback="fastest", return_lse=True)
    assert package.fell_back().get(reason, 0) == before
    theirs = package.attention(*given, **options, fallback="fastest")
    assert package.fell_back()[reason] == before + 1
    close(ours, theirs.double())
    if grad:
        theirs.sum().backward()
        assert given[0].grad is not None


def test_no_kernel_says_why_and_what_to_do(package: Any) -> None:
    with pytest.raises(package.NoKernel) as caught:
        package.attention(*tensors(sq=5, sk=9), window=(4, 4))
    said = str(caught.value)
    assert said.startswith("no kernel of this package serves fwd-fp32-d8-window4x4 on cpu")
    for kernel in package.kernels():
        assert kernel["problem"] in said
    assert ("fagen tune fwd-fp32-d8-window4x4 --batch 2 --heads 4 --kv-heads 2 --seqlen 5 "
            "--seqlen-kv 9") in said
    out, lse = package.attention(*tensors(sq=5, sk=9), window=(4, 4), fallback="sdpa",
                                 return_lse=True)
    expected = formula(*tensors(sq=5, sk=9), keep(5, 9, 4, 4, False), 8**-0.5)
    close(out, expected[0])
    close(lse, expected[1])


# --- the files -------------------------------------------------------------------------------


def test_what_is_inside(package: Any) -> None:
    inside = package.kernels()
    assert sorted(k["problem"] for k in inside) == sorted(SLUGS)
    assert inside[0]["speed"]["tflops"] == 1.5


def in_a_child(folder: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder.parent)!r})\n{code}"],
        capture_output=True, text=True, timeout=600, env={**os.environ, **environment},
    )


def test_import_is_light(folder: Path) -> None:
    done = in_a_child(folder, (
        "import torch, time; start = time.process_time(); before = set(sys.modules)\n"
        "import toy_attention\n"
        "print(time.process_time() - start)\n"
        "new = {n.split('.')[0] for n in set(sys.modules) - before}\n"
        "assert not new & {'fagen', 'numpy', 'optuna', 'jinja2', 'triton'}, new\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert 'libtoy_attention' not in open('/proc/self/maps').read()\n"))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5  # 0.02 s on a quiet machine


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def test_the_page_about_packages(folder: Path) -> None:
    """Its Python runs, with the name changed."""
    page = Path(__file__).parents[2] / "docs" / "package.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    done = in_a_child(folder, block.replace("my_attention", NAME))
    assert done.returncode == 0, done.stderr
    assert "no kernel of this package serves fwd-fp16-d8-dense" in done.stdout


def test_run_as_a_program(folder: Path) -> None:
    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", module, *arguments], cwd=folder.parent,
                              capture_output=True, text=True, timeout=600)

    right = ("bwd-fp32-d8-causal", "fwd-fp32-d8-causal", "fwd-fp32-d8-longformer-w1-g2",
             "fwd-fp32-d8-window2x1")
    emit([_shipped(slug) for slug in right], folder.parent / "honest")
    done = run("honest", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["kernels"]
    assert [r["problem"] for r in rows] == list(right)
    assert [r["right"] for r in rows] == [True, True, None, True]
    assert all(r["us"] > 0 and r["here"] == "cpu" for r in rows)
    # A kernel that lies, one for another CPU, and a backward without its forward.
    part = toykernel.part("fwd-fp32-d8-dense", paths.cache())
    lie = _shipped_source(part, part.source.text.replace("out[d] /= ", "out[d] *= "))
    emit([lie, _shipped("bwd-fp32-d8-causal"), _shipped("fwd-fp32-d16-dense", "elsewhere")],
         folder.parent / "liar")
    done = run("liar")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("liar: 3 kernels, made by fagen")
    assert "not here: no kernel of this package serves fwd-fp32-d8-causal" in lines[1]
    assert "which this CPU does not have" in lines[2]
    assert "WRONG" in lines[3]


def test_a_changed_library_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path)
    library = copy / f"lib{NAME}.so"
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)
    call = ("import torch, toy_attention as a\nx = torch.zeros(1, 1, 4, 8)\n"
            "try: a.attention(x, x, x)\nexcept a.PackageError as error: print(error)\n")
    said = in_a_child(copy, call).stdout
    assert "is not the library this package was made with" in said
    library.unlink()
    assert "cannot be read: No such file" in in_a_child(copy, call).stdout
    (copy / "manifest.json").write_text("{")
    assert "manifest.json cannot be read" in in_a_child(copy, call).stdout


def test_inside_another_package(folder: Path, tmp_path: Path) -> None:
    """Vendored: every import inside is relative and the operators get a name of their own."""
    copy = copy_of(folder, tmp_path / "vendor")
    (tmp_path / "vendor" / "__init__.py").write_text("")
    done = in_a_child(copy.parent, (
        "import torch, vendor.toy_attention as a\nx = torch.ones(1, 1, 4, 8)\n"
        "assert torch.equal(a.attention(x, x, x), x)\n"
        "print(torch.ops.vendor_toy_attention.fwd.default)\n"))
    assert done.stdout == "vendor_toy_attention.fwd.default\n", done.stderr


def test_a_c_program(folder: Path, tmp_path: Path, package: Any) -> None:
    """gcc, the header and the library: no Python and no torch in the process."""
    binary = tmp_path / "program"
    subprocess.run(
        [find_cc(), "-std=c11", "-Wall", "-Wextra", "-Werror",
         str(Path(__file__).with_name("program.c")), "-I", str(folder / "include"), "-L",
         str(folder), f"-l{NAME}", f"-Wl,-rpath,{folder}", "-lm", "-o", str(binary)], check=True)
    done = subprocess.run([str(binary)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    q, k, v = (torch.tensor(found[name]).view(1, 2, 5, 8) for name in "qkv")
    out, lse = formula(q, k, v, keep(5, 5, math.inf, 0, False), 0.25)
    close(torch.tensor(found["o"]).view(1, 2, 5, 8), out)
    close(torch.tensor(found["lse"]).view(1, 2, 5), lse)
    assert "no kernel for fwd-fp64-d8-causal is in this library" in found["refused"]
    linked = subprocess.run(["ldd", str(binary)], capture_output=True, text=True).stdout
    assert "python" not in linked
    assert "torch" not in linked
    assert "cuda" not in linked


def test_module_is_the_one_emitted(package: ModuleType, folder: Path) -> None:
    assert Path(package.__file__ or "").parent == folder


# --- kernels of the cpu family ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_real_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    from fagen.devices import host
    from fagen.families import families_for
    from fagen.model import Problem
    from fagen.render import Renderer

    target, name = host().target, f"real_{str(dtype).split('.')[1]}"
    kernels = []
    for op in ("fwd", "bwd"):
        short = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        problem = Problem.parse(f"{op}-{short}-d64-causal")
        family = families_for(problem, target)[0]
        candidate = family.default(problem, target)
        source = Renderer(paths.templates()).render(candidate)
        part = Part(candidate, source, Builder(Cache(paths.cache())).build(candidate, source))
        kernels.append(Shipped(part, Entry(problem, target, Workload(1, 4, 2, 300, 300),
                                           family.name, {}, Measurement(1, 1, 1, 1, 0, ""))))
    emit(kernels, tmp_path / name)
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module(name)
    made = torch.Generator().manual_seed(0)
    # [batch, seqlen, heads, dim] memory, a ragged length, more keys than queries.
    given = [torch.randn(2, s, h, 64, generator=made).to(dtype).transpose(1, 2).requires_grad_()
             for s, h in ((203, 4), (301, 2), (301, 2))]
    out, lse = package.attention(*given, causal=True, return_lse=True)
    expected = formula(*given, keep(203, 301, math.inf, 0, False), 0.125)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    found = torch.autograd.grad([out, lse], given, [dout, dlse])
    wanted = torch.autograd.grad(expected, given, [dout.double(), dlse.double()])
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for x, y in zip((out, lse, *found), (*expected, *wanted), strict=True):
        scale = y.abs().max()
        torch.testing.assert_close(x.double() / scale, y.double() / scale, atol=tolerance, rtol=0)
    served = package.fell_back()
    torch.testing.assert_close(
        package.scaled_dot_product_attention(*(x[:, :, -203:] for x in given), is_causal=True,
                                             enable_gqa=True),
        F.scaled_dot_product_attention(*(x[:, :, -203:] for x in given), is_causal=True,
                                       enable_gqa=True), atol=tolerance, rtol=tolerance)
    assert package.fell_back() == served
