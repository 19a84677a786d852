"""The PyCUDA compile path, on machines without a driver too: `make pycuda` builds PyCUDA there.

Each test runs a child that loads the stub driver first where there is no real one, because the
driver library must be in the process before PyCUDA is imported.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pycuda") is None, reason="PyCUDA is not installed: make pycuda"
)

KERNEL = 'extern "C" __global__ void twice(float *x) { x[threadIdx.x] *= 2; }\n'

COMPILE = f"""
import ctypes, hashlib, sys
if len(sys.argv) > 1: ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
from fagen.compilers import compile_with_pycuda
made = compile_with_pycuda({KERNEL!r}, "sm_90a")
print("none" if made is None else hashlib.sha256(made[0]).hexdigest())
print("" if made is None else made[1], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The argument that makes the child load a driver: none where a real one is installed."""
    if ctypes.util.find_library("cuda"):
        return []
    folder = tmp_path_factory.mktemp("driver")
    made = subprocess.run(
        [sys.executable, "tests/tools/stub_driver.py", str(folder)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."},
    )
    assert made.returncode == 0, made.stderr
    return [made.stdout.strip()]


def _compile(driver: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMPILE, *driver], capture_output=True, text=True, timeout=600
    )


def test_a_kernel_compiles_and_ptxas_is_heard(driver: list[str]) -> None:
    ran = _compile(driver)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.strip()) == 64
    assert "Used" in ran.stderr
    assert "registers" in ran.stderr


def test_pycuda_and_plain_nvcc_agree_to_the_byte(driver: list[str], tmp_path: Path) -> None:
    from fagen.compilers import NVCC_FLAGS, find_nvcc

    (tmp_path / "kernel.cu").write_text(KERNEL)
    subprocess.run(
        [find_nvcc(), "--cubin", *NVCC_FLAGS, "-arch=sm_90a", "kernel.cu", "-o", "kernel.bin"],
        cwd=tmp_path, check=True, capture_output=True,
    )
    import hashlib

    plain = hashlib.sha256((tmp_path / "kernel.bin").read_bytes()).hexdigest()
    assert _compile(driver).stdout.strip() == plain


@pytest.mark.skipif(bool(ctypes.util.find_library("cuda")), reason="this machine has a driver")
def test_without_a_driver_pycuda_is_left_alone() -> None:
    ran = _compile([])
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "none"
