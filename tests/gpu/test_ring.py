"""Ring attention over NCCL: every GPU holds a stretch of the sequence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import NEEDS_TWO
from tests.gpu.emitted import emitted
from tests.gpu.test_conformance import TARGET

pytestmark = pytest.mark.gpu

EXAMPLE = Path(__file__).parents[2] / "examples" / "ring_attention.py"
SLUGS = [f"{op}-bf16-d128-{pattern}" for op in ("fwd", "bwd") for pattern in ("dense", "causal")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emitted(tmp_path_factory.mktemp("made") / "ring_kernels", SLUGS, TARGET).parent


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason=NEEDS_TWO)
@pytest.mark.parametrize("rows", [333, 2048])
def test_equals_one_gpu(folder: Path, rows: int) -> None:
    """Output, log-sum-exp and all gradients, causal and not, on every GPU of this machine."""
    count = torch.cuda.device_count()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(count), str(EXAMPLE), "ring_kernels", "--rows", str(rows), "--dim", "128",
         "--dtype", "bfloat16"],
        env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    for causal in (False, True):
        assert done.stdout.count(f", causal {causal}: error") == count
    assert "on cuda:1" in done.stdout
