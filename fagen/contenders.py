"""The other implementations that a result is compared with, and ours, as timed callables.

Runs in the child process of :mod:`fagen.bench`. Every contender is asked for the same thing: from
q, k, v [batch, heads, seqlen, dim] make a callable that does one pass and nothing else.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own convention

from fagen.passes import Inputs, Unserved, ends, one_by_one, one_pass, rows
from fagen.patterns import BigBird, BlockLists, Documents, Pattern, StaticPattern
from fagen.suites import Cell

Tensor = torch.Tensor


def _only(cell: Cell, *, packed: bool = False, masks: bool = False) -> None:
    """Refuse what a contender does not have."""
    if cell.total and not packed:
        raise Unserved("it takes no packed sequences")
    if cell.mask not in ("", "dense") and not masks:
        raise Unserved(f"it has no {cell.mask}")
    if cell.deterministic:
        raise Unserved("it says nothing about repeating bit by bit")


def _pattern(cell: Cell) -> Pattern:
    return cell.problem("fwd").pattern.drawn_with(cell.density)


def _sdpa(backend: str) -> Callable[[Cell, Inputs], Callable[[], Any]]:
    def prepare(cell: Cell, x: Inputs) -> Callable[[], Any]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        _only(cell, packed=True)
        if cell.window is not None:
            raise Unserved("torch SDPA has no sliding window")
        chosen = getattr(SDPBackend, backend)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(chosen):
                out: Tensor = F.scaled_dot_product_attention(
                    q, k, v, is_causal=cell.causal, enable_gqa=cell.heads_q != cell.heads_kv
                )
            return out

        return one_pass(cell, one_by_one(cell, attend), x)

    return prepare


def _standard(cell: Cell, x: Inputs) -> Callable[[], Any]:
    """Attention as written: the N x N matrix in memory."""
    _only(cell, masks=True)
    keep = torch.from_numpy(_pattern(cell).mask(cell.seq_q, cell.seq_kv))
    keep = keep.to(x.q.device)
    group = cell.heads_q // cell.heads_kv

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        out: Tensor = scores.masked_fill(~keep, float("-inf")).softmax(-1) @ v
        return out

    return one_pass(cell, attend, x)


LARGEST_EAGER_MASK = 32768  # rows; above it the matrix itself takes too much memory
_compiled_flex: Any = None


def _flex(cell: Cell, x: Inputs) -> Callable[[], Any]:
    global _compiled_flex
    _only(cell, masks=True)
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if _compiled_flex is None:
        _compiled_flex = torch.compile(flex_attention, dynamic=False)
    block_mask = None
    if cell.pattern != "dense":
        block_mask = create_block_mask(
            _mask_mod(cell, x.q.device), None, None, cell.seq_q, cell.seq_kv,
            device=x.q.device.type, _compile=cell.seq_q > LARGEST_EAGER_MASK,
        )
    flex = _compiled_flex

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = flex(
            q, k, v, block_mask=block_mask, enable_gqa=cell.heads_q != cell.heads_kv
        )
        return out

    return one_pass(cell, attend, x)


def _mask_mod(cell: Cell, device: torch.device) -> Callable[..., Tensor]:
    """The cell's mask as FlexAttention takes it."""
    pattern, lengths = _pattern(cell), (cell.seq_q, cell.seq_kv)
    if isinstance(pattern, BlockLists):
        blocks = torch.from_numpy(pattern.drawn(*lengths)).to(device)
        rows_of, keys_of = pattern.block_q, pattern.block_kv
        return lambda b, h, q, k: blocks[q // rows_of, k // keys_of]
    if not isinstance(pattern, StaticPattern):
        raise Unserved(f"no formula says what {pattern} keeps")
    shift, static = pattern.shift(*lengths), pattern
    if isinstance(pattern, BigBird):  # its hash takes more than the kernel's 32 bits
        return lambda b, h, q, k: static.keep(q.long() + shift, k.long(), cell.seq_kv)
    return lambda b, h, q, k: static.keep(q + shift, k, cell.seq_kv)


class FlashAttention3:
    """FlashAttention-3 from its compiled library; its layout is [batch, seqlen, heads, dim]."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        self.ops = torch.ops.flash_attn_3

    def __call__(self, cell: Cell, x: Inputs) -> Callable[[], Any]:
        _only(dataclasses.replace(cell, deterministic=False), packed=True)
        q, k, v, dout = (t.transpose(1, 2).contiguous() for t in (x.q, x.k, x.v, x.dout))
        options: dict[str, Any] = {
            "softmax_scale": cell.head_dim**-0.5, "is_causal": cell.causal,
        }
        if cell.total:
            q, k, v, dout = rows(x)
            options |= {"cu_seqlens_q": ends(cell, x), "cu_seqlens_k": ends(cell, x),
                        "max_seqlen_q": cell.seq_q, "max_seqlen_k": cell.seq_kv}
        if cell.window is not None:
            options |= {"window_size_left": cell.window, "window_size_right": 0}

        def forward() -> Any:
            return self.ops.fwd(q, k, v, **options)

        if cell.mode == "fwd":
            return forward
        out, lse = forward()[:2]
        steady = {"deterministic": True} if cell.deterministic else {}
        if cell.mode == "bwd":
            return lambda: self.ops.bwd(dout, q, k, v, out, lse, **options, **steady)

        def both() -> Any:
            out, lse = forward()[:2]
            return self.ops.bwd(dout, q, k, v, out, lse, **options, **steady)

        return both


def _flash_attn_4(cell: Cell, x: Inputs) -> Callable[[], Any]:
    _only(cell)
    interface = importlib.import_module("flash_attn.cute.interface")
    window = (cell.window, 0) if cell.window is not None else (None, None)
    rows = Inputs(*(t.transpose(1, 2).contiguous() for t in (x.q, x.k, x.v, x.dout)))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = interface.flash_attn_func(
            q, k, v, causal=cell.causal, window_size=window
        )[0]
        return out

    return one_pass(cell, attend, rows)


class Ours:
    """The emitted package, called as its users call it."""

    def __init__(self, package: Path) -> None:
        sys.path.insert(0, str(package.parent))
        self.package = importlib.import_module(package.name)

    def __call__(self, cell: Cell, x: Inputs) -> Callable[[], Any]:
        options = self._options(cell, x.q.device)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = self.package.attention(q, k, v, **options)
            return out

        try:
            if cell.total:
                return self._packed(cell, x)
            return one_pass(cell, attend, x)
        except self.package.NoKernel as reason:
            raise Unserved(str(reason).splitlines()[0]) from reason

    def _options(self, cell: Cell, device: torch.device) -> dict[str, Any]:
        steady = {"deterministic": cell.deterministic}
        if not cell.mask:
            return steady | {
                "causal": cell.causal and cell.window is None,
                "window": (cell.window, 0) if cell.window is not None else None,
            }
        pattern, lengths = _pattern(cell), (cell.seq_q, cell.seq_kv)
        if isinstance(pattern, BlockLists):
            blocks = torch.from_numpy(pattern.drawn(*lengths)).to(device)
            return steady | {"mask": self.package.BlockSparseMask.from_blocks(
                blocks, *lengths, block_size=(pattern.block_q, pattern.block_kv),
                causal=pattern.causal)}
        if isinstance(pattern, Documents):
            begin, end = torch.from_numpy(pattern.runs(*lengths)).to(device).T
            return steady | {"mask": self.package.DocumentMask.from_runs(begin, end, cell.seq_kv)}
        return steady | ({} if cell.mask == "dense" else {"pattern": cell.mask})

    def _packed(self, cell: Cell, x: Inputs) -> Callable[[], Any]:
        window = (cell.window, 0) if cell.window is not None else (-1, -1)
        cuts = ends(cell, x)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = self.package.flash_attn_varlen_func(
                q, k, v, cuts, cuts, cell.seq_q, cell.seq_kv, causal=cell.causal,
                window_size=window,
            )
            return out

        return one_pass(cell, attend, Inputs(*rows(x)))


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
