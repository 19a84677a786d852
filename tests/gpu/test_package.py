"""The emitted package on a GPU: a training step, graphs, streams, threads, views, refusals."""

from __future__ import annotations

import importlib
import itertools
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fagen.families import FAMILIES
from fagen.link import find_cc
from tests.conftest import NEEDS_TWO
from tests.gpu.emitted import emitted
from tests.gpu.test_conformance import DEVICE, TARGET

pytestmark = pytest.mark.gpu

NAME = "gpu_attention"
SLUGS = (
    *(f"{op}-bf16-d{dim}-{pattern}" for op in ("fwd", "bwd") for dim in (64, 128)
      for pattern in ("dense", "causal", "window100")),
    "fwd-bf16-d64-causal-topleft",  # which only the test of a graph calls
)
SERVING = [f for f in FAMILIES if f.runs_on(TARGET)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emitted(tmp_path_factory.mktemp("made") / NAME, SLUGS, TARGET)


@pytest.fixture(scope="module")
def package(folder: Path) -> Iterator[Any]:
    sys.path.insert(0, str(folder.parent))
    try:
        yield importlib.import_module(NAME)
    finally:
        sys.path.remove(str(folder.parent))


def tensors(b: int = 2, h: int = 4, hk: int = 2, sq: int = 333, sk: int = 333, d: int = 128,
            device: str = "cuda", grad: bool = True) -> list[Tensor]:
    made = torch.Generator().manual_seed(0)
    shapes = ((b, h, sq, d), (b, hk, sk, d), (b, hk, sk, d))
    return [torch.randn(s, generator=made).to(device, torch.bfloat16).requires_grad_(grad)
            for s in shapes]


def formula(q: Tensor, k: Tensor, v: Tensor, left: float = math.inf,
            right: float = math.inf) -> tuple[Tensor, Tensor]:
    """In fp32 by torch's autograd, aligned bottom-right."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.float(), *(x.float().repeat_interleave(group, 1) for x in (k, v))
    sq, sk = q.shape[2], k.shape[2]
    diagonal = torch.arange(sq, device=q.device)[:, None] + sk - sq
    key = torch.arange(sk, device=q.device)
    keep = (key >= diagonal - left) & (key <= diagonal + right)
    scores = (q @ k.mT * q.shape[3]**-0.5).masked_fill(~keep, -math.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def close(found: Tensor, expected: Tensor) -> None:
    scale = expected.float().abs().max()
    torch.testing.assert_close(found.float() / scale, expected.float() / scale, atol=1.5e-2, rtol=0)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("lengths", [(333, 333), (100, 700), (1, 513), (128, 128)])
@pytest.mark.parametrize(("options", "band"), [
    ({}, (math.inf, math.inf)), ({"causal": True}, (math.inf, 0)), ({"window": 100}, (100, 0)),
])
def test_a_training_step(package: Any, options: dict[str, Any], band: tuple[float, float],
                         lengths: tuple[int, int], dim: int) -> None:
    sq, sk = lengths
    given = tensors(sq=sq, sk=sk, d=dim)
    out, lse = package.attention(*given, **options, return_lse=True)
    expected = formula(*given, *band)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    found = torch.autograd.grad([out, lse], given, [dout, dlse])
    wanted = torch.autograd.grad(expected, given, [dout.float(), dlse])
    for x, y in zip((out, lse, *found), (*expected, *wanted), strict=True):
        close(x, y)


def test_layouts_and_views(package: Any) -> None:
    q, k, v = tensors(grad=False)
    expected = package.attention(q, k, v, causal=True)

    def same(out: Tensor) -> None:
        torch.testing.assert_close(out, expected, atol=0, rtol=0)

    rows = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    same(package.attention(*rows, causal=True, layout="bshd").transpose(1, 2))
    same(package.attention(*(x.transpose(1, 2) for x in rows), causal=True))
    # One projection cut into q, k and v; a row pitch that is no multiple of 16 bytes; an odd start.
    packed = torch.cat([x.flatten(2) for x in rows], -1)
    cut = [part.unflatten(-1, (-1, 128)) for part in packed.split([512, 256, 256], -1)]
    same(package.attention(*cut, causal=True, layout="bshd"))
    same(package.attention(F.pad(q, (0, 3))[..., :128], F.pad(k, (1, 0))[..., 1:], v, causal=True))
    same(package.attention(q.mT.contiguous().mT, k, v, causal=True))


def test_expanded_and_single(package: Any) -> None:
    q, k, v = tensors(b=1, hk=1, grad=False)
    wide = [x.expand(1, 4, 333, 128) for x in (k, v)]
    close(package.attention(q, *wide), package.attention(q, k, v))
    leaf = q.clone().requires_grad_()
    package.attention(leaf, *wide).sum().backward()
    (grad,) = torch.autograd.grad(formula(leaf, k, v)[0].sum(), leaf)
    close(leaf.grad, grad)


def test_nothing_in_nothing_out(package: Any) -> None:
    for sizes in ({"b": 0}, {"sq": 0}, {"sk": 0}):
        given = tensors(**sizes)
        out, lse = package.attention(*given, return_lse=True)
        assert not out.any()
        assert (lse == -math.inf).all()
        assert not any(g.any() for g in torch.autograd.grad(out.sum(), given))


def test_a_cuda_graph(package: Any) -> None:
    given = tensors(d=64, grad=False)
    fresh = [torch.empty_like(x) for x in given]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # the first call at all: the kernel is loaded inside
        out = package.attention(*fresh, causal="top-left")
    for x, y in zip(fresh, given, strict=True):
        x.copy_(y)
    graph.replay()
    torch.testing.assert_close(out, package.attention(*given, causal="top-left"), atol=0, rtol=0)


def test_a_graph_of_a_training_step(package: Any) -> None:
    given = tensors()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # as torch asks: warm up on another stream
        for _ in range(2):
            torch.autograd.grad(package.attention(*given, causal=True).sum(), given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = torch.autograd.grad(package.attention(*given, causal=True).sum(), given)
    graph.replay()
    for x, y in zip(found, torch.autograd.grad(formula(*given, right=0)[0].sum(), given),
                    strict=True):
        close(x, y)


def test_streams_and_threads(package: Any) -> None:
    given = tensors(sq=1024, sk=1024)
    expected = [package.attention(*given, causal=True)]
    expected += torch.autograd.grad(expected[0].sum(), given)
    torch.cuda.synchronize()
    wrong: list[str] = []

    def work() -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(20):
                own = [x.detach().clone().requires_grad_() for x in given]
                out = package.attention(*own, causal=True)
                found = [out, *torch.autograd.grad(out.sum(), own)]
                stream.synchronize()
                for x, y in zip(found, expected, strict=True):
                    if (x - y).abs().max() > 1e-2 * y.abs().max():
                        wrong.append(f"{float((x - y).abs().max())} of {float(y.abs().max())}")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong, wrong[0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason=NEEDS_TWO)
def test_a_second_gpu(package: Any) -> None:
    given = tensors(device="cuda:1")
    close(package.attention(*given, causal=True), formula(*given, right=0)[0])
    with pytest.raises(ValueError, match="differ in device"):
        package.attention(given[0], given[1].to("cuda:0"), given[2])


def test_compiled(package: Any) -> None:
    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = package.attention(q * 2, k, v, causal=True) + 1
        return out

    given = tensors()
    found, expected = torch.compile(step, fullgraph=True)(*given), step(*given)
    close(found, expected)
    for x, y in zip(torch.autograd.grad(found.sum(), given),
                    torch.autograd.grad(expected.sum(), given), strict=True):
        close(x, y)


def test_as_torchs_flash_implementation(package: Any) -> None:
    """The same numbers and strides as from torch's own flash kernels."""
    theirs: Any = torch.nn.attention
    if not hasattr(theirs, "activate_flash_attention_impl"):
        pytest.skip("this torch has no place for flash implementations")
    q, k, v = (x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
               for x in tensors(hk=4))

    def run() -> list[Tensor]:
        with theirs.sdpa_kernel(theirs.SDPBackend.FLASH_ATTENTION):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return [out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))]

    expected, before = run(), sum(package.served().values())
    package.activate()
    found = run()
    theirs.restore_flash_attention_impl()
    assert sum(package.served().values()) == before + 2
    for x, y in zip(found, expected, strict=True):
        assert x.stride() == y.stride()
        close(x, y)


