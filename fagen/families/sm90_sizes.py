"""How the sm90 kernels lay out head dims and tiles in shared memory, and how they load them."""

from __future__ import annotations

from fagen.families.plan import TensorMap

L2_FETCH = "bytes that a load of a tile brings into the L2 cache at once"  # what a knob says


def round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def padded(dim: int) -> int:
    """A head dim as the multiplies see it."""
    return round_up(dim, 16)


def swizzle(columns: int) -> int:
    """Bytes of a panel row: the widest swizzle that the columns fill exactly."""
    return 128 if columns % 64 == 0 else 64 if columns % 32 == 0 else 32


def panels(columns: int) -> int:
    return columns * 2 // swizzle(columns)


def tile_map(tensor: str, dim: int, rows: int, l2_fetch: int) -> TensorMap:
    """A view of the tensor in tiles of some rows, as wide as their swizzle."""
    width = swizzle(padded(dim))
    return TensorMap(tensor, box_dim=width // 2, box_rows=rows, swizzle=width, head_dim=dim,
                     l2_fetch=l2_fetch)
