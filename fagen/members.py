"""Who is on a search: every worker renews a number in the storage, and the others watch it.

No clock of any host is compared with another one's: a worker is dead when its number did not change
for the time of a lease, as the watcher's own monotonic clock counts it. While the storage was away
nobody could renew, so after an outage every lease begins anew.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from typing import Any

from fagen.errors import FagenError
from fagen.storage import Storage

_PREFIX = "worker "
_LEFT = -1  # the number of a worker that went by itself


class Members:
    """The workers on one study, this one among them from ``join`` to ``leave``."""

    def __init__(self, storage: Storage, study: int) -> None:
        self.me = uuid.uuid4().hex
        self._storage, self._study = storage, study
        self._count = 0
        self._seen: dict[str, tuple[int, float]] = {}  # worker: its number, and since when
        self._looked = 0.0
        self._outages = storage.outages
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def join(self) -> None:
        self._write(0)
        self._thread.start()

    def leave(self) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(self._storage.pace.renew + 10)
        with contextlib.suppress(FagenError):
            self._write(_LEFT)

    def _renew(self) -> None:
        while not self._done.wait(self._storage.pace.renew):
            self._count += 1
            with contextlib.suppress(FagenError):
                self._write(self._count)

    def _write(self, number: int) -> None:
        value = [number, platform.node(), os.getpid()]
        self._storage.call(
            lambda s: s.set_study_user_attr(self._study, _PREFIX + self.me, value)
        )

    def observe(self) -> None:
        """Read all numbers."""
        attributes: dict[str, Any] = self._storage.call(
            lambda s: s.get_study_user_attrs(self._study)
        )
        if self._outages != self._storage.outages:
            self._outages = self._storage.outages
            self._seen.clear()
        self._looked = time.monotonic()
        for name, value in attributes.items():
            worker = name.removeprefix(_PREFIX)
            if name.startswith(_PREFIX) and self._seen.get(worker, (None,))[0] != value[0]:
                self._seen[worker] = value[0], self._looked

    def is_alive(self, worker: str) -> bool:
        """As of the last look: what passed since says nothing about the worker."""
        number, since = self._seen.get(worker, (_LEFT, 0.0))
        return number != _LEFT and self._looked - since < self._storage.pace.lease

    def count(self) -> int:
        """Of those that seem to be there, at a first look."""
        self.observe()
        return len(self.others())

    def is_anybody_here(self) -> bool:
        """Whether another one lives: as soon as one says so, or when the leases of all are over."""
        self.observe()
        first = dict(self._seen)
        while others := self.others():
            if any(self._seen[worker] != first.get(worker) for worker in others):
                return True
            time.sleep(self._storage.pace.look)
            self.observe()
        return False

    def others(self) -> list[str]:
        return [w for w in self._seen if w != self.me and self.is_alive(w)]
