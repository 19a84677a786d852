"""The verb that compares: bench."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fagen.cli import options as opt
from fagen.cli.output import print_json
from fagen.errors import UsageError


def bench(
    suite: Annotated[
        str, typer.Option(
            "--suite", metavar="NAME", help="Which cells. An unknown name lists all."),
    ] = "core",
    match: Annotated[
        str, typer.Option("--match", metavar="TEXT", help="Only cells whose name holds TEXT.")
    ] = "",
    gpu: opt.Gpu = None,
    package: Annotated[
        Path | None,
        typer.Option("--package", metavar="DIR", help="An emitted package: ours, in the race."),
    ] = None,
    fa3: Annotated[
        Path | None, typer.Option("--fa3", metavar="FILE", help="A FlashAttention-3 library.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Contender. Repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Samples per cell.")] = 20,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", help="Per contender and cell, at most.")
    ] = 0.6,
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", help="On a CPU. 0: torch's choice.")
    ] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the result here.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it (.png or .svg).")
    ] = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Time a suite of shapes: an emitted package against torch and other libraries, in turns."""
    from fagen import bench as engine
    from fagen import devices
    from fagen.suites import suite as cells_of

    opt.positive("--rounds", rounds)
    opt.positive("--seconds", seconds)
    if threads < 0:
        raise UsageError(f"--threads {threads} is negative", "0 leaves torch's choice")
    for path, name in ((package, "--package"), (fa3, "--fa3")):
        if path is not None and not path.exists():
            raise UsageError(f"{name} {path}: there is no such file or folder")
    cells = [cell for cell in cells_of(suite) if match in str(cell)]
    if not cells:
        raise UsageError(f"no cell of the suite {suite} holds {match!r}",
                         f"for example {cells_of(suite)[0]}")
    choices = engine.BenchOptions(
        device=devices.pick(gpu).name,
        package=str(package.resolve()) if package else None,
        fa3=str(fa3.resolve()) if fa3 else None,
        only=tuple(only or ()), rounds=rounds, seconds=seconds, threads=threads,
    )

    def progress(record: dict[str, object]) -> None:
        if not quiet:
            sys.stderr.write(f"{engine.cell_of(record)}  {record['us']}\n")

    def save(result: dict[str, object]) -> None:
        if output is not None:
            engine.write(result, output)

    result = engine.run_suite(cells, choices, progress, save=save)
    if plot is not None:
        from fagen.plots import draw

        draw(result, plot)
    if as_json:
        print_json(**result)
    else:
        print(engine.markdown(result), end="")
