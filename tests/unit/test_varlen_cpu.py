"""Packed sequences on the host: the numbers of each sequence alone, on any number of threads."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import shutil

import pytest

torch = pytest.importorskip("torch")

from fagen.devices import host  # noqa: E402
from fagen.model import Problem  # noqa: E402
from tests.cpu.harness import TORCH_DTYPE, Harness, default, make_params  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
LEAST = "x86-64-v3"
if not set(host().target.isa) >= {"avx2", "fma", "f16c"}:
    pytest.skip("no AVX2", allow_module_level=True)

# Queries and keys of each sequence: a long one among short ones, and empty ones.
RAGGED = ((3, 5), (0, 7), (700, 900), (1, 1), (40, 0), (0, 0), (130, 64), (65, 300))
HEADS, KV_HEADS = 4, 2
TOTAL, TOTAL_KV = (sum(n) for n in zip(*RAGGED, strict=True))


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(tmp_path_factory.mktemp("varlen"))


def packed(harness: Harness, slug: str, x: dict, lse, threads: int, dlse=None) -> None:
    cu = [torch.tensor([0, *itertools.accumulate(n)], dtype=torch.int32)
          for n in zip(*RAGGED, strict=True)]
    params = make_params(x, lse, 0.2, dlse)
    params.batch, params.total_q, params.total_kv = len(RAGGED), TOTAL, TOTAL_KV
    params.seqlen_q, params.seqlen_kv = 700, 900
    params.cu_q, params.cu_kv = (c.data_ptr() for c in cu)
    call = harness.compile(default(slug, LEAST))
    assert harness.team.call(call, ctypes.byref(params), threads) == 0


def outputs(slug: str, x: dict) -> dict:
    """Full of not-a-number."""
    like = {"o": "q"} if slug.startswith("fwd") else {"dq": "q", "dk": "k", "dv": "v"}
    return {name: torch.full_like(x[of], torch.nan) for name, of in like.items()}


def rows(tensors: dict, which: int) -> dict:
    """One sequence of packed tensors."""
    starts = [list(itertools.accumulate(n, initial=0)) for n in zip(*RAGGED, strict=True)]
    at = {name: starts[name in ("k", "v", "dk", "dv")] for name in tensors}
    return {name: t[:, :, at[name][which] : at[name][which + 1]] for name, t in tensors.items()}


@pytest.mark.parametrize("slug", ["fp32-d24-causal", "bf16-d32-dense", "fp16-d16-window70x9"])
def test_as_each_sequence_alone(harness: Harness, slug: str) -> None:
    torch.manual_seed(1)
    dtype = TORCH_DTYPE[Problem.parse(f"fwd-{slug}").dtype]
    shapes = {"q": (TOTAL, HEADS), "k": (TOTAL_KV, KV_HEADS), "v": (TOTAL_KV, KV_HEADS),
              "dout": (TOTAL, HEADS)}
    dim = Problem.parse(f"fwd-{slug}").head_dim
    x = {n: torch.randn(*s, dim).to(dtype)[None].transpose(1, 2) for n, s in shapes.items()}
    lse, dlse = torch.full((1, HEADS, TOTAL), torch.nan), torch.randn(1, HEADS, TOTAL)
    qkv = {n: x[n] for n in "qkv"}
    got = qkv | outputs("fwd", x)
    packed(harness, f"fwd-{slug}+varlen", got, lse, threads=3)
    assert not any(t.isnan().any() for t in (got["o"], lse))
    given = x | {"o": got["o"]}
    by_threads = {}
    for threads in (1, 2, 16):
        grads = outputs("bwd", x)
        packed(harness, f"bwd-{slug}+varlen", given | grads, lse, threads, dlse)
        by_threads[threads] = grads
    for which, (n, keys) in enumerate(RAGGED):
        one, statistics = rows(given, which), rows({"lse": lse, "dlse": dlse}, which)
        if not (n and keys):
            assert (one["o"] == 0).all()
            assert statistics["lse"].isneginf().all()
            assert all((g == 0).all() for g in rows(by_threads[16], which).values())
            continue
        alone, its_lse = torch.full_like(one["o"], torch.nan), torch.full((1, HEADS, n), torch.nan)
        call = {name: one[name] for name in "qkv"} | {"o": alone}
        harness.call(default(f"fwd-{slug}", LEAST), call, its_lse, 0.2)
        assert torch.equal(alone, one["o"])
        assert torch.equal(its_lse, statistics["lse"])
        grads = outputs("bwd", one)
        harness.call(default(f"bwd-{slug}", LEAST), one | grads, its_lse, 0.2,
                     statistics["dlse"].contiguous(), threads=1)
        for threads, found in by_threads.items():
            for name, grad in rows(found, which).items():
                # One thread goes the same way; more of them cut the long sequence into runs.
                off = (grad.double() - grads[name].double()).norm() / grads[name].double().norm()
                assert off <= (0 if threads == 1 else 4 * torch.finfo(dtype).eps), (name, threads)


@pytest.mark.parametrize("feature", ["", "+varlen"])
def test_elements_beyond_the_32nd_bit(harness: Harness, feature: str) -> None:
    """Rows and heads 2^29 and more elements apart, in memory of which a few pages are touched."""
    row, head = 2**29, 3 * 2**27
    count = 6 * row + head + 4096
    space = mmap.mmap(-1, 2 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    memory = torch.frombuffer(space, dtype=torch.bfloat16)
    names = ("q", "k", "v", "dout", "o", "dq", "dk", "dv")
    far = {name: torch.as_strided(memory, (1, 2, 6, 16), (0, head, row, 1), 64 * i)
           for i, name in enumerate(names)}
    torch.manual_seed(3)
    near = {name: torch.randn(1, 2, 6, 16).bfloat16() for name in names}
    for name in names[:4]:
        far[name].copy_(near[name])
    assert far["q"][0, 1, 5].data_ptr() - far["q"].data_ptr() > 2**32
    lse = torch.empty(1, 2, 6)
    ends = torch.tensor([0, 4, 6], dtype=torch.int32)
    for op, given in (("fwd", ("q", "k", "v", "o")), ("bwd", names)):
        call = harness.compile(default(f"{op}-bf16-d16-causal{feature}", LEAST))
        for tensors in (far, near):
            params = make_params({name: tensors[name] for name in given}, lse, 0.25, None)
            if feature:
                params.batch, params.total_q, params.total_kv = 2, 6, 6
                params.seqlen_q = params.seqlen_kv = 4
                params.cu_q = params.cu_kv = ends.data_ptr()
            assert harness.team.call(call, ctypes.byref(params), 2) == 0
        for name in given:
            assert torch.equal(far[name], near[name]), (op, name)
    assert lse.isfinite().all()
    del far, tensors, memory
