"""The objects that are made once per command and passed down."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fagen import paths

if TYPE_CHECKING:
    from fagen.build import Builder
    from fagen.devices import Device
    from fagen.pool import Pool
    from fagen.render import Renderer
    from fagen.storage import Storage
    from fagen.store import Store


def renderer() -> Renderer:
    from fagen.render import Renderer

    return Renderer(paths.templates())


def builder() -> Builder:
    from fagen.build import Builder, Cache

    return Builder(Cache(paths.cache()))


def store(write: Path | None = None) -> Store:
    """What was shipped with fagen, above it what was learned here, above that the folder given."""
    from fagen.families import FAMILIES
    from fagen.store import Store, staleness

    mine, today = paths.data() / "tuned", renderer()
    return Store(
        [mine, paths.tuned()], write or mine, lambda entry: bool(staleness(entry, today, FAMILIES))
    )


def storage(url: str) -> Storage:
    from fagen.storage import Storage

    return Storage(url)


@contextmanager
def pool(device: Device, jobs: int | None = None) -> Iterator[Pool]:
    """Workers on the device, and a folder for their files that goes when they go."""
    from fagen.pool import Pool
    from fagen.scratch import scratch

    jobs = jobs or len(os.sched_getaffinity(0))
    with (
        scratch(paths.cache()) as folder,
        Pool(
            builder(), renderer(), device, jobs=jobs, scratch=folder, on_wait=_say_once
        ) as workers,
    ):
        yield workers


@functools.lru_cache
def _say_once(text: str) -> None:
    sys.stderr.write(f"{text}\n")
