"""What a killed process leaves in the cache goes; what a living one uses stays. Full disks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fagen.build import Builder, Cache, _run_compiler
from fagen.builds import Builds
from fagen.diskspace import full
from fagen.errors import SetupError
from fagen.model import Source
from fagen.scratch import clear, scratch
from tests.faults.table import fault

ROOT = Path(__file__).parents[2]
HOLD = ("import sys, time; from pathlib import Path; from fagen.scratch import scratch\n"
        "with scratch(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'library.so').write_text('x'); print(folder, flush=True); time.sleep(60)\n")


@fault("`kill -9` of `fagen`, folders left in the cache", "the next start on the host clears them; "
       "those of living processes stay")
def test_folders_of_dead_processes_are_cleared_and_of_living_ones_kept(tmp_path: Path) -> None:
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE) for _ in range(2)
    ]
    dead, living = (Path(h.stdout.readline().strip()) for h in holders if h.stdout)
    holders[0].send_signal(signal.SIGKILL)
    holders[0].wait()
    assert (dead / "library.so").exists()
    with scratch(tmp_path) as mine:
        assert not dead.exists()
        assert (living / "library.so").exists()
        assert mine.is_dir()
        assert clear(tmp_path) == []
    assert not mine.exists()
    holders[1].send_signal(signal.SIGTERM)
    holders[1].wait()


def test_what_nobody_holds_is_cleared_when_it_is_old(tmp_path: Path) -> None:
    with scratch(tmp_path) as mine:
        name = mine.name
    young, old = tmp_path / f"{name[:-3]}abc", tmp_path / f"{name[:-3]}xyz"
    half, fresh = (tmp_path / "kernels" / "ab" / n for n in (".new-1", ".new-2"))
    for folder in (young, old, half, fresh):
        folder.mkdir(parents=True)
    for folder in (old, half):
        os.utime(folder, (time.time() - 2e5,) * 2)
    assert set(clear(tmp_path)) == {old, half}
    assert young.exists()
    assert fresh.exists()


# --- a full disk ---------------------------------------------------------------------------------


def _no_space(*args: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@fault("the disk with the cache is full", "the command ends: stage, folder, how to free space; no "
       "candidate is blamed")
def test_a_full_cache_is_nobodys_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.faults.family import candidate, renderer
    from tests.unit.test_pool import V3

    monkeypatch.setenv("FAGEN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "templates").mkdir()
    builder, render = Builder(Cache(tmp_path / "cache")), renderer(tmp_path / "templates")
    builds = Builds(builder, render, 1, tmp_path / "libraries", 60.0)
    monkeypatch.setattr(Path, "write_bytes", _no_space)  # the build child inherits it
    with pytest.raises(SetupError, match=r"disk is full: storing the compiled kernel .*/cache"):
        builds.get(candidate(V3))
    builds.close()


def test_a_compiler_that_finds_no_space_is_nobodys_failure() -> None:
    compiler = ["sh", "-c", "echo 'fatal error: x.o: No space left on device'; exit 1"]
    with pytest.raises(SetupError, match="disk is full: the compiler cannot write to") as caught:
        _run_compiler(compiler, Source("int x;", "0", "cpp"), "-o", 10.0)
    assert caught.value.hint == full("", Path(os.environ.get("TMPDIR", "/tmp"))).hint
    assert "FAGEN_CACHE_DIR" in str(caught.value.hint)
