"""A package for several machines on a machine that is none of them, or hardly one: what it says.

The CUDA driver is the one of fakecuda.c, or none, or one that lacks a function.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fagen import compilers, paths
from fagen.emit import Shipped, emit
from fagen.model import Entry, Measurement
from fagen.target import Target
from fagen.workload import Workload
from tests.unit import toykernel
from tests.unit.test_link import cuda_part

NAME = "several_attention"
HERE = Path(__file__).parent
SLUG = "fwd-bf16-d64-causal"
ASK = """
import sys, torch
package = __import__(sys.argv[1])
from importlib import import_module
selection = import_module(sys.argv[1] + ".selection")
q = torch.ones(1, 2, 5, 8)
assert torch.equal(package.attention(q, q, q), q)  # the host is served in any case
for index in sys.argv[2:]:
    call = selection.Call("fwd", torch.bfloat16, torch.device("cuda", int(index)), 64, 64,
                          selection.Pattern(right=0), (1, 2, 2, 64, 64), False)
    try:
        print("kernel", selection.choose(call).kernel)
    except package.NoKernel as reason:
        print(reason)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels for an H200, an A100 and this host; the drivers beside them."""
    made = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        targets = Target.known("h200"), Target.known("a100")
        parts = [cuda_part(made / f"{t.name}.cubin", t, SLUG) for t in targets]
        parts.append(toykernel.part("fwd-fp32-d8-dense", paths.cache()))
        measured = Measurement(1, 1, 1, 1, 0, "")
        emit([Shipped(part, Entry(part.candidate.problem, part.candidate.target,
                                  Workload(1, 2, 2, 64, 64), "toy", {}, measured))
              for part in parts], made / NAME)
    for driver, flags in (("driver", ()), ("old", ("-DcuLaunchKernelEx=cuSomethingElse",))):
        (made / driver).mkdir()
        subprocess.run([compilers.find_cxx(), "-x", "c", "-shared", "-fPIC", "-w", *flags,
                        str(HERE / "fakecuda.c"), "-o", str(made / driver / "libcuda.so.1")],
                       check=True)
    return made


def run(folder: Path, *arguments: str, driver: str = "", **facts: int) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder),
                   **{name: str(value) for name, value in facts.items()}}
    if driver:
        environment["LD_LIBRARY_PATH"] = str(folder / driver)
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def inside(folder: Path, target: str) -> int:
    kernels = json.loads((folder / NAME / "manifest.json").read_text())["kernels"]
    return next(i for i, kernel in enumerate(kernels) if kernel["target"]["name"] == target)


@pytest.mark.parametrize(("capability", "target"), [(9, "h200"), (8, "a100")])
def test_each_gpu_gets_its_own(folder: Path, capability: int, target: str) -> None:
    said = run(folder, "-c", ASK, NAME, "0", driver="driver", FAKE_MAJOR=capability)
    assert said == f"kernel {inside(folder, target)}\n"


@pytest.mark.parametrize(("driver", "facts", "says"), [
    ("driver", {"FAKE_MAJOR": 7}, {
        0: "was built for compute capability 9.0 (h200); CUDA device 0 has 7.0"}),
    ("driver", {}, {
        1: "was built for compute capability 9.0 (h200); CUDA device 1 has 9.1",
        2: "CUDA device 2 was asked for; there are 2"}),
    ("driver", {"FAKE_INIT": 803}, {0: "the NVIDIA driver answered error 803 to cuInit"}),
    ("old", {}, {
        0: "the NVIDIA driver is too old: it has no cuLaunchKernelEx; CUDA 12.0 or newer"}),
])
def test_a_gpu_that_cannot_run_them(
    folder: Path, driver: str, facts: dict[str, int], says: dict[int, str]
) -> None:
    said = run(folder, "-c", ASK, NAME, *map(str, says), driver=driver, **facts)
    for device, reason in says.items():
        assert f"no kernel of this package serves {SLUG} on cuda:{device}\n" in said
        assert reason in said
    assert said.count(f"to fill the gap: fagen tune {SLUG} ") == len(says)
    assert "is for fwd-fp32-d8-dense on" in said


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="this machine has a driver")
def test_without_a_gpu_the_host_serves(folder: Path) -> None:
    said = run(folder, "-c", ASK, NAME, "0")
    assert "no NVIDIA driver on this machine (libcuda.so.1 cannot be opened)" in said
    lines = run(folder, "-m", NAME).splitlines()
    assert sum("not here: no NVIDIA driver on this machine" in line for line in lines) == 2
    assert sum(" right, " in line for line in lines) == 1


def test_strides_beyond_2_to_the_31_elements(folder: Path, tmp_path: Path) -> None:
    """Two short sequences far apart, in a file of which only what is touched exists."""
    sys.path.insert(0, str(folder))
    try:
        package = __import__(NAME)
    finally:
        sys.path.remove(str(folder))
    far, rows = 2**31 + 64, 5
    size = far + 2 * rows * 8
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 4 * size)
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=size)
    far_apart = memory.as_strided((2, 2, rows, 8), (far, rows * 8, 8, 1))
    near = torch.randn(2, 2, rows, 8)
    far_apart.copy_(near)
    out = package.attention(far_apart, far_apart, far_apart)
    torch.testing.assert_close(out, package.attention(near, near, near), atol=0, rtol=0)
