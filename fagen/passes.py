"""One pass of a benchmark's cell, whoever computes it: its tensors, and what is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fagen.suites import Cell

Tensor = torch.Tensor
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Unserved(Exception):
    """This contender cannot do this cell; the text says why."""


@dataclass(frozen=True)
class Inputs:
    """One cell's tensors, made once and shared by all contenders. Packed sequences stand one after
    another in a batch of one."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor

    @classmethod
    def random(cls, cell: Cell, device: str) -> Inputs:
        generator = torch.Generator(device).manual_seed(cell.seq_q + cell.head_dim)

        def normal(heads: int, seq: int) -> Tensor:
            batch, seq = (1, cell.total) if cell.total else (cell.batch, seq)
            shape = (batch, heads, seq, cell.head_dim)
            return torch.randn(shape, device=device, generator=generator).to(DTYPES[cell.dtype])

        return cls(
            normal(cell.heads_q, cell.seq_q),
            normal(cell.heads_kv, cell.seq_kv),
            normal(cell.heads_kv, cell.seq_kv),
            normal(cell.heads_q, cell.seq_q),
        )


def one_pass(cell: Cell, attend: Attend, x: Inputs) -> Callable[[], Any]:
    """One forward, one backward alone, or both, through autograd."""
    if cell.mode == "fwd":
        return lambda: attend(x.q, x.k, x.v)
    leaves = [t.detach().requires_grad_() for t in (x.q, x.k, x.v)]
    if cell.mode == "fwdbwd":
        return lambda: torch.autograd.grad(attend(*leaves), leaves, x.dout)
    out = attend(*leaves)
    return lambda: torch.autograd.grad(out, leaves, x.dout, retain_graph=True)


def one_by_one(cell: Cell, attend: Attend) -> Attend:
    """Packed sequences for those who take them one after another only."""
    if not cell.total:
        return attend
    lengths = [q for q, _ in cell.workload.lengths()]

    def loop(*tensors: Tensor) -> Tensor:
        split: Any = torch.split
        sequences = zip(*(split(t, lengths, 2) for t in tensors), strict=True)
        return torch.cat([attend(q, k, v) for q, k, v in sequences if q.numel()], 2)

    return loop


def rows(x: Inputs) -> tuple[Tensor, ...]:
    """Packed sequences as [rows, heads, dim]."""
    return tuple(t[0].transpose(0, 1).contiguous() for t in (x.q, x.k, x.v, x.dout))


def ends(cell: Cell, x: Inputs) -> Tensor:
    return torch.tensor(cell.ends, dtype=torch.int32, device=x.q.device)
