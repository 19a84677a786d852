"""``--complete`` tells a run in which something did not run from one in which all is well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import conftest
from tests.conftest import NEEDS_TWO, may_skip

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--complete", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )


def test_a_folder_whose_tests_did_not_run_fails_the_run() -> None:
    ran = run("tests/faults", "-k", "no_such_test")
    assert ran.returncode != 0
    assert "incomplete: tests/faults: 0 tests ran, at least 30 were expected" in ran.stdout


def test_a_file_may_be_run_alone() -> None:
    ran = run("tests/unit/test_spec.py")
    assert ran.returncode == 0, ran.stdout
    assert "tests/unit: " in ran.stdout
    assert "incomplete" not in ran.stdout


@pytest.mark.parametrize(("reason", "gpu", "nvcc", "allowed"), [
    ("Skipped: no NVIDIA GPU on this machine", False, False, True),
    ("Skipped: no NVIDIA GPU on this machine", True, True, False),
    ("Skipped: no nvcc: CUDA kernels cannot be compiled", False, False, True),
    ("Skipped: no nvcc: CUDA kernels cannot be compiled", False, True, False),
    ("Skipped: no PostgreSQL server: apt-get install postgresql", False, False, False),
    ("Skipped: no browser: apt-get install chromium", False, False, False),
    ("Skipped: this CPU has no AVX512_BF16", True, True, True),
])
def test_a_skip_is_allowed_when_the_machine_explains_it(
    reason: str, gpu: bool, nvcc: bool, allowed: bool
) -> None:
    assert may_skip(reason, gpu, nvcc) == allowed


@pytest.mark.parametrize(("gpus", "allowed"), [(0, True), (1, True), (2, False)])
def test_what_needs_two_gpus_runs_where_they_are(
    gpus: int, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "GPUS", gpus)
    assert may_skip(f"Skipped: {NEEDS_TWO}", gpus > 0, True) == allowed
