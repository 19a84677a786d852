"""Verbs about past searches: report, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fagen import paths
from fagen.cli import options as opt
from fagen.cli import session
from fagen.cli.knowledge import Tuned
from fagen.cli.output import print_json
from fagen.errors import FagenError, StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fagen.history import Search
    from fagen.model import Entry, Problem

Problems = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PROBLEM]...", help="Default: all that were tuned here.",
                   show_default=False),
]


def report(
    problems: Problems = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The page.")
    ] = Path("report.html"),
    tuned: Tuned = None,
    ceiling: Annotated[
        bool,
        typer.Option("--ceiling/--no-ceiling", help="Time large matrix products to compare with."),
    ] = True,
    as_json: opt.Json = False,
) -> None:
    """Write one HTML page: searches over time, knobs, failures, final laps, roofline."""
    from fagen.families import FAMILIES
    from fagen.report import Page

    chosen, found = _searches(problems)
    entries = [e for e in session.store(tuned).entries() if not chosen or e.problem in chosen]
    if not found and not entries:
        raise _nothing(chosen)
    page = Page(found, entries, FAMILIES, _ceilings(entries) if ceiling else {})
    _write(output, page.html())
    if as_json:
        print_json(report=output, searches=len(found), entries=len(entries))
    else:
        print(output)


def export(
    problems: Problems = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT",
                          help="t4 (JSON that auto-tuners share) or csv."),
    ] = "t4",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: stdout."),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Write every candidate that was tried, and what came of it, for other tools."""
    from fagen.export import FORMATS
    from fagen.export import export as convert

    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}", f"one of: {', '.join(FORMATS)}")
    if as_json and output is None:
        raise UsageError("--json says where the export went", "give -o FILE; t4 is JSON already")
    chosen, found = _searches(problems)
    if not found:
        raise _nothing(chosen)
    text = convert(found, form)
    if output is None:
        sys.stdout.write(text)
        return
    _write(output, text)
    candidates = sum(len(search.told) for search in found)
    if as_json:
        print_json(export=output, format=form, searches=len(found), candidates=candidates)
    else:
        print(output)


def _searches(slugs: Sequence[str] | None) -> tuple[list[Problem], tuple[Search, ...]]:
    from fagen.history import searches
    from fagen.model import Problem

    chosen = [Problem.parse(slug) for slug in slugs or ()]
    return chosen, searches(paths.data() / "journals", chosen)


def _nothing(chosen: Sequence[Problem]) -> StoreError:
    names = " ".join(map(str, chosen))
    return StoreError(
        f"no search of {names or 'any problem'} is kept in {paths.data() / 'journals'}",
        f"fagen tune {names or 'PROBLEM'}",
    )


def _ceilings(entries: Sequence[Entry]) -> dict[tuple[str, str], float]:
    """Of the devices that are here; each dtype is timed once."""
    from fagen import devices
    from fagen.ceiling import matmul_tflops

    measured: dict[tuple[str, str], float] = {}
    here = [devices.host(), *devices.gpus().gpus]
    for entry in entries:
        key = entry.target.name, entry.problem.dtype
        device = next((d for d in here if d.target.facts() == entry.target.facts()), None)
        if device and key not in measured:
            try:
                measured[key] = matmul_tflops(device.name, key[1], device.target.cores)
            except FagenError as error:
                sys.stderr.write(f"no ceiling: {error.message}\n")
    return measured


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error
