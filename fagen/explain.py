"""Why a stored config won, in facts and in text: what it is, how near to the ceiling, what else was
tried, what the rules kept out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fagen.errors import StoreError
from fagen.families.base import Family, Space
from fagen.model import Candidate, Entry, Problem
from fagen.render import Renderer
from fagen.store import Store, candidate, staleness
from fagen.target import Target
from fagen.workload import Workload


def entry_for(
    store: Store, problem: Problem, target: Target, workload: Workload, given: bool
) -> Entry:
    """The entry that would be used; when sizes were given, the entry of exactly these."""
    entry = store.find(problem, target, workload)
    sizes = str(workload)
    if entry is None or (given and str(entry.workload) != sizes):
        had = "" if entry is None else f"; the nearest is {entry.workload}"
        raise StoreError(
            f"nothing was learned about {problem} on {target.name}"
            + (f" for {sizes}{had}" if given else ""),
            f"fagen tune {problem}" + (f" --workload {sizes}" if given else ""),
        )
    return entry


def explain(
    entry: Entry, families: Sequence[Family], renderer: Renderer, ceiling_tflops: float | None
) -> dict[str, Any]:
    """Everything that is known about the choice. ``ceiling_tflops``: of a large matrix product."""
    kernel = candidate(entry, families)
    how = kernel.family.kernel(entry.problem.op)
    default = kernel.family.default(entry.problem, entry.target)
    legal, removed = Space(entry.problem, entry.target, kernel.family).census()
    moved = how.bytes_moved(kernel, entry.workload)
    seconds = entry.measurement.median_us * 1e-6
    return {
        "problem": entry.problem,
        "target": entry.target.name,
        "workload": entry.workload,
        "family": entry.family,
        "kept": entry.workload.kept(entry.problem) / entry.workload.scores(entry.problem),
        "stale": staleness(entry, renderer, families),
        "knobs": [
            {"name": name, "value": value, "default": getattr(default.config, name),
             "says": type(kernel.config).__dataclass_fields__[name].metadata["says"]}
            for name, value in asdict(kernel.config).items()
        ],
        "result": entry.measurement,
        "ceiling": {
            "tflops": ceiling_tflops,
            "share": entry.measurement.tflops / ceiling_tflops if ceiling_tflops else None,
        },
        "memory": {
            "footprint_bytes": how.footprint(kernel) or entry.binary.get("shared_bytes", 0),
            "l1_bytes": entry.target.l1_bytes,
            "l2_bytes": entry.target.l2_bytes,
            "shared_bytes": entry.target.shared_bytes,
            "moved_bytes": moved,
            "least_bytes": entry.workload.min_bytes(entry.problem),
            "gb_s": moved / seconds * 1e-9,
            "flops_per_byte": entry.workload.flops(entry.problem) / moved,
        },
        "binary": entry.binary,
        "runners_up": [_runner_up(runner, kernel) for runner in entry.runners_up],
        "space": {"points": Space(entry.problem, entry.target, kernel.family).size,
                  "legal": legal, "removed_by_rule": removed},
        "provenance": entry.provenance,
    }


def _runner_up(runner: dict[str, Any], winner: Candidate) -> dict[str, Any]:
    """With the knobs in which it differs; all of them if it is of another family."""
    config = runner["config"]
    same_family = runner["family"] == winner.family.name
    differs = {
        name: value for name, value in config.items()
        if not same_family or value != getattr(winner.config, name, None)
    }
    return runner | {"differs": differs}
