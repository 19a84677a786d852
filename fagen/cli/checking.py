"""The verb that looks at the winners again: check."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fagen.cli import options as opt
from fagen.cli import session
from fagen.cli.knowledge import Tuned
from fagen.cli.output import print_json, table
from fagen.errors import StoreError

if TYPE_CHECKING:
    from fagen.recheck import Finding


def check(
    problems: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROBLEM]...", help="Default: all that was tuned on this device.",
                       show_default=False),
    ] = None,
    gpu: opt.Gpu = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", help="Turns of winner and default.")
    ] = 20,
    tuned: Tuned = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> int:
    """Time the stored winners again, beside the defaults; say which moved.

    Exits with 1 when a winner moved, lost to its default or failed.
    """
    from fagen import devices
    from fagen.families import FAMILIES
    from fagen.model import Problem
    from fagen.recheck import recheck

    opt.positive("--rounds", rounds)
    chosen = {Problem.parse(slug) for slug in problems or ()}
    device = devices.pick(gpu)
    entries = [
        e for e in session.store(tuned).entries()
        if e.target.facts() == device.target.facts() and (not chosen or e.problem in chosen)
    ]
    if not entries:
        names = " ".join(sorted(map(str, chosen)))
        raise StoreError(f"nothing was learned about {names or 'any problem'} on {device.says}",
                         f"fagen tune {names or 'PROBLEM'}")
    found: list[Finding] = []
    with session.pool(device) as pool:
        for entry in entries:
            if not quiet:
                sys.stderr.write(f"{entry.problem} {entry.workload}\n")
            found.append(recheck(entry, FAMILIES, pool, rounds, device.driver))
    news = sorted({str(f.entry.problem) for f in found if f.is_news})
    if as_json:
        print_json(checked=[
            {"problem": f.entry.problem, "workload": f.entry.workload, "verdict": f.verdict,
             "says": f.says, "stored_us": f.entry.measurement.median_us, "us": f.median_us,
             "change": f.change, "machine": f.machine, "against_default": f.against_default,
             "updated": f.updated} for f in found
        ], tune_again=news)
        return int(bool(news))
    print(table(("problem", "workload", "stored us", "us", "", ""), map(_row, found)))
    for line in sorted({line for f in found for line in f.updated}):
        print(line)
    if news:
        print(f"next: fagen tune --fresh {' '.join(news)}")
    return int(bool(news))


def _row(f: Finding) -> tuple[object, ...]:
    return (f.entry.problem, f.entry.workload, f"{f.entry.measurement.median_us:.1f}",
            f"{f.median_us:.1f}" if f.median_us else "-", f.verdict, f.says)
