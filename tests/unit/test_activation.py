"""An emitted package as torch's flash implementation, on the host's operators of the same kind."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fagen import paths
from fagen.emit import Shipped, emit
from fagen.model import Entry, Measurement
from fagen.workload import Workload
from tests.unit import toykernel

NAME = "active_attention"
KERNELS = (*(f"{op}-fp32-d8-{pattern}" for op in ("fwd", "bwd")
             for pattern in ("dense", "causal-topleft")), "fwd-fp32-d16-dense")
TORCHS: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
pluggable = pytest.mark.skipif(not hasattr(torch.nn.attention, "activate_flash_attention_impl"),
                               reason="this torch has no place for flash implementations")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        parts = [toykernel.part(slug, paths.cache()) for slug in KERNELS]
        entries = [Entry(part.candidate.problem, part.candidate.target, Workload(1, 2, 2, 64, 64),
                         "toy", {}, Measurement(1, 1, 1, 1, 0, "")) for part in parts]
        folder = emit(list(map(Shipped, parts, entries)), tmp_path_factory.mktemp("made") / NAME)
        patch.syspath_prepend(folder.parent)
        yield importlib.import_module(NAME)


@pytest.fixture
def active(package: Any) -> Iterator[Any]:
    package.activate()
    yield package
    torch.nn.attention.restore_flash_attention_impl(_raise_warn=False)


def rows_last(b: int, h: int, s: int, d: int) -> Tensor:
    return torch.randn(b, h, s, d)


def heads_last(b: int, h: int, s: int, d: int) -> Tensor:
    return torch.randn(b, s, h, d).transpose(1, 2)


def cut(b: int, h: int, s: int, d: int) -> Tensor:
    return torch.randn(b, h, s + 2, d + 3)[:, :, 1:-1, :d]


def batch_inside(b: int, h: int, s: int, d: int) -> Tensor:
    return torch.randn(h, b, s, d).transpose(0, 1)


def step(given: tuple[Tensor, ...], options: dict[str, Any]) -> list[Tensor]:
    """Output and gradients through torch's function, and what its operator itself gives."""
    leaves = [x.detach().requires_grad_() for x in given]
    out = F.scaled_dot_product_attention(*leaves, **options)
    grads = torch.autograd.grad(out.sin().sum(), leaves)
    raw = TORCHS(*given, 0.0, options.get("is_causal", False), scale=options.get("scale"))
    return [out.detach(), *grads, *raw]


def counted(package: Any) -> tuple[int, int]:
    return sum(package.served().values()), sum(package.fell_back().values())


@pluggable
@pytest.mark.parametrize("make", [rows_last, heads_last, cut, batch_inside])
@pytest.mark.parametrize(("options", "heads", "keys"), [
    ({}, 4, 9), ({"is_causal": True}, 4, 5), ({"enable_gqa": True, "scale": 0.2}, 2, 7),
])
def test_torchs_function_is_served(
    package: Any, make: Any, options: dict[str, Any], heads: int, keys: int
) -> None:
    """The same numbers and strides as from torch's own kernels."""
    given = make(2, 4, 7, 8), make(2, heads, keys, 8), make(2, heads, keys, 8)
    expected, before = step(given, options), counted(package)
    assert package.activate() == NAME
    assert torch.nn.attention.current_flash_attention_impl() == NAME
    found = step(given, options)
    torch.nn.attention.restore_flash_attention_impl()
    assert counted(package) == (before[0] + 3, before[1])
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)
        assert x.stride() == y.stride()
    step(given, options)  # torch's own again
    assert counted(package) == (before[0] + 3, before[1])


@pluggable
def test_the_rest_stays_with_torch(active: Any) -> None:
    q = torch.randn(2, 4, 7, 8)
    wide, mask = torch.randn(2, 4, 7, 16), torch.ones(7, 7).tril().bool()
    for given, options, reason in (
        (q, {"attn_mask": mask}, "attn_mask is given"),
        (q.double(), {}, "no kernel of this package serves fwd of torch.float64"),
        (wide.requires_grad_(), {}, "no kernel of this package serves bwd-fp32-d16-dense"),
    ):
        before = active.fell_back()
        out = F.scaled_dot_product_attention(given, given, given, **options)
        why = [w for w, n in active.fell_back().items() if n != before.get(w, 0)]
        assert len(why) == 1
        assert why[0].startswith(reason)
        if out.requires_grad:
            out.sum().backward()
        scores = (given @ given.mT * given.shape[3]**-0.5).masked_fill(
            ~mask if options else torch.zeros(7, 7).bool(), float("-inf"))
        torch.testing.assert_close(out, scores.softmax(-1) @ given)
    with torch.no_grad():  # without a backward there is a kernel
        before = active.served()
        F.scaled_dot_product_attention(wide, wide, wide)
        assert active.served() == {**before, "fwd-fp32-d16-dense": 1}


@pluggable
def test_compiled(active: Any) -> None:
    """Torch's compiler sees its own operator, with shapes and strides as it knows them."""
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True).sin(), fullgraph=True,
        backend="aot_eager")
    x = torch.randn(2, 7, 4, 8).transpose(1, 2).requires_grad_()
    before = counted(active)
    found = compiled(x)
    found.sum().backward()
    assert counted(active) == (before[0] + 2, before[1])
    expected = active.attention(x, x, x, causal="top-left").sin()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(x.grad, torch.autograd.grad(expected.sum(), x)[0])


@pluggable
def test_names(package: Any) -> None:
    for taken in torch.nn.attention.list_flash_attention_impls():
        if taken != NAME:
            with pytest.raises(package.BadArgument, match="is a flash implementation already"):
                package.activate(taken)
    assert package.activate("another") == "another"
    assert package.activate("another") == "another"
    torch.nn.attention.restore_flash_attention_impl()
    assert torch.nn.attention.current_flash_attention_impl() is None


def test_an_older_torch(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.attention, "register_flash_attention_impl", raising=False)
    with pytest.raises(package.PackageError, match=r"torch .* has no place .* replacing_sdpa\(\)"):
        package.activate()


def test_what_was_served_is_counted(package: Any) -> None:
    before = package.served()
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    package.attention(q, q, q).sum().backward()
    package.attention(q.detach(), q, q, causal="top-left")
    getattr(torch.ops, NAME).fwd(q.detach(), q.detach(), q.detach(), -1, -1, False, "", 1.0, False,
                                 False)
    new = {name: n - before.get(name, 0) for name, n in package.served().items()}
    assert {name: n for name, n in new.items() if n} == {
        "fwd-fp32-d8-dense": 2, "bwd-fp32-d8-dense": 1, "fwd-fp32-d8-causal-topleft": 1}
    assert Path(sys.modules[NAME].__file__ or "").parent.name == NAME
