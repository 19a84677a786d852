"""Packed sequences: each as if it were alone, output and gradients, and what is refused."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fagen import paths
from fagen.emit import Shipped, emit
from fagen.model import Entry, Measurement
from fagen.workload import Workload
from tests.unit import toykernel

NAME = "packed_attention"
PATTERNS = ("dense", "causal", "window2x1")
KERNELS = tuple(f"{op}-fp32-d8-{pattern}" for op in ("fwd", "bwd") for pattern in PATTERNS)
ROWS, KEYS = (7, 1, 0, 12, 5, 3), (9, 1, 4, 12, 0, 2)


@pytest.fixture(scope="module", params=["alone", "together"])
def package(tmp_path_factory: pytest.TempPathFactory, request: Any) -> Iterator[Any]:
    """With kernels for packed sequences, and without."""
    together, name = request.param == "together", f"{NAME}_{request.param}"
    slugs = [f"{slug}+varlen" for slug in KERNELS] if together else KERNELS
    measured = Measurement(1, 1, 1, 1, 0, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        parts = [toykernel.part(slug, paths.cache()) for slug in slugs]
        shipped = [
            Shipped(part, Entry(part.candidate.problem, part.candidate.target,
                                Workload(1, 2, 2, 64, 64), "toy", {"answer": 0}, measured))
            for part in parts
        ]
        folder = emit(shipped, tmp_path_factory.mktemp("made") / name)
        patch.syspath_prepend(folder.parent)
        yield importlib.import_module(name)
        for name in [n for n in sys.modules if n.split(".")[0] == name]:
            del sys.modules[name]


def ends(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0).int()


def packed(rows: tuple[int, ...] = ROWS, keys: tuple[int, ...] = KEYS) -> dict[str, Any]:
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, heads, 8, generator=made).requires_grad_()
               for n, heads in ((sum(rows), 4), (sum(keys), 2), (sum(keys), 2)))
    return {"q": q, "k": k, "v": v, "cu_seqlens_q": ends(rows), "cu_seqlens_k": ends(keys),
            "max_seqlen_q": max(rows, default=0), "max_seqlen_k": max(keys, default=0)}


@pytest.mark.parametrize(("options", "band"), [
    ({}, (99, 99)),
    ({"causal": True, "softmax_scale": 0.3}, (99, 0)),
    ({"window_size": (2, 1), "deterministic": False}, (2, 1)),
])
def test_each_sequence_is_alone(
    package: Any, options: dict[str, Any], band: tuple[int, int]
) -> None:
    """Against one formula over all rows, with a mask that keeps the sequences apart."""
    given = packed()
    out, lse, nothing = package.flash_attn_varlen_func(**given, **options, return_attn_probs=True)
    assert nothing is None
    assert out.shape == given["q"].shape
    assert lse.shape == (4, sum(ROWS))
    keep = torch.block_diag(*(
        (torch.arange(m) >= torch.arange(n)[:, None] + m - n - band[0])
        & (torch.arange(m) <= torch.arange(n)[:, None] + m - n + band[1])
        for n, m in zip(ROWS, KEYS, strict=True)
    )).bool()
    q, k, v = (given[name].double().transpose(0, 1) for name in "qkv")
    scores = q @ k.repeat_interleave(2, 0).mT * options.get("softmax_scale", 8**-0.5)
    seen = keep.any(-1, keepdim=True)
    assert not seen.all()  # rows without a key are among them
    scores = scores.masked_fill(~keep, -torch.inf).masked_fill(~seen, 0)
    right = (scores.softmax(-1) * seen @ v.repeat_interleave(2, 0)).transpose(0, 1)
    right_lse = scores.logsumexp(-1)
    torch.testing.assert_close(out.double(), right, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(lse.double()[:, seen[:, 0]], right_lse[:, seen[:, 0]],
                               atol=2e-5, rtol=2e-5)
    assert (lse[:, ~seen[:, 0]] == -torch.inf).all()
    inputs = [given[name] for name in "qkv"]
    dout, dlse = torch.randn_like(out), torch.randn_like(lse) * seen[:, 0]
    found = torch.autograd.grad((out, lse), inputs, (dout, dlse))
    wanted = torch.autograd.grad((right, right_lse), inputs, (dout.double(), dlse.double()))
    torch.testing.assert_close(found, wanted, atol=3e-5, rtol=3e-5)


def test_output_alone_and_nothing_at_all(package: Any) -> None:
    given = packed()
    out = package.flash_attn_varlen_func(**given, causal=True)
    torch.testing.assert_close(
        out, package.flash_attn_varlen_func(**given, causal=True, return_attn_probs=True)[0])
    given = packed((), ())
    out, lse, _ = package.flash_attn_varlen_func(**given, return_attn_probs=True)
    assert (out.shape, lse.shape) == ((0, 4, 8), (4, 0))
    assert package.flash_attn_varlen_func(**given).shape == (0, 4, 8)


def test_views_of_one_projection(package: Any) -> None:
    """q, k and v as slices of one tensor are read where they are."""
    made = torch.randn(sum(ROWS), 3, 2, 8)
    given = packed(ROWS, ROWS) | {name: made[:, i] for i, name in enumerate("qkv")}
    own = packed(ROWS, ROWS) | {name: made[:, i].clone() for i, name in enumerate("qkv")}
    torch.testing.assert_close(package.flash_attn_varlen_func(**given, causal=True),
                               package.flash_attn_varlen_func(**own, causal=True), atol=0, rtol=0)


def packs(package: Any) -> bool:
    return any(kernel["problem"].endswith("+varlen") for kernel in package.kernels())


def test_one_call_for_all_sequences_or_it_is_counted(package: Any) -> None:
    served, fell_back = package.served(), package.fell_back()
    given = packed()
    out = package.flash_attn_varlen_func(**given, causal=True)
    out.sum().backward()
    new = {slug: n - served.get(slug, 0) for slug, n in package.served().items()}
    new = {slug: n for slug, n in new.items() if n}
    counted = [reason for reason, n in package.fell_back().items() if n > fell_back.get(reason, 0)]
    if packs(package):
        assert new == {"fwd-fp32-d8-causal+varlen": 1, "bwd-fp32-d8-causal+varlen": 1}
        assert not counted
        return
    some = sum(n > 0 and m > 0 for n, m in zip(ROWS, KEYS, strict=True))
    assert new == {"fwd-fp32-d8-causal": some, "bwd-fp32-d8-causal": some}
    (reason,) = counted
    assert reason.startswith("packed sequences, one after another: no kernel of this package "
                             "serves fwd-fp32-d8-causal+varlen")


def test_the_self_test_covers_them(package: Any) -> None:
    module = importlib.import_module(f"{package.__name__}.__main__")
    served = package.served()
    rows = [module._row(index, kernel) for index, kernel in enumerate(package.kernels())]
    assert all(row["right"] for row in rows), rows
    assert all(package.served()[slug] > served.get(slug, 0) for slug in
               (kernel["problem"] for kernel in package.kernels()))


def test_the_operators_are_what_torch_expects(package: Any) -> None:
    if not packs(package):
        pytest.skip("no kernel to run")
    ops, given = getattr(torch.ops, package.__name__), packed()
    args = (*(given[name].detach().requires_grad_() for name in "qkv"), given["cu_seqlens_q"],
            given["cu_seqlens_k"], 12, 12, -1, 0, False, "", 0.3, False)
    torch.library.opcheck(ops.varlen_fwd.default, args)
    out, lse = ops.varlen_fwd(*args)
    q, k, v, *rest = args
    torch.library.opcheck(
        ops.varlen_bwd.default,
        (out.detach(), lse.detach(), *(x.detach() for x in (q, k, v, out, lse)), *rest),
    )


def test_compiles_without_a_break(package: Any) -> None:
    if not packs(package):
        pytest.skip("the loop reads the lengths")
    given = packed()
    compiled = torch.compile(package.flash_attn_varlen_func, fullgraph=True, backend="aot_eager")
    inputs = [given[name] for name in "qkv"]
    answers = []
    for function in (compiled, package.flash_attn_varlen_func):
        out = function(**given, causal=True)
        answers.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    torch.testing.assert_close(*answers)


def test_long_offsets_and_other_strides(package: Any) -> None:
    given = packed()
    wanted = package.flash_attn_varlen_func(**given, causal=True)
    for name in "qkv":  # heads first in memory
        given[name] = given[name].detach().transpose(0, 1).contiguous().transpose(0, 1)
    given |= {name: given[name].long() for name in ("cu_seqlens_q", "cu_seqlens_k")}
    given["max_seqlen_q"] = 1000  # more than there are
    torch.testing.assert_close(package.flash_attn_varlen_func(**given, causal=True), wanted)


@pytest.mark.parametrize(("change", "kind", "says"), [
    ({"q": torch.zeros(1, 28, 4, 8)}, ValueError, r"q is \[1, 28, 4, 8\]"),
    ({"v": [1.0]}, ValueError, "v is list"),
    ({"v": torch.zeros(27, 2, 8)}, ValueError, "k has 28 rows, v has 27"),
    ({"cu_seqlens_q": [0, 28]}, TypeError, "cu_seqlens_q is list"),
    ({"cu_seqlens_k": torch.tensor([0.0, 28.0])}, TypeError, r"cu_seqlens_k is torch\.float32"),
    ({"cu_seqlens_q": ends(ROWS)[None]}, ValueError, r"cu_seqlens_q has shape \[1, 7\]"),
    ({"cu_seqlens_q": ends((1, 1, 1, 2, 2, 1))}, ValueError, "from 0 to 8; .* the 28 rows of q"),
    ({"cu_seqlens_k": torch.tensor([0, 9, 10, 30, 20, 20, 28])}, ValueError, "it must rise from 0"),
    ({"cu_seqlens_q": ends((14, 14)), "max_seqlen_q": 14}, ValueError, "q has 2 seq.*, k has 6"),
    ({"max_seqlen_k": 11}, ValueError, "max_seqlen_k is 11, the longest sequence has 12 rows"),
    ({"block_table": ends(ROWS)}, LookupError, "block_table is given"),
    ({"dropout_p": 0.1}, LookupError, "dropout_p is 0.1"),
])
def test_refuses(package: Any, change: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        package.flash_attn_varlen_func(**(packed() | change))
    assert isinstance(caught.value, package.AttentionError)
