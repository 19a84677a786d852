"""Attention under a BlockSparseMask or a DocumentMask: two more operators, and their one caller.

The mask's arrays are tensors of the operators, so that torch.compile and autograd see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import arguments, fallback, launch
from .blockmask import BlockSparseMask
from .documents import DocumentMask
from .errors import BadArgument, BadType
from .launch import Options
from .ops import NAMESPACE, OPTIONS, backward_shapes, library, registry, wants_gradient
from .selection import Pattern

Mask = BlockSparseMask | DocumentMask
_ARRAYS, _RUNS = 8, 6  # in struct fagen_mask, and the first that is of a DocumentMask

library.define(f"fwd_masked(Tensor q, Tensor k, Tensor v, Tensor[] mask, {OPTIONS})"
               " -> (Tensor, Tensor)")
library.define(
    "bwd_masked(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"Tensor[] mask, {OPTIONS}) -> (Tensor, Tensor, Tensor)"
)
_FWD = getattr(torch.ops, NAMESPACE).fwd_masked.default
_BWD = getattr(torch.ops, NAMESPACE).bwd_masked.default


def _packed(mask: Sequence[Tensor]) -> tuple[int, ...]:
    """``struct fagen_mask``."""
    batches, heads = mask[0].shape[:2] if mask[0].numel() else (len(mask[_RUNS]), 1)
    return *(x.data_ptr() for x in mask), batches, heads


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Sequence[Tensor], *options: Any
) -> tuple[Tensor, Tensor]:
    given = Options(*options)
    choice = launch.choose_for("fwd", q, k, v, given)
    return launch.forward(q, k, v, given, choice, _packed(mask))


def _backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    mask: Sequence[Tensor], *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    given = Options(*options)
    choice = launch.choose_for("bwd", q, k, v, given)
    return launch.backward(dout, dlse, q, k, v, out, lse, given, choice, _packed(mask))


for _key in ("CPU", "CUDA"):
    library.impl("fwd_masked", _forward, _key)
    library.impl("bwd_masked", _backward, _key)


def _forward_shapes(
    q: Tensor, k: Tensor, v: Tensor, mask: Sequence[Tensor], *options: Any
) -> tuple[Tensor, Tensor]:
    batch, heads, rows, _ = q.shape
    out = launch.allocate(q, heads, rows, v.shape[3], Options(*options).rows_first)
    return out, q.new_empty((batch, heads, rows), dtype=torch.float32)


def _backward_shapes(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    mask: Sequence[Tensor], *options: Any,
) -> tuple[Tensor, ...]:
    return backward_shapes(dout, dlse, q, k, v, out, lse, *options)


registry.register_fake(f"{NAMESPACE}::fwd_masked", _forward_shapes, lib=library)
registry.register_fake(f"{NAMESPACE}::bwd_masked", _backward_shapes, lib=library)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, *mask)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, out, lse, *mask = ctx.saved_tensors
    rest = [None] * _ARRAYS, *[None] * len(ctx.options)
    if dout is None and dlse is None:
        return None, None, None, *rest
    if dout is None:
        dout = torch.zeros_like(out)
    return *_BWD(dout, dlse, q, k, v, out, lse, mask, *ctx.options), *rest


registry.register_autograd(
    f"{NAMESPACE}::fwd_masked", _gradients, setup_context=_keep, lib=library)


# --- the call ------------------------------------------------------------------------------------


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, *, scale: Any, layout: str, deterministic: bool,
    may_fall_back: bool, with_lse: bool,
) -> tuple[Tensor, Tensor]:
    """q, k and v in the caller's layout; the output too."""
    arguments.check_tensors(q, k, v)
    if layout == "bshd":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    arguments.check_shapes(q, k, v)
    check(mask, q, k)
    scale = arguments.scale_of(scale, q.shape[3])
    deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
    pattern = Pattern(name=mask.name)
    reason = fallback.cannot_serve(q, k, v, pattern, deterministic) if may_fall_back else None
    if reason:
        out, lse = fallback.textbook(q, k, v, reason=reason, pattern=pattern, scale=scale,
                                     with_lse=with_lse, keep=mask.dense())
    else:
        options = Options(*pattern, scale, layout == "bshd" or q.stride(1) < q.stride(2),
                          deterministic)
        differentiable = wants_gradient(q, k, v)
        if differentiable and not torch.compiler.is_compiling():
            launch.choose_for("bwd", q, k, v, options)  # now, rather than in the backward
        out, lse = _FWD(q, k, v, mask.arrays(differentiable), *options)
    return (out.transpose(1, 2) if layout == "bshd" else out), lse


def sample(name: str, seqlen_q: int, seqlen_kv: int, device: str) -> Mask | None:
    """Some mask for the kernels of a pattern; None where the pattern needs none."""
    match = arguments.OF_THE_CALL.fullmatch(name)
    if match is None:
        return None
    if not match[1]:
        ends = [torch.tensor([0, n // 3, n], device=device) for n in (seqlen_q, seqlen_kv)]
        return DocumentMask.from_cumulative(*ends, causal=bool(match[3]))
    rows, columns = int(match[1]), int(match[2] or match[1])
    made = torch.Generator().manual_seed(0)
    blocks = torch.rand(-(-seqlen_q // rows), -(-seqlen_kv // columns), generator=made) < 0.25
    return BlockSparseMask.from_blocks(
        blocks.to(device), seqlen_q, seqlen_kv, block_size=(rows, columns), causal=bool(match[3]))


def check(mask: Any, q: Tensor, k: Tensor) -> None:
    """Is the mask one for these tensors, [batch, heads, rows, dim]?"""
    if not isinstance(mask, (BlockSparseMask, DocumentMask)):
        raise BadType(f"mask is {type(mask).__name__}; a BlockSparseMask or a DocumentMask is "
                      "expected, see their constructors")
    if mask.device != q.device:
        raise BadArgument(f"the mask is on {mask.device}, q on {q.device}")
    if mask.lengths != (q.shape[2], k.shape[2]):
        raise BadArgument(f"the mask is for {mask.lengths[0]} queries and {mask.lengths[1]} keys; "
                          f"q has {q.shape[2]} rows, k has {k.shape[2]}")
    for name, n, size in zip(("batches", "heads"), mask.sharing, q.shape[:2], strict=True):
        if n not in (1, size):
            raise BadArgument(f"the mask is for {n} {name}; q has {size}")
