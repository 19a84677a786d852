"""One measurement at a time per device, across all processes of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from fagen.errors import RunError, SetupError

WAIT_SECONDS = 600.0
_TICK = 0.02


class DeviceLock:
    """A file lock, which the kernel gives back when its holder dies, however it dies. Who waits
    stands in a turnstile, so that a process that measures over and over lets others have a turn."""

    def __init__(
        self, folder: Path, device: str, wait: float = WAIT_SECONDS,
        on_wait: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.path = folder / (re.sub(r"[^A-Za-z0-9-]+", "-", device) + ".lock")
        self.device, self.wait, self.on_wait = device, wait, on_wait

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._open(self.path) as file:
            self._acquire(file)
            _sign(file, f"process {os.getpid()} ({' '.join(sys.argv)[:200]})")
            try:
                yield
            finally:
                _sign(file, "")
                _release(file)

    def _open(self, path: Path) -> IO[bytes]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("a+b", buffering=0)
        except OSError as error:
            raise SetupError(
                f"the lock {path} cannot be opened: {error.strerror}",
                "free some space, or choose another folder with FAGEN_CACHE_DIR",
            ) from error

    def _acquire(self, file: IO[bytes]) -> None:
        deadline, told = time.monotonic() + self.wait, False
        with self._open(self.path.with_suffix(".next")) as turnstile:
            for step in (turnstile, file):
                while not _taken(step):
                    holder = _signature(file)
                    if time.monotonic() > deadline:
                        raise RunError(
                            f"{self.device} is in use by {holder}: waited {self.wait:g} s",
                            "two measurements at once would spoil each other; let it finish",
                        )
                    if not told:
                        self.on_wait(f"{self.device} is in use by {holder}; waiting")
                        told = True
                    time.sleep(_TICK)
            _release(turnstile)


def _taken(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _release(file: IO[bytes]) -> None:
    """Closing would not do while a forked child still has the same file open."""
    fcntl.flock(file, fcntl.LOCK_UN)


def _sign(file: IO[bytes], text: str) -> None:
    """Say who holds it. The lock itself needs no bytes, so a full disk is no obstacle."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(text.encode())


def _signature(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace") or "another process"
