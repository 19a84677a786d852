"""The other implementations that a result is compared with, and ours, as timed callables.

Runs in the child process of :mod:`fagen.bench`. Every contender is asked for the same thing: from
q, k, v [batch, heads, seqlen, dim] make a callable that does one pass and nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention

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


def _pass(cell: Cell, attend: Attend, x: Inputs) -> Callable[[], Any]:
    """One forward, one backward alone, or both, through autograd."""
    if cell.mode == "fwd":
        return lambda: attend(x.q, x.k, x.v)
    leaves = [t.detach().requires_grad_() for t in (x.q, x.k, x.v)]
    if cell.mode == "fwdbwd":
        return lambda: torch.autograd.grad(attend(*leaves), leaves, x.dout)
    out = attend(*leaves)
    return lambda: torch.autograd.grad(out, leaves, x.dout, retain_graph=True)


def _one_by_one(cell: Cell, attend: Attend) -> Attend:
    """Packed sequences for those who take them one after another only."""
    if not cell.total:
        return attend
    lengths = [q for q, _ in cell.workload.lengths()]

    def loop(*tensors: Tensor) -> Tensor:
        split: Any = torch.split
        sequences = zip(*(split(t, lengths, 2) for t in tensors), strict=True)
        return torch.cat([attend(q, k, v) for q, k, v in sequences if q.numel()], 2)

    return loop


def _separate(cell: Cell) -> None:
    if cell.total:
        raise Unserved("it takes no packed sequences")


def _rows(x: Inputs) -> tuple[Tensor, ...]:
    """Packed sequences as [rows, heads, dim]."""
    return tuple(t[0].transpose(0, 1).contiguous() for t in (x.q, x.k, x.v, x.dout))


def _ends(cell: Cell, x: Inputs) -> Tensor:
    return torch.tensor(cell.ends, dtype=torch.int32, device=x.q.device)


def _sdpa(backend: str) -> Callable[[Cell, Inputs], Callable[[], Any]]:
    def prepare(cell: Cell, x: Inputs) -> Callable[[], Any]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        if cell.window is not None:
            raise Unserved("torch SDPA has no sliding window")
        chosen = getattr(SDPBackend, backend)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(chosen):
                out: Tensor = F.scaled_dot_product_attention(
                    q, k, v, is_causal=cell.causal, enable_gqa=cell.heads_q != cell.heads_kv
                )
            return out

        return _pass(cell, _one_by_one(cell, attend), x)

    return prepare


def _standard(cell: Cell, x: Inputs) -> Callable[[], Any]:
    """Attention as written: the N x N matrix in memory."""
    _separate(cell)
    keep = torch.from_numpy(cell.problem("fwd").pattern.mask(cell.seq_q, cell.seq_kv))
    keep = keep.to(x.q.device)
    group = cell.heads_q // cell.heads_kv

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        out: Tensor = scores.masked_fill(~keep, float("-inf")).softmax(-1) @ v
        return out

    return _pass(cell, attend, x)


_compiled_flex: Any = None


def _flex(cell: Cell, x: Inputs) -> Callable[[], Any]:
    global _compiled_flex
    _separate(cell)
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if _compiled_flex is None:
        _compiled_flex = torch.compile(flex_attention, dynamic=False)
    left = cell.window if cell.window is not None else cell.seq_kv

    def keep(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k <= left)

    block_mask = None
    if cell.pattern != "dense":
        block_mask = create_block_mask(
            keep, None, None, cell.seq_q, cell.seq_kv, device=x.q.device.type
        )
    flex = _compiled_flex

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = flex(
            q, k, v, block_mask=block_mask, enable_gqa=cell.heads_q != cell.heads_kv
        )
        return out

    return _pass(cell, attend, x)


class FlashAttention3:
    """FlashAttention-3 from its compiled library; its layout is [batch, seqlen, heads, dim]."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        self.ops = torch.ops.flash_attn_3

    def __call__(self, cell: Cell, x: Inputs) -> Callable[[], Any]:
        q, k, v, dout = (t.transpose(1, 2).contiguous() for t in (x.q, x.k, x.v, x.dout))
        options: dict[str, Any] = {
            "softmax_scale": cell.head_dim**-0.5, "is_causal": cell.causal,
        }
        if cell.total:
            q, k, v, dout = _rows(x)
            options |= {"cu_seqlens_q": _ends(cell, x), "cu_seqlens_k": _ends(cell, x),
                        "max_seqlen_q": cell.seq_q, "max_seqlen_k": cell.seq_kv}
        if cell.window is not None:
            options |= {"window_size_left": cell.window, "window_size_right": 0}

        def forward() -> Any:
            return self.ops.fwd(q, k, v, **options)

        if cell.mode == "fwd":
            return forward
        out, lse = forward()[:2]
        if cell.mode == "bwd":
            return lambda: self.ops.bwd(dout, q, k, v, out, lse, **options)

        def both() -> Any:
            out, lse = forward()[:2]
            return self.ops.bwd(dout, q, k, v, out, lse, **options)

        return both


def _flash_attn_4(cell: Cell, x: Inputs) -> Callable[[], Any]:
    _separate(cell)
    interface = importlib.import_module("flash_attn.cute.interface")
    window = (cell.window, 0) if cell.window is not None else (None, None)
    rows = Inputs(*(t.transpose(1, 2).contiguous() for t in (x.q, x.k, x.v, x.dout)))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = interface.flash_attn_func(
            q, k, v, causal=cell.causal, window_size=window
        )[0]
        return out

    return _pass(cell, attend, rows)


class Ours:
    """The emitted package, called as its users call it."""

    def __init__(self, package: Path) -> None:
        sys.path.insert(0, str(package.parent))
        self.package = importlib.import_module(package.name)

    def __call__(self, cell: Cell, x: Inputs) -> Callable[[], Any]:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = self.package.attention(
                q, k, v, causal=cell.causal and cell.window is None,
                window=(cell.window, 0) if cell.window is not None else None,
            )
            return out

        try:
            if cell.total:
                return self._packed(cell, x)
            return _pass(cell, attend, x)
        except self.package.NoKernel as reason:
            raise Unserved(str(reason).splitlines()[0]) from reason

    def _packed(self, cell: Cell, x: Inputs) -> Callable[[], Any]:
        window = (cell.window, 0) if cell.window is not None else (-1, -1)
        ends = _ends(cell, x)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = self.package.flash_attn_varlen_func(
                q, k, v, ends, ends, cell.seq_q, cell.seq_kv, causal=cell.causal,
                window_size=window,
            )
            return out

        return _pass(cell, attend, Inputs(*_rows(x)))


Contender = Callable[[Cell, Inputs], Callable[[], Any]]


def contenders(device: str, package: Path | None, fa3: Path | None) -> dict[str, Contender]:
    """Everything this environment has, ours last. The keys are those of the result files."""
    found: dict[str, Contender] = {}
    if device == "cpu":
        found["torch"] = _sdpa("FLASH_ATTENTION")
        found["math"] = _standard
    else:
        found["fa2"] = _sdpa("FLASH_ATTENTION")
        found["cudnn"] = _sdpa("CUDNN_ATTENTION")
        if fa3 is not None:
            found["fa3"] = FlashAttention3(fa3)
        if importlib.util.find_spec("flash_attn") and importlib.util.find_spec("cutlass"):
            found["fa4"] = _flash_attn_4
        found["flex"] = _flex
        found["math"] = _standard
    if package is not None:
        found["fagen"] = Ours(package)
    return found
