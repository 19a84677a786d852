"""C++ programs without torch and Python: by hand, by pkg-config and by CMake."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fagen import paths
from fagen.build import find_cxx
from fagen.emit import Shipped, emit
from fagen.model import Entry, Measurement
from fagen.workload import Workload
from tests.unit import toykernel

NAME = "linked_attention"
PROGRAM = Path(__file__).with_name("program.cpp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        parts = [toykernel.part(f"{op}-fp32-d8-causal", paths.cache()) for op in ("fwd", "bwd")]
        measured = Measurement(1, 1, 1, 1, 0, "")
        shipped = [
            Shipped(part, Entry(part.candidate.problem, part.candidate.target,
                                Workload(1, 2, 2, 64, 64), "toy", {"answer": 0}, measured))
            for part in parts
        ]
        # A folder with a space: what the files for linkers say must survive it.
        return emit(shipped, tmp_path_factory.mktemp("made here") / NAME)


def check(program: Path) -> None:
    """Runs, prints forward and backward as the formula has them, and needs neither library."""
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: torch.tensor(values, dtype=torch.float64)
             for name, values in json.loads(done.stdout).items()}
    assert found["kernels"] == 2
    q, k, v = (found[name].view(1, -1, rows, 8).requires_grad_()
               for name, rows in (("q", 5), ("k", 7), ("v", 7)))
    keep = torch.ones(5, 7, dtype=torch.bool).tril(2)
    scores = (q @ k.repeat_interleave(2, 1).mT * 0.25).masked_fill(~keep, -math.inf)
    out, lse = scores.softmax(-1) @ v.repeat_interleave(2, 1), scores.logsumexp(-1)
    grads = torch.autograd.grad(
        (out, lse), (q, k, v), (found["dout"].view_as(out), found["dlse"].view_as(lse)))
    for name, right in zip(("o", "lse", "dq", "dk", "dv"), (out, lse, *grads), strict=True):
        torch.testing.assert_close(found[name].view_as(right), right, atol=2e-5, rtol=2e-5)
    linked = subprocess.run(["ldd", str(program)], capture_output=True, text=True).stdout
    assert f"lib{NAME}.so" in linked
    for other in ("python", "torch", "cuda"):
        assert other not in linked


def test_by_hand(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    subprocess.run(
        [find_cxx(), "-std=c++17", "-Wall", "-Wextra", "-Werror", str(PROGRAM), "-I",
         str(folder / "include"), "-L", str(folder), f"-l{NAME}", f"-Wl,-rpath,{folder}", "-o",
         str(program)], check=True)
    check(program)


@pytest.mark.skipif(not shutil.which("pkg-config"), reason="there is no pkg-config")
def test_by_pkg_config(folder: Path, tmp_path: Path) -> None:
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", NAME], check=True, capture_output=True, text=True,
        env={**os.environ, "PKG_CONFIG_PATH": str(folder)}).stdout
    program = tmp_path / "program"
    subprocess.run([find_cxx(), "-std=c++17", str(PROGRAM), *shlex.split(flags), "-o",
                    str(program)], check=True)
    check(program)


@pytest.mark.skipif(not shutil.which("cmake"), reason="there is no CMake")
def test_by_cmake(folder: Path, tmp_path: Path) -> None:
    shutil.copyfile(PROGRAM, tmp_path / PROGRAM.name)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(example CXX)\n"
        f"set(CMAKE_CXX_STANDARD 17)\nfind_package({NAME} REQUIRED)\n"
        f"find_package({NAME} REQUIRED)\n"  # twice is what large projects do
        f"add_executable(program {PROGRAM.name})\n"
        f"target_link_libraries(program PRIVATE {NAME}::{NAME})\n")
    for command in (
        ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), f"-D{NAME}_DIR={folder}",
         f"-DCMAKE_CXX_COMPILER={find_cxx()}"],
        ["cmake", "--build", str(tmp_path / "build")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    check(tmp_path / "build" / "program")
