"""The wheel of an emitted package: what pip makes of it, the same bytes, what is in the way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from fagen import paths
from fagen.emit import Shipped, emit
from fagen.errors import FagenError
from fagen.model import Entry, Measurement
from fagen.wheel import platform_of, wheel
from fagen.workload import Workload
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
         str(site), str(made)], check=True, timeout=600)
    done = subprocess.run(
        [sys.executable, "-c", "import torch, wheeled, importlib.metadata as m\n"
         "x = torch.ones(1, 1, 4, 8)\nassert torch.equal(wheeled.attention(x, x, x), x)\n"
         "print(wheeled.__file__, m.version('wheeled'), m.requires('wheeled'))"],
        cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    digest = json.loads((package / "manifest.json").read_text())["sha256"][:12]
    assert done.stdout.split()[0] == str(site / "wheeled" / "__init__.py")
    assert done.stdout.split()[1].endswith(f"+{digest}")
    assert "torch>=2.5" in done.stdout


def test_the_tag_names_the_oldest_c_library(package: Path, tmp_path: Path) -> None:
    library = (package / "libwheeled.so").read_bytes()
    machine = sysconfig.get_platform().replace("-", "_").removeprefix("linux_")
    shown = subprocess.run(["objdump", "-T", str(package / "libwheeled.so")], check=True,
                           capture_output=True, text=True).stdout
    newest = max(int(minor) for minor in re.findall(r"GLIBC_2\.(\d+)", shown))
    tag = f"manylinux_2_{max(newest, 17)}_{machine}"
    assert platform_of(library) == tag
    made = wheel(package, tmp_path)
    assert made.name.endswith(f"-py3-none-{tag}.whl")
    with zipfile.ZipFile(made) as archive:
        (about,) = (n for n in archive.namelist() if n.endswith("/WHEEL"))
        assert f"Tag: py3-none-{tag}\n" in archive.read(about).decode()
    # What needs more than the C library, or another one, is for machines like this one.
    assert platform_of(library + b"\0GLIBCXX_3.4.30\0") == f"linux_{machine}"
    old = b"\0GCC_3.0\0CXXABI_1.3\0GLIBCXX_3.4\0"  # what unwinds the stack, on every platform
    assert platform_of(library + old) == tag
    for newer in (b"\0GCC_3.4\0", b"\0CXXABI_1.3.1\0", b"\0GLIBCXX_3.4.1\0", b"\0GOMP_1.0\0"):
        assert platform_of(library + newer) == f"linux_{machine}"
    assert platform_of(b"\x7fELF") == f"linux_{machine}"
    assert platform_of(b"\0GLIBC_2.2.5\0GLIBC_2.36\0") == f"manylinux_2_36_{machine}"


def test_the_same_bytes(package: Path, tmp_path: Path) -> None:
    (package / "__pycache__").mkdir(exist_ok=True)
    one = wheel(package, tmp_path / "one").read_bytes()
    (package / "__pycache__" / "x.pyc").write_bytes(b"whatever")
    assert wheel(package, tmp_path / "two").read_bytes() == one


def test_a_folder_that_cannot_be_written(package: Path) -> None:
    with pytest.raises(FagenError, match="cannot be written"):
        wheel(package, Path("/proc/nowhere"))
