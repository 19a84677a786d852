"""Pictures of a result file: TFLOP/s over sequence length, a panel per mode, head dim and mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fagen.bench import OURS, cell_of
from fagen.suites import Cell


def panels(result: dict[str, Any]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """title -> contender -> (sequence length, TFLOP/s), lengths ascending."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in result["cells"]:
        cell = cell_of(record)
        lines = found.setdefault(_title(cell), {})
        for name, us in record["us"].items():
            lines.setdefault(name, []).append((cell.seq_q, cell.flops / us * 1e-6))
    for lines in found.values():
        for points in lines.values():
            points.sort()
    return found


def _title(cell: Cell) -> str:
    return f"{cell.mode} {cell.dtype} D{cell.head_dim} {cell.pattern}"


def draw(result: dict[str, Any], path: Path) -> Path:
    """Write the picture; the suffix of the path chooses the format (.png, .svg)."""
    found = panels(result)
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.8 * rows), squeeze=False, constrained_layout=True
    )
    flat = [axis for line in axes for axis in line]
    for axis, (title, lines) in zip(flat, found.items(), strict=False):
        for name, points in lines.items():
            xs, ys = zip(*points, strict=True)
            ours = name == OURS
            axis.plot(xs, ys, marker="o", label=name, linewidth=2.4 if ours else 1.0,
                      zorder=3 if ours else 2)
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in flat[len(found):]:
        axis.axis("off")
    handles, labels = flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.supxlabel("sequence length")
    figure.supylabel("TFLOP/s")
    figure.suptitle(str(result.get("gpu") or result.get("cpu") or ""))
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