def test_opcheck(package: Any) -> None:
    ops = getattr(torch.ops, NAME)
    given, options = tensors(), (-1, 0, False, "", 0.1, True, False)
    torch.library.opcheck(ops.fwd.default, (*given, *options))


def test_what_is_refused(package: Any) -> None:
    q, k, v = tensors(grad=False)
    with pytest.raises(ValueError, match="differ in device"):
        package.attention(q, k.cpu(), v)
    with pytest.raises(package.NoKernel, match="fwd-fp16-d128-dense"):
        package.attention(q.half(), k.half(), v.half())
    with pytest.raises(package.NoKernel, match="is for CUDA devices; the tensors are on the host"):
        package.attention(q.cpu(), k.cpu(), v.cpu())
    torch.cuda.synchronize()  # nothing ran, nothing is broken
    close(package.attention(q, k, v), formula(q, k, v)[0])


@pytest.mark.parametrize(("layout", "shape"), [
    ("bhsd", (17, 1, 2**20, 128)),  # many heads of a usual size
    ("bshd", (1, 2**20, 17, 128)),  # one head reaches over all of it
])
def test_more_than_2_to_the_31_elements(
    package: Any, layout: str, shape: tuple[int, ...]
) -> None:
    """Forward and backward, in the first rows and in the last ones."""
    assert math.prod(shape) > 2**31
    if torch.cuda.mem_get_info()[0] < 100 << 30:
        pytest.skip("less than 100 GiB of memory free on this NVIDIA GPU")

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, device="cuda", dtype=torch.bfloat16)

    few = [128 if size == 2**20 else size for size in shape]
    q, k, v = normal(*shape).requires_grad_(), *(normal(*few).requires_grad_() for _ in "kv")
    dout = normal(*shape)
    out = package.attention(q, k, v, layout=layout)
    found = torch.autograd.grad(out, (q, k, v), dout)
    q, k, v, dout, out, *found = (
        x.detach() if layout == "bhsd" else x.detach().transpose(1, 2)
        for x in (q, k, v, dout, out, *found))
    sums = [torch.zeros(x.shape, device="cuda") for x in (k, v)]
    for b, h in itertools.product(range(q.shape[0]), range(q.shape[1])):
        one = slice(b, b + 1), slice(h, h + 1)
        for first in range(0, q.shape[2], 2**17):
            part = (*one, slice(first, first + 2**17))
            leaves = [x.float().requires_grad_() for x in (q[part], k[one], v[one])]
            right, _ = formula(*leaves)
            grads = torch.autograd.grad(right, leaves, dout[part].float())
            close(out[part], right)
            close(found[0][part], grads[0])
            for total, grad in zip(sums, grads[1:], strict=True):
                total[one] += grad
    for x, y in zip(found[1:], sums, strict=True):
        close(x, y)


