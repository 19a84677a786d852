"""The cache and the compilers, on kernels small enough to compile in a moment."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from fagen.build import Builder, Cache, parse_ptxas
from fagen.errors import BuildError, SetupError
from fagen.families.base import Family, Kernel, knob
from fagen.families.plan import Plan
from fagen.model import Candidate, Problem, Source
from fagen.target import Target


@dataclasses.dataclass(frozen=True)
class Knobs:
    size: int = knob(1, 2, default=1, says="nothing")


def _kernel(template: str) -> Kernel:
    return Kernel(template, Knobs, (), lambda c: Plan(), lambda p, t: Knobs(), lambda c, w: 0)


HOST = Family("host-test", "for tests", "host", {"fwd": _kernel("x")},
              lambda t: t.kind == "cpu", lambda t: t.name)
CUDA = Family("cuda-test", "for tests", "nvcc", {"fwd": _kernel("x")},
              lambda t: t.kind == "cuda", lambda t: f"sm_{t.capability[0]}{t.capability[1]}")


def candidate(family: Family = HOST, target: str = "x86-64-v3") -> Candidate:
    return family.default(Problem.parse("fwd-bf16-d64"), Target.known(target))


def source(text: str, language: str = "cpp") -> Source:
    return Source(text, hashlib.sha256(text.encode()).hexdigest(), language)


GOOD = source('extern "C" int answer() { return 42; }\n')


def test_built_once_then_taken_from_the_cache(tmp_path: Path) -> None:
    builder = Builder(Cache(tmp_path))
    first = builder.build(candidate(), GOOD)
    second = builder.build(candidate(), GOOD)
    assert not first.cached
    assert second.cached
    assert Path(first.path).read_bytes() == Path(second.path).read_bytes()
    assert second.sha256 == hashlib.sha256(Path(second.path).read_bytes()).hexdigest()


def test_another_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    one = Builder(Cache(tmp_path / "one")).build(candidate(), GOOD)
    two = Builder(Cache(tmp_path / "two")).build(candidate(), GOOD)
    assert one.sha256 == two.sha256


def test_the_target_is_part_of_the_key(tmp_path: Path) -> None:
    builder = Builder(Cache(tmp_path))
    builder.build(candidate(), GOOD)
    assert not builder.build(candidate(target="x86-64-v4"), GOOD).cached


@pytest.mark.parametrize("damage", ["truncate", "record", "missing", "garbage"])
def test_a_corrupt_entry_is_built_again(tmp_path: Path, damage: str) -> None:
    builder = Builder(Cache(tmp_path))
    path = Path(builder.build(candidate(), GOOD).path)
    if damage == "truncate":
        os.truncate(path, 10)
    elif damage == "record":
        (path.parent / "record.json").write_text("{")
    elif damage == "garbage":
        (path.parent / "record.json").write_text('{"advice": 3}')
    else:
        path.unlink()
    again = builder.build(candidate(), GOOD)
    assert not again.cached
    assert builder.build(candidate(), GOOD).cached


def test_compile_error_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"kernel.cpp:1:.*error"):
        Builder(Cache(tmp_path)).build(candidate(), source("int f() { return nothing; }\n"))


def test_a_compiler_that_hangs_is_killed(tmp_path: Path) -> None:
    endless = source("""
template <int A, int B> struct F { static constexpr int v = F<A-1, B>::v + F<A-1, B+1>::v; };
template <int B> struct F<0, B> { static constexpr int v = 1; };
int f() { return F<800, 0>::v; }
""")
    with pytest.raises(BuildError, match=r"did not finish within 0\.5 s"):
        Builder(Cache(tmp_path)).build(candidate(), endless, timeout=0.5)


def test_no_compiler_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SetupError, match="no C\\+\\+ compiler") as caught:
        Builder(Cache(tmp_path)).build(candidate(), GOOD)
    assert "install" in (caught.value.hint or "")


def test_a_full_cache_folder_is_explained(tmp_path: Path) -> None:
    blocker = tmp_path / "kernels"
    blocker.write_text("a file where a folder should be")
    with pytest.raises(BuildError, match="storing the compiled kernel cannot write to"):
        Builder(Cache(tmp_path)).build(candidate(), GOOD)


def _build_in_child(root: str) -> str:
    return Builder(Cache(Path(root))).build(candidate(), GOOD).sha256


def test_many_processes_share_a_cache(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        digests = set(pool.map(_build_in_child, [str(tmp_path)] * 8))
    assert len(digests) == 1
    assert not list(tmp_path.rglob(".new-*"))


PTXAS = """ptxas info    : (C7512) Potential Performance Loss: wgmma serialized in 'fwd'
ptxas info    : Function properties for fwd
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers, 1024 bytes smem
ptxas info    : Used 40 registers
"""


def test_ptxas_report_is_read() -> None:
    report = parse_ptxas(PTXAS)
    assert report["registers"] == 168
    assert report["spill_bytes"] == 32
    assert report["shared_bytes"] == 1024
    assert report["advice"] == (
        "(C7512) Potential Performance Loss: wgmma serialized in 'fwd'",
    )


SPILLS = source("""
extern "C" __global__ void __launch_bounds__(1024, 1) f(float *p) {
  float a[200];
#pragma unroll
  for (int i = 0; i < 200; ++i) a[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 200; ++i) p[(199 - i) * 1024 + threadIdx.x] = a[i] * a[(i * 7) % 200];
}
""", "cuda")


@pytest.mark.skipif(
    not (shutil.which("nvcc") or os.path.exists("/usr/local/cuda/bin/nvcc")),
    reason="no nvcc on this machine: pip install 'fagen[cuda]'",
)
def test_spilling_kernels_are_dropped_unless_allowed(tmp_path: Path) -> None:
    builder = Builder(Cache(tmp_path))
    with pytest.raises(BuildError, match="spilled"):
        builder.build(candidate(CUDA, "a100"), SPILLS)
    allowed = builder.build(candidate(CUDA, "a100"), SPILLS, allow_spills=True)
    assert allowed.spill_bytes > 0
    assert allowed.registers == 64
