"""The wheel of an emitted package: what pip makes of it, the same bytes, what is in the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fagen import paths
from fagen.emit import Shipped, emit
from fagen.errors import FagenError
from fagen.model import Entry, Measurement, Workload
from fagen.wheel import wheel
from tests.unit import toykernel


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        part = toykernel.part("fwd-fp32-d8-dense", paths.cache())
        entry = Entry(part.candidate.problem, part.candidate.target, Workload(1, 2, 2, 64, 64),
                      "toy", {}, Measurement(1, 1, 1, 1, 0, ""))
        yield emit([Shipped(part, entry)], tmp_path_factory.mktemp("made") / "wheeled")


def test_pip_installs_it_and_it_runs(package: Path, tmp_path: Path) -> None:
    made = wheel(package, tmp_path / "dist")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target",
         str(site), str(made)], check=True, timeout=120)
    done = subprocess.run(
        [sys.executable, "-c", "import torch, wheeled, importlib.metadata as m\n"
         "x = torch.ones(1, 1, 4, 8)\nassert torch.equal(wheeled.attention(x, x, x), x)\n"
         "print(wheeled.__file__, m.version('wheeled'), m.requires('wheeled'))"],
        cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    digest = json.loads((package / "manifest.json").read_text())["sha256"][:12]
    assert done.stdout.split()[0] == str(site / "wheeled" / "__init__.py")
    assert done.stdout.split()[1].endswith(f"+{digest}")
    assert "torch>=2.5" in done.stdout


def test_the_same_bytes(package: Path, tmp_path: Path) -> None:
    (package / "__pycache__").mkdir(exist_ok=True)
    one = wheel(package, tmp_path / "one").read_bytes()
    (package / "__pycache__" / "x.pyc").write_bytes(b"whatever")
    assert wheel(package, tmp_path / "two").read_bytes() == one


def test_a_folder_that_cannot_be_written(package: Path) -> None:
    with pytest.raises(FagenError, match="cannot be written"):
        wheel(package, Path("/proc/nowhere"))
