"""The verb that pictures a pattern: draw."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from fagen.cli import options as opt
from fagen.cli.output import pairs, print_json
from fagen.errors import SetupError, UsageError
from fagen.patterns import PATTERNS, Tiles, parse_pattern

FORMATS = (".png", ".svg", ".pdf")
LARGEST = 16384  # queries or keys of a picture


def draw(
    pattern: Annotated[str, typer.Argument(
        metavar="PATTERN", show_default=False,
        help="As in a problem's name: " + ", ".join(row.slug for row in PATTERNS) + ".",
    )],
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", metavar="FILE", help="A .png, .svg or .pdf. Default: PATTERN.png.",
    )] = None,
    seqlen: Annotated[int, typer.Option("--seqlen", metavar="N", help="Queries.")] = 1024,
    seqlen_kv: opt.SeqlenKv = None,
    tile: Annotated[str, typer.Option(
        "--tile", metavar="ROWSxKEYS", help="Queries and keys of one tile.",
    )] = "64x64",
    pattern_file: opt.PatternFile = None,
    as_json: opt.Json = False,
) -> None:
    """Picture a sparsity pattern and its tiles: skipped, partial, full."""
    shape = parse_pattern(pattern)
    sizes = seqlen, seqlen_kv or seqlen
    if not all(1 <= n <= LARGEST for n in sizes):
        raise UsageError(f"cannot picture {sizes[0]} x {sizes[1]} elements",
                         f"1 to {LARGEST} queries and keys")
    path = output or Path(f"{shape}.png")
    if path.suffix not in FORMATS:
        raise UsageError(f"cannot draw a {path.suffix or 'file without a suffix'}",
                         f"one of: {', '.join(FORMATS)}")
    try:
        from fagen.draw import draw as picture
    except ModuleNotFoundError as missing:
        raise SetupError(f"{missing.name} is missing", "pip install 'fagen[bench]'") from missing
    tiles = shape.tiles(*sizes, *_tile(tile))
    try:
        picture(shape, *sizes, tiles, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    counts = {name: tiles.count(kind) for name, kind in (
        ("skipped", Tiles.SKIPPED), ("partial", Tiles.PARTIAL), ("full", Tiles.FULL))}
    if as_json:
        print_json(pattern=str(shape), kept=shape.share(*sizes), tiles=counts,
                   computed=tiles.share, picture=path)
        return
    print(pairs({
        "pattern": f"{shape} of {sizes[0]} queries and {sizes[1]} keys",
        "kept": f"{shape.share(*sizes):.2%} of the scores",
        "tiles": f"{tiles.share:.2%} of {tiles.kinds.size} computed: " + ", ".join(
            f"{count} {name}" for name, count in counts.items()),
        "picture": str(path),
    }))


def _tile(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text, re.ASCII)
    if match is None:
        raise UsageError(f"cannot read the tile {text!r}", "ROWSxKEYS, for example 128x64")
    return int(match[1]), int(match[2])