def test_python_m(package: Any, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", NAME], cwd=folder.parent, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" right, ") == len(SLUGS)


@pytest.mark.parametrize("language", [
    ("-std=gnu11",), ("-x", "c++", "-std=gnu++17", "-Wno-missing-field-initializers"),
], ids=["c", "c++"])
def test_a_program_without_python(
    folder: Path, tmp_path: Path, language: tuple[str, ...]
) -> None:
    binary = tmp_path / "program"
    subprocess.run(
        [find_cc(), *language, "-Wall", "-Wextra", "-Werror",
         str(Path(__file__).with_name("program.c")), "-I", str(folder / "include"), "-L",
         str(folder), f"-l{NAME}", f"-Wl,-rpath,{folder}", "-ldl", "-lm", "-o", str(binary)],
        check=True)
    done = subprocess.run([str(binary)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "forward and backward agree" in done.stdout


def _host_us(run: Any, count: int = 300) -> float:
    """Host time per call: the queue is empty at the start and never full."""
    best = math.inf
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            run()
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / count


def test_host_time_of_a_call(package: Any, record_property: Any) -> None:
    """No more than torch's own, with room for noise; the kernels are as short as can be."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    given = tensors(b=1, h=1, hk=1, sq=64, sk=64, grad=False)
    leaves = tensors(b=1, h=1, hk=1, sq=64, sk=64)
    dout = torch.randn_like(given[0])
    ours = _host_us(lambda: package.attention(*given))
    both = _host_us(lambda: torch.autograd.grad(package.attention(*leaves), leaves, dout), 100)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        theirs = _host_us(lambda: F.scaled_dot_product_attention(*given))
        their_both = _host_us(lambda: torch.autograd.grad(
            F.scaled_dot_product_attention(*leaves), leaves, dout), 100)
    text = (f"forward {ours:.1f} us, torch with cuDNN {theirs:.1f}; "
            f"forward and backward {both:.1f} us, torch with cuDNN {their_both:.1f}")
    record_property("host_time", text)
    print(text)
    assert ours < 1.2 * theirs + 5, text
    assert both < 1.2 * their_both + 10, text


def test_families_serve_this_gpu() -> None:
    assert SERVING, f"no family runs on {DEVICE}"
