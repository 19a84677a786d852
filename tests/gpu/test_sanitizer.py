"""compute-sanitizer over a representative set: memory, shared-memory races, synchronisation."""

from __future__ import annotations

import os
import re
import shutil

import pytest

from fagen import paths
from fagen.build import Builder, Cache
from fagen.cases import Case
from fagen.model import Candidate
from fagen.pool import Pool, Verdict
from fagen.render import Renderer
from fagen.station import Limits
from fagen.workload import Workload
from tests.conformance import suite
from tests.gpu.test_conformance import DEVICE, TARGET

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

TOOLS = ("memcheck", "racecheck", "synccheck")
KERNELS = suite.defaults([
    "fwd-bf16-d64-causal", "fwd-fp16-d128-dense", "fwd-bf16-d80x40-window33x20",
    "bwd-bf16-d64-causal", "bwd-fp16-d128-dense", "bwd-bf16-d80x40-window33x20",
    "bwd-bf16-d64-causal+deterministic", "fwd-bf16-d64-causal+varlen", "bwd-bf16-d64-causal+varlen",
    "fwd-bf16-d64-blocks64", "bwd-bf16-d64-blocks64",
], TARGET)
FAMILIES = sorted({kernel.family.name for kernel in KERNELS})
CASES = (
    Case(Workload(1, 2, 1, 193, 257), layout="bshd", dlse=True),
    Case(Workload(1, 1, 1, 300, 77), layout="padded"),
)


def symbols(kernels: list[Candidate]) -> list[str]:
    """Every kernel of ours by its name; torch's own would take most of the time."""
    plans = (kernel.family.kernel(kernel.problem.op).plan(kernel) for kernel in kernels)
    return sorted({step.symbol for plan in plans for step in plan.steps})


@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tool", TOOLS)
def test_clean(tool, family, tmp_path, monkeypatch):
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("needs compute-sanitizer")
    # Every tensor an allocation of its own, or reads past its end stay inside torch's pool.
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    report = tmp_path / "report.txt"
    kernels = [kernel for kernel in KERNELS if kernel.family.name == family]
    only = [word for symbol in symbols(kernels)
            for word in ("--kernel-name", f"kernel_name={symbol}")]
    wrapper = ("compute-sanitizer", "--tool", tool, "--log-file", str(report), *only)
    limits = Limits(start=300, prepare=300, run=300)
    builder, renderer = Builder(Cache(paths.cache())), Renderer(paths.templates())
    with Pool(
        builder, renderer, DEVICE, jobs=os.cpu_count() or 1, scratch=tmp_path, limits=limits,
        wrapper=wrapper,
    ) as pool:
        pool.prepare(kernels)
        verdicts = {suite.name(kernel): pool.check(kernel, CASES) for kernel in kernels}
    wrong = {name: v.reason for name, v in verdicts.items() if not isinstance(v, Verdict)}
    text = report.read_text()
    assert not wrong, text[-3000:]
    assert re.search(r"SUMMARY: 0 (errors|hazards)", text), text[-3000:]
