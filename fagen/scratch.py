"""Folders of runs in the cache: each goes with its process, and what a killed one left is cleared
by the next start on the same host."""

from __future__ import annotations

import contextlib
import fcntl
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_ALIVE = "alive"  # held by the process whose folder it is
_NEW_S = 60.0  # a folder may be so young that its process does not hold it yet
_OLD_S = 86_400.0  # what nobody holds by design: half-made entries of killed builds


def _prefix() -> str:
    return f"run-{re.sub(r'[^A-Za-z0-9]+', '-', platform.node()) or 'host'}-"


@contextlib.contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """An empty folder for this process."""
    cache.mkdir(parents=True, exist_ok=True)
    clear(cache)
    folder = tempfile.TemporaryDirectory(prefix=_prefix(), dir=cache, ignore_cleanup_errors=True)
    with folder as made, (Path(made) / _ALIVE).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield Path(made)


def clear(cache: Path) -> list[Path]:
    """Remove what dead processes left. Only this host's: locks of others may not be seen here."""
    left = [folder for folder in cache.glob(f"{_prefix()}*") if _is_left(folder)]
    left += [folder for folder in cache.glob("*/**/.new-*") if _age_s(folder) > _OLD_S]
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return left


def _is_left(folder: Path) -> bool:
    try:
        with (folder / _ALIVE).open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return _age_s(folder) > _NEW_S
    except OSError:  # its process lives
        return False


def _age_s(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0
