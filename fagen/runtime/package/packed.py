"""Packed sequences in one call of a kernel made for them: operators, as torch knows them.

Tensors are [total rows, heads, dim], the log-sum-exp is [heads, total rows]; the offsets of the
sequences, int32, lie where the tensors do and are never read on a GPU's behalf.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import launch
from .library import pack
from .ops import NAMESPACE, library, registry
from .selection import Call, Choice, Pattern, choose


class Packing(NamedTuple):
    """What the operators take beside tensors, in their order."""

    longest_q: int
    longest_kv: int
    left: int
    right: int
    top_left: bool
    name: str
    scale: float
    deterministic: bool

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.left, self.right, self.top_left, self.name)


_OFFSETS = "Tensor cu_q, Tensor cu_kv"
_OPTIONS = (
    "SymInt longest_q, SymInt longest_kv, int left, int right, bool top_left, str name, "
    "float scale, bool deterministic"
)
library.define(
    f"varlen_fwd(Tensor q, Tensor k, Tensor v, {_OFFSETS}, {_OPTIONS}) -> (Tensor, Tensor)"
)
library.define(
    "varlen_bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_OFFSETS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
)
FWD = getattr(torch.ops, NAMESPACE).varlen_fwd.default
BWD = getattr(torch.ops, NAMESPACE).varlen_bwd.default


def as_batch(tensor: Tensor) -> Tensor:
    """[rows, heads, dim] as [1, heads, rows, dim]."""
    return tensor.transpose(0, 1)[None]


def call_of(
    op: str, q: Tensor, k: Tensor, v: Tensor, count: int, packing: Packing
) -> Call:
    sizes = count, q.shape[1], k.shape[1], packing.longest_q, packing.longest_kv
    return Call(op, q.dtype, q.device, q.shape[2], v.shape[2], packing.pattern, sizes,
                packing.deterministic, (q.shape[0], k.shape[0]))


def _prepared(
    op: str, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, packing: Packing
) -> tuple[Call, Choice]:
    call = call_of(op, q, k, v, cu_q.numel() - 1, packing)
    return call, choose(call)


def _start(
    call: Call, choice: Choice, views: list[launch.View], lse: Tensor, dlse: Tensor | None,
    cu_q: Tensor, cu_kv: Tensor, like: Tensor, scale: float,
) -> None:
    where = cu_q.data_ptr(), cu_kv.data_ptr(), *call.totals
    numbers = tuple(number for view in views for number in view)
    launch.start(like, choice, pack(
        numbers, lse.data_ptr(), 0 if dlse is None else dlse.data_ptr(), call.sizes, scale, where
    ))


def _forward(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_kv: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    packing = Packing(*options)
    call, choice = _prepared("fwd", q, k, v, cu_q, packing)
    out, lse = _forward_shapes(q, k, v, cu_q, cu_kv, *options)
    read = [launch.read(as_batch(x)) for x in (q, k, v)]
    views = [view for _, view in read] + [launch.view(as_batch(out))]
    _start(call, choice, views, lse, None, cu_q, cu_kv, q, packing.scale)
    return out, lse


def _backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    cu_q: Tensor, cu_kv: Tensor, *options: Any,
) -> tuple[Tensor, ...]:
    packing = Packing(*options)
    call, choice = _prepared("bwd", q, k, v, cu_q, packing)
    found = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    read = [launch.read(as_batch(x)) for x in (q, k, v, out, dout)]
    views = [view for _, view in read] + [launch.view(as_batch(x)) for x in found]
    lse = lse.contiguous()
    dlse = dlse if dlse is None else dlse.contiguous()
    _start(call, choice, views, lse, dlse, cu_q, cu_kv, q, packing.scale)
    return found


for _key in ("CPU", "CUDA"):
    library.impl("varlen_fwd", _forward, _key)
    library.impl("varlen_bwd", _backward, _key)


def _forward_shapes(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_kv: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    rows, heads, _ = q.shape
    return (q.new_empty((rows, heads, v.shape[2])),
            q.new_empty((heads, rows), dtype=torch.float32))


def _backward_shapes(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


registry.register_fake(f"{NAMESPACE}::varlen_fwd", _forward_shapes, lib=library)
registry.register_fake(f"{NAMESPACE}::varlen_bwd", _backward_shapes, lib=library)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_q, cu_kv, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_kv)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, out, lse, cu_q, cu_kv = ctx.saved_tensors
    nothing = (None,) * (2 + len(Packing._fields))
    if dout is None and dlse is None:
        return (None,) * 3 + nothing
    if dout is None:
        dout = torch.zeros_like(out)
    return *BWD(dout, dlse, q, k, v, out, lse, cu_q, cu_kv, *ctx.options), *nothing


registry.register_autograd(
    f"{NAMESPACE}::varlen_fwd", _gradients, setup_context=_keep, lib=library
)
