"""Launch plans, the Python side of runtime/fagen_plan.h: grids, shared memory, tensor maps and
scratch memory of one call, as products of its sizes."""

from __future__ import annotations

from dataclasses import dataclass

from fagen.workload import Workload

FACTORS = ("one", "batch", "heads", "kv_heads", "q_tiles", "kv_tiles", "q_padded", "kv_padded")
TENSORS = ("q", "k", "v", "o", "dout", "dq", "dk", "dv")


@dataclass(frozen=True)
class Factor:
    kind: str  # one of FACTORS
    arg: int = 1

    def value(self, w: Workload) -> int:
        """A packed batch counts as one entry, whose tiles are its slots."""
        if w.packed:
            slots = w.total_q // self.arg + w.batch, w.total_kv // self.arg + w.batch
        else:
            slots = -(-w.seqlen_q // self.arg), -(-w.seqlen_kv // self.arg)
        (tiles_q, tiles_kv), entries = slots, 1 if w.packed else w.batch
        return {
            "one": self.arg,
            "batch": entries * self.arg,
            "heads": w.heads * self.arg,
            "kv_heads": w.kv_heads * self.arg,
            "q_tiles": tiles_q,
            "kv_tiles": tiles_kv,
            "q_padded": tiles_q * self.arg,
            "kv_padded": tiles_kv * self.arg,
        }[self.kind]


@dataclass(frozen=True)
class Product:
    """A product of at most five factors; the empty product is 1."""

    factors: tuple[Factor, ...] = ()

    def value(self, w: Workload) -> int:
        result = 1
        for factor in self.factors:
            result *= factor.value(w)
        return result


def product(**factors: int) -> Product:
    """``product(q_tiles=128, heads=1, batch=1)``: one tile count times heads times batch."""
    for name in factors:
        if name not in FACTORS:
            raise ValueError(f"unknown factor {name!r}")
    return Product(tuple(Factor(name, arg) for name, arg in factors.items()))


@dataclass(frozen=True)
class TensorMap:
    """A TMA view of one tensor: box (box_dim, box_rows), swizzle in bytes, and how many bytes a
    load brings into the L2 cache at once."""

    tensor: str  # one of TENSORS
    box_dim: int
    box_rows: int
    swizzle: int
    head_dim: int
    l2_fetch: int = 256  # or 128, 64, 0: what is asked for


@dataclass(frozen=True)
class Step:
    """One launch of a plan."""

    symbol: str
    grid: tuple[Product, Product, Product]
    block: int
    shared_bytes: int = 0
    ctas_per_sm: int = 0  # not 0: persistent, grid.x at most SMs * ctas_per_sm
    overlap: bool = False  # may start before the step before it ends
    maps: tuple[TensorMap, ...] = ()


@dataclass(frozen=True)
class Region:
    """Scratch memory, in bytes."""

    bytes: Product
    zero: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything the launcher needs. Host kernels have no steps: one call does all the work."""

    steps: tuple[Step, ...] = ()
    regions: tuple[Region, ...] = ()

    def workspace_bytes(self, w: Workload) -> int:
        return sum(-(-r.bytes.value(w) // 256) * 256 for r in self.regions)
