"""The example of ring attention, in processes of their own that talk through gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fagen import paths
from fagen.emit import Shipped, emit
from fagen.model import Entry, Measurement
from fagen.workload import Workload
from tests.unit import toykernel

EXAMPLE = Path(__file__).parents[2] / "examples" / "ring_attention.py"
KERNELS = tuple(
    f"{op}-fp32-d8-{pattern}" for op in ("fwd", "bwd") for pattern in ("dense", "causal")
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        parts = [toykernel.part(slug, paths.cache()) for slug in KERNELS]
        measured = Measurement(1, 1, 1, 1, 0, "")
        shipped = [
            Shipped(part, Entry(part.candidate.problem, part.candidate.target,
                                Workload(1, 2, 2, 64, 64), "toy", {"answer": 0}, measured))
            for part in parts
        ]
        return emit(shipped, tmp_path_factory.mktemp("made") / "ring_kernels").parent


def run(folder: Path, script: Path, processes: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(processes), str(script), "ring_kernels", "--rows", "11", "--dim", "8"],
        env=environment, capture_output=True, text=True, timeout=600,
    )


@pytest.mark.parametrize("processes", [2, 3])
def test_equals_one_process(folder: Path, processes: int) -> None:
    """Output, log-sum-exp and the gradients of q, k and v, causal and not."""
    done = run(folder, EXAMPLE, processes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"of {processes} on cpu, causal True: error") == processes
    assert done.stdout.count(f"of {processes} on cpu, causal False: error") == processes


def test_the_comparison_can_fail(folder: Path, tmp_path: Path) -> None:
    """A ring that drops the gradient on its way back is found out."""
    text = EXAMPLE.read_text()
    wrong = text.replace("        return dk, dv, None\n", "        return 0 * dk, dv, None\n")
    assert wrong != text
    script = tmp_path / "ring_attention.py"
    script.write_text(wrong)
    assert run(folder, script, 2).returncode != 0
