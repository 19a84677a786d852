"""Results that a storage has not got yet, in a file: whoever comes next on this host sends them."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from fagen.errors import StoreError
from fagen.ledger import Away

Letter = dict[str, Any]


class Outbox:
    """Letters go out in order. The file exists only while some are waiting."""

    def __init__(self, path: Path, send: Callable[[Letter], None]) -> None:
        self.path, self._send = path, send
        self.waiting: list[Letter] = []
        self._holder: IO[str] | None = None
        self._adopted = False

    def put(self, letter: Letter) -> None:
        """Sent, or on disk, when this returns."""
        self.waiting.append(letter)
        if not self.flush():
            self._write()

    def flush(self) -> bool:
        """Send what waits; False when the storage is away."""
        before = len(self.waiting)
        try:
            while self.waiting:
                self._send(self.waiting[0])
                self.waiting.pop(0)
        except Away:
            return False
        finally:
            if self._holder and len(self.waiting) < before:
                self._write()
        return True

    def adopt(self) -> None:
        """Take over, once, what dead workers of this host left."""
        if self._adopted:
            return
        self._adopted = True
        for path in sorted(self.path.parent.glob(f"{self.path.name.rpartition('-')[0]}-*.jsonl")):
            with path.open("a+") as file:
                if path == self.path or not _held(file):
                    continue
                file.seek(0)
                lines = file.read().split("\n")[:-1]  # a torn last line was never told
                self.waiting += [json.loads(line) for line in lines]
                if self.waiting:
                    self._write()
                path.unlink()

    def _write(self) -> None:
        try:
            if not self.waiting:
                self.path.unlink(missing_ok=True)
                self._holder = None
                return
            if self._holder is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._holder = self.path.open("a+")
                _held(self._holder)
            self._holder.truncate(0)
            self._holder.write("".join(json.dumps(letter) + "\n" for letter in self.waiting))
            self._holder.flush()
            os.fsync(self._holder.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be written: {error.strerror}, and the storage is away",
                "free some space, then run the same command again",
            ) from error


def _held(file: IO[str]) -> bool:
    """By this process, until it ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
