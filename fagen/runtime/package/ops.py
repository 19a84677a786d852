"""The two operators as torch knows them.

They are registered with torch.library: fake tensors, autograd, torch.compile, export. Eager calls
on plain tensors take the shorter way of plan.py to the same kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import launch
from .launch import Options

NAMESPACE = __name__.rpartition(".")[0].replace(".", "_")
OPTIONS = (
    "int left, int right, bool top_left, str name, float scale, bool rows_first, "
    "bool deterministic"
)
registry: Any = torch.library  # parts of it are untyped
library = registry.Library(NAMESPACE, "DEF")
library.define(f"fwd(Tensor q, Tensor k, Tensor v, {OPTIONS}) -> (Tensor, Tensor)")
library.define(
    "bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{OPTIONS}) -> (Tensor, Tensor, Tensor)"
)
FWD = getattr(torch.ops, NAMESPACE).fwd.default
BWD = getattr(torch.ops, NAMESPACE).bwd.default


def _forward(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    given = Options(*options)
    return launch.forward(q, k, v, given, launch.choose_for("fwd", q, k, v, given))


def _backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    given = Options(*options)
    choice = launch.choose_for("bwd", q, k, v, given)
    return launch.backward(dout, dlse, q, k, v, out, lse, given, choice)


for _key in ("CPU", "CUDA"):
    library.impl("fwd", _forward, _key)
    library.impl("bwd", _backward, _key)


def _forward_shapes(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    batch, heads, rows, _ = q.shape
    out = launch.allocate(q, heads, rows, v.shape[3], Options(*options).rows_first)
    return out, q.new_empty((batch, heads, rows), dtype=torch.float32)


def backward_shapes(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    rows_first = Options(*options).rows_first
    return tuple(
        launch.allocate(q, x.shape[1], x.shape[2], x.shape[3], rows_first) for x in (q, k, v)
    )


registry.register_fake(f"{NAMESPACE}::fwd", _forward_shapes, lib=library)
registry.register_fake(f"{NAMESPACE}::bwd", backward_shapes, lib=library)

# --- autograd ------------------------------------------------------------------------------------


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)


def gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, out, lse = ctx.saved_tensors
    if dout is None and dlse is None:
        return (None,) * 10
    if dout is None:
        dout = torch.zeros_like(out)
    return *BWD(dout, dlse, q, k, v, out, lse, *ctx.options), *(None,) * 7


registry.register_autograd(f"{NAMESPACE}::fwd", gradients, setup_context=keep, lib=library)


def wants_gradient(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)


def is_plain(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Real memory, and nobody who wants to see the operator: no compiler, mode or transform."""
    return (
        type(q) in _PLAIN and type(k) in _PLAIN and type(v) in _PLAIN
        and not q.is_meta
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.maybe_current_level() is None
    )


_PLAIN = (Tensor, torch.nn.Parameter)
