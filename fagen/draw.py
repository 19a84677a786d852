"""Pictures of a sparsity pattern: what stays, and which tiles a kernel skips for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from fagen.patterns import Pattern, Tiles

# What of a tile is dropped and what is kept, by kind: skipped, partial, full.
_COLOURS = ("#ffffff", "#ffffff", "#fbe3c0", "#d9822b", "#fbe3c0", "#2b6ca3")
_GRID_TILES = 40  # no lines between more tiles than this
_LABELS = {Tiles.SKIPPED: "skipped", Tiles.PARTIAL: "partial", Tiles.FULL: "full"}


def cells(pattern: Pattern, seqlen_q: int, seqlen_kv: int, tiles: Tiles) -> Any:
    """Per element: twice the kind of its tile, and one more if it stays."""
    kinds = tiles.kinds.repeat(tiles.rows, 0).repeat(tiles.keys, 1)[:seqlen_q, :seqlen_kv]
    return 2 * kinds + pattern.mask(seqlen_q, seqlen_kv)


def draw(pattern: Pattern, seqlen_q: int, seqlen_kv: int, tiles: Tiles, path: Path) -> Path:
    """Write a picture; the suffix says which format."""
    figure, axes = plt.subplots(figsize=(7, 7 * min(max(seqlen_q / seqlen_kv, 0.4), 1.6) + 1))
    axes.imshow(
        cells(pattern, seqlen_q, seqlen_kv, tiles), cmap=ListedColormap(_COLOURS),
        vmin=-0.5, vmax=len(_COLOURS) - 0.5, interpolation="nearest",
        extent=(0, seqlen_kv, seqlen_q, 0),
    )
    if max(tiles.kinds.shape) <= _GRID_TILES:
        for q in range(0, seqlen_q, tiles.rows):
            axes.axhline(q, color="#cccccc", linewidth=0.4)
        for k in range(0, seqlen_kv, tiles.keys):
            axes.axvline(k, color="#cccccc", linewidth=0.4)
    axes.set_xlabel("keys")
    axes.set_ylabel("queries")
    axes.set_title(
        f"{pattern}: {pattern.share(seqlen_q, seqlen_kv):.1%} kept, "
        f"{tiles.share:.1%} of {tiles.rows} x {tiles.keys} tiles computed"
    )
    handles = [
        Patch(facecolor=_COLOURS[2 * kind + 1], edgecolor="#999999",
              label=f"{label}: {tiles.count(kind)}")
        for kind, label in _LABELS.items()
    ]
    axes.legend(handles=handles, title="tiles", loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path
