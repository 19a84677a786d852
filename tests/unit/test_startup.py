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
        [sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=600,
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


def test_help_takes_little_more_than_typer_itself() -> None:
    """0.1 s on a quiet machine, twice the import of typer. Processor time, and by turns: on a busy
    machine the wall clock measures the others, and the processor itself is slower."""

    def seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    run("-m", "fagen", "--help")  # compiles the modules
    turns = [(seconds("-m", "fagen", "--help"), seconds("-c", "import typer")) for _ in range(7)]
    ours, typer = map(min, zip(*turns, strict=True))
    assert ours < 3 * typer


def test_ctrl_c_while_it_loads_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    stopped = subprocess.run(
        [sys.executable, "-m", "fagen", "--help"], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert (stopped.returncode, stopped.stderr) == (130, "interrupted\n")
