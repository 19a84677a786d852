"""The cells that `fagen bench` times: which sizes, which masks, which passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from fagen.errors import UsageError
from fagen.model import Problem
from fagen.workload import Workload

MODES = ("fwd", "bwd", "fwdbwd")


@dataclass(frozen=True)
class Cell:
    """One shape in one mode. The field names are those of the result files."""

    tag: str
    mode: str
    dtype: str
    head_dim: int
    batch: int
    heads_q: int
    heads_kv: int
    seq_q: int
    seq_kv: int
    causal: bool = False
    window: int | None = None
    total: int = 0  # rows of packed sequences, the longest of them seq_q long; 0: not packed
    mask: str = ""  # another pattern, by its name
    density: int = 0  # percent of it, where the mask comes with the call
    deterministic: bool = False  # the backward

    @property
    def pattern(self) -> str:
        if self.mask:
            return self.mask
        if self.window is not None:
            return f"window{self.window}"
        return "causal" if self.causal else "dense"

    def problem(self, op: str) -> Problem:
        features = "+deterministic" * (self.deterministic and op == "bwd")
        features += "+varlen" * bool(self.total)
        return Problem.parse(f"{op}-{self.dtype}-d{self.head_dim}-{self.pattern}{features}")

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What must be tuned for ours to take part: the backward needs a forward's LSE."""
        ops = ("fwd",) if self.mode == "fwd" else ("fwd", "bwd")
        return tuple(self.problem(op) for op in ops)

    @property
    def workload(self) -> Workload:
        sizes = (self.batch, self.heads_q, self.heads_kv, self.seq_q, self.seq_kv)
        return Workload(
            *sizes, total_q=self.total, total_kv=self.total, density=self.density
        )

    @property
    def ends(self) -> list[int]:
        """Where packed sequences begin, and the last one ends."""
        return list(accumulate((q for q, _ in self.workload.lengths()), initial=0))

    @property
    def flops(self) -> int:
        ops = ("fwd", "bwd") if self.mode == "fwdbwd" else (self.mode,)
        return sum(self.workload.flops(self.problem(op)) for op in ops)

    def __str__(self) -> str:
        steady = "+deterministic" * self.deterministic
        return f"{self.mode}-{self.dtype}-d{self.head_dim}-{self.pattern}{steady} {self.workload}"

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def _square(
    tag: str, mode: str, dim: int, batch: int, heads: int, seq: int, **more: Any
) -> Cell:
    kv = more.pop("heads_kv", heads)
    dtype = more.pop("dtype", "bf16")
    return Cell(tag, mode, dtype, dim, batch, heads, kv, seq, seq, **more)


def _core() -> Iterator[Cell]:
    """16K tokens and a hidden size of 2048, split into batch and sequence in six ways."""
    for dim in (64, 128, 256):
        for seq in (512, 1024, 2048, 4096, 8192, 16384):
            for causal in (False, True):
                for mode in ("fwd", "bwd"):
                    yield _square("core", mode, dim, 16384 // seq, 2048 // dim, seq, causal=causal)


def _extra() -> Iterator[Cell]:
    """Head dimensions between the powers of two, grouped queries, a window, a long sequence."""
    for mode in ("fwd", "bwd"):
        for dim in (80, 96, 192):
            for causal in (False, True):
                yield _square("dims", mode, dim, 2, 16, 8192, causal=causal)
        yield _square("gqa", mode, 128, 2, 32, 8192, heads_kv=8, causal=True)
        yield _square("win", mode, 128, 1, 16, 16384, causal=True, window=1024)
    yield _square("long", "fwd", 128, 1, 16, 65536, causal=True)


def _cpu_core() -> Iterator[Cell]:
    for dim in (64, 128):
        for seq in (512, 1024, 2048, 4096):
            for causal in (False, True):
                for mode in ("fwd", "fwdbwd"):
                    yield _square("core", mode, dim, 1, 8, seq, causal=causal, dtype="fp32")
                yield _square("bf16", "fwd", dim, 1, 8, seq, causal=causal, dtype="bf16")


def _packed() -> Iterator[Cell]:
    """64K rows of sequences with a long tail: 1K in the mean, 16K at most."""
    for mode in ("fwd", "bwd"):
        yield _square("packed", mode, 128, 64, 16, 16384, causal=True, total=65536)


def _cpu_packed() -> Iterator[Cell]:
    for mode in ("fwd", "fwdbwd"):
        yield _square("packed", mode, 64, 32, 8, 2048, causal=True, dtype="fp32", total=8192)


def _autograd() -> Iterator[Cell]:
    """A forward and its backward, as training has them."""
    for dim in (64, 128):
        for seq in (2048, 4096, 8192, 16384):
            yield _square("autograd", "fwdbwd", dim, 16384 // seq, 2048 // dim, seq, causal=True)


def _deterministic() -> Iterator[Cell]:
    """What it costs that a backward repeats bit by bit."""
    for dim in (64, 128):
        for causal in (False, True):
            for steady in (False, True):
                yield _square("deterministic", "bwd", dim, 2, 2048 // dim, 8192, causal=causal,
                              deterministic=steady)


def _dtypes() -> Iterator[Cell]:
    """fp16 beside bf16."""
    for dim in (64, 128, 256):
        for causal in (False, True):
            for dtype in ("bf16", "fp16"):
                yield _square("dtypes", "fwd", dim, 2, 2048 // dim, 8192, causal=causal,
                              dtype=dtype)


def _sparse() -> Iterator[Cell]:
    """16K rows: lists of blocks at three densities, named patterns, and dense for their ideal."""
    def cell(tag: str, mode: str, mask: str, density: int = 0) -> Cell:
        return _square(tag, mode, 128, 1, 16, 16384, mask=mask, density=density)

    for mode in ("fwd", "fwdbwd"):
        for density in (50, 25, 10):
            yield cell("blocks", mode, "blocks128", density)
        for mask in ("window1024", "longformer-w256-g64", "bigbird-w256-g64-r192-seed7",
                     "butterfly-b128"):
            yield cell("static", mode, mask)
        yield cell("ideal", mode, "dense")


def _shares() -> Iterator[Cell]:
    """Time against work: the same blocks, fewer and fewer of them."""
    for size in (128, 32):
        for mode in ("fwd", "bwd"):
            for density in (100, 75, 50, 25, 10, 5):
                yield _square("shares", mode, 128, 1, 16, 16384, mask=f"blocks{size}",
                              density=density)


def _path256() -> Iterator[Cell]:
    """65,536 rows, with the paper's block-sparse pattern and without."""
    for mask in ("butterfly-b128", "dense"):
        yield _square("path256", "fwdbwd", 64, 1, 16, 65536, mask=mask)


SUITES: dict[str, Callable[[], Iterator[Cell]]] = {
    "core": _core,
    "extra": _extra,
    "packed": _packed,
    "autograd": _autograd,
    "deterministic": _deterministic,
    "dtypes": _dtypes,
    "sparse": _sparse,
    "shares": _shares,
    "path256": _path256,
    "cpu-core": _cpu_core,
    "cpu-packed": _cpu_packed,
}


def suite(name: str) -> list[Cell]:
    try:
        return list(SUITES[name]())
    except KeyError:
        raise UsageError(f"unknown suite {name!r}", f"suites: {', '.join(SUITES)}") from None
