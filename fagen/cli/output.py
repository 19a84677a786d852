"""How results are printed: text for people, one JSON object for programs, both on stdout."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fagen.model import Problem
from fagen.workload import Workload

SCHEMA = 1  # of every JSON object that fagen prints


def print_json(**values: Any) -> None:
    print(json.dumps({"schema": SCHEMA} | plain(values), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """Model objects as JSON values. Problems and workloads are their slugs."""
    if isinstance(value, Problem | Workload | Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns; numbers to the right."""
    lines = [list(header), *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(_align(cell, width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def pairs(rows: dict[str, Any]) -> str:
    width = max(map(len, rows), default=0)
    return "\n".join(f"{name:<{width}}  {_cell(value)}" for name, value in rows.items())


def thrown_away(search: dict[str, Any]) -> str:
    """What a search did not count, because the device was not its own alone."""
    rounds = search.get("disturbed_rounds", 0)
    parts = [f"{search['thrown_away']} timings"] if search.get("thrown_away") else []
    parts += [f"{rounds} of {search['rounds']} rounds"] if rounds else []
    return " and ".join(parts) or "nothing"


def size(count: float) -> str:
    if count < 1024:
        return f"{count:.0f} bytes"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.4g} {unit}"
    return f"{count / 1024:.4g} GiB"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _align(cell: str, width: int) -> str:
    number = cell.replace(".", "", 1).removeprefix("-").isdigit()
    return cell.rjust(width) if number else cell.ljust(width)
