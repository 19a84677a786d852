"""The verb that tells a changed text from changed machine code: refresh."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fagen import paths
from fagen.cli import options as opt
from fagen.cli import session
from fagen.cli.output import print_json, table
from fagen.errors import StoreError

if TYPE_CHECKING:
    from fagen.builds import Builds
    from fagen.refresh import Finding


def refresh(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", show_default=False,
                       help="Folders of entries. Default: what was learned here."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", help="Builds at a time. Default: one for each core."),
    ] = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Build stale entries; those with the machine code that was measured are fresh again."""
    from fagen.build import BUILD_SECONDS
    from fagen.builds import Builds
    from fagen.scratch import scratch

    if jobs is not None:
        opt.positive("--jobs", jobs)
    roots = folders or [paths.data() / "tuned"]
    for root in roots:
        if folders and not root.is_dir():
            raise StoreError(f"{root} is not a folder", "name a folder of entries, such as tuned")
    found: dict[Path, tuple[Finding, ...]] = {}
    with scratch(paths.cache()) as made:
        builds = Builds(
            session.builder(), session.renderer(), jobs or len(os.sched_getaffinity(0)), made,
            BUILD_SECONDS, allow_spills=True,
        )
        try:
            for root in roots:
                found[root] = _refresh(root, builds, quiet)
        finally:
            builds.close()
    _print(found, as_json)


def _refresh(root: Path, builds: Builds, quiet: bool) -> tuple[Finding, ...]:
    from fagen.families import FAMILIES
    from fagen.refresh import refresh
    from fagen.store import Store

    def say(done: int, total: int, finding: Finding) -> None:
        entry = finding.entry
        sys.stderr.write(f"{done}/{total}  {entry.problem} {entry.workload} on "
                         f"{entry.target.name}: {finding.verdict}\n")

    return refresh(Store([], root), FAMILIES, builds, (lambda *said: None) if quiet else say)


def _print(found: dict[Path, tuple[Finding, ...]], as_json: bool) -> None:
    rows = [(root, f) for root, findings in found.items() for f in findings]
    counts = Counter(f.verdict for _, f in rows)
    if as_json:
        print_json(counts=counts, entries=[
            {"folder": root, "problem": f.entry.problem, "target": f.entry.target.name,
             "workload": f.entry.workload, "verdict": f.verdict, "says": f.says}
            for root, f in rows
        ])
    elif not rows:
        print("no entry is stale")
    else:
        print(table(
            ("problem", "target", "workload", "", ""),
            ((f.entry.problem, f.entry.target.name, f.entry.workload, f.verdict, f.says)
             for _, f in rows),
        ))
        print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
