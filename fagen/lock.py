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
_TICK = 0.1


class DeviceLock:
    """A file lock. The kernel gives it back when its holder dies, however it dies."""

    def __init__(
        self, folder: Path, device: str, wait: float = WAIT_SECONDS,
        on_wait: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.path = folder / (re.sub(r"[^A-Za-z0-9-]+", "-", device) + ".lock")
        self.device, self.wait, self.on_wait = device, wait, on_wait

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._open() as file:
            self._acquire(file)
            self._sign(file, f"process {os.getpid()} ({' '.join(sys.argv)[:200]})")
            try:
                yield
            finally:
                self._sign(file, "")

    def _open(self) -> IO[bytes]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self.path.open("a+b", buffering=0)
        except OSError as error:
            raise SetupError(
                f"the lock {self.path} cannot be opened: {error.strerror}",
                "free some space, or choose another folder with FAGEN_CACHE_DIR",
            ) from error

    def _sign(self, file: IO[bytes], text: str) -> None:
        """Say who holds it. The lock itself needs no bytes, so a full disk is no obstacle."""
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(text.encode())

    def _acquire(self, file: IO[bytes]) -> None:
        deadline, told = time.monotonic() + self.wait, False
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().decode(errors="replace") or "another process"
            if time.monotonic() > deadline:
                raise RunError(
                    f"{self.device} is in use by {holder}: waited {self.wait:g} s",
                    "two measurements at once would spoil each other; let the other one finish",
                )
            if not told:
                self.on_wait(f"{self.device} is in use by {holder}; waiting")
                told = True
            time.sleep(_TICK)
