"""``import fagen`` and ``fagen --help`` load the standard library and typer, and are quick."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "optuna", "pycuda", "numpy", "jinja2", "yaml", "rich", "matplotlib")
SHOW = "import sys; print(*sorted({n.partition('.')[0] for n in sys.modules}), file=sys.stderr)"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("what", [
    "import fagen",
    "from fagen.cli import main; main(['--help'])",
    "from fagen.cli import main; main(['tune', '--help'])",
    "from fagen.cli import main; assert main(['space', 'nonsense', '--target', 'l4']) == 2",
])
def test_nothing_heavy_is_imported(what: str) -> None:
    loaded = set(run("-c", f"{what}; {SHOW}").stderr.split())
    assert "sys" in loaded
    assert not loaded & set(HEAVY)


def test_help_takes_less_than_a_fifth_of_a_second() -> None:
    """Processor time: on a busy machine the wall clock measures the others."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("-m", "fagen", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    seconds()  # compiles the modules
    assert min(seconds() for _ in range(7)) < 0.2


def test_ctrl_c_while_it_loads_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    stopped = subprocess.run(
        [sys.executable, "-m", "fagen", "--help"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert (stopped.returncode, stopped.stderr) == (130, "interrupted\n")
