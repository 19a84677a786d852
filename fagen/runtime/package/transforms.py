"""torch.func: vmap folds its dimension into the batch; grad sees an autograd function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .launch import Options


def _fold(size: int, dim: int | None, tensor: Tensor | None) -> Tensor | None:
    """[vmap, batch, ...] as [vmap * batch, ...]; what is not mapped over is repeated by strides."""
    if tensor is None:
        return None
    stacked = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return stacked.flatten(0, 1)


def _rule(op: Any) -> Any:
    def batched(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        count = sum(arg is None or isinstance(arg, Tensor) for arg in args)
        folded = [
            _fold(info.batch_size, dim, tensor)
            for dim, tensor in zip(in_dims[:count], args[:count], strict=True)
        ]
        found = op(*folded, *args[count:])
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in found), (0,) * len(found)

    return batched


for _name, _op in (("fwd", ops.FWD), ("bwd", ops.BWD)):
    ops.registry.register_vmap(f"{ops.NAMESPACE}::{_name}", _rule(_op), lib=ops.library)


class Transformed(torch.autograd.Function):
    """The forward under torch.func, which does not take a registered operator's autograd."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        output: tuple[Tensor, Tensor] = ops.FWD(*inputs)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ops.keep(ctx, inputs, output)
        ctx.set_materialize_grads(True)  # older versions of torch cannot map over None

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        return ops.gradients(ctx, dout, dlse)


def dispatched(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The way through torch's dispatcher, for whoever listens there."""
    output: tuple[Tensor, Tensor]
    if not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None:
        output = Transformed.apply(q, k, v, *options)  # type: ignore[no-untyped-call]
    else:
        output = ops.FWD(q, k, v, *options)
    return output
