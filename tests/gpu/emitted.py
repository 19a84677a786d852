"""Default kernels for the GPU of this machine, emitted for the tests of one module."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fagen import paths
from fagen.build import Builder, Cache
from fagen.emit import Shipped, emit
from fagen.families import families_for
from fagen.kerneltable import Part
from fagen.model import Entry, Measurement, Problem
from fagen.render import Renderer
from fagen.target import Target
from fagen.workload import Workload


def emitted(folder: Path, slugs: Sequence[str], target: Target) -> Path:
    renderer, builder = Renderer(paths.templates()), Builder(Cache(paths.cache()))

    def shipped(slug: str) -> Shipped:
        problem = Problem.parse(slug)
        family = families_for(problem, target)[0]
        candidate = family.default(problem, target)
        source = renderer.render(candidate)
        part = Part(candidate, source, builder.build(candidate, source, allow_spills=True))
        return Shipped(part, Entry(problem, target, Workload(2, 8, 8, 1024, 1024), family.name, {},
                                   Measurement(1, 1, 1, 1, 0, "")))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return emit(list(pool.map(shipped, slugs)), folder)
