"""An eager call, worked out once for its kind: from then on only addresses change.

The operators of ops.py do the same for whoever listens to torch's dispatcher, which costs more host
time than a short kernel takes to run. Tensors are in the caller's layout here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import launch
from .launch import ALIGNMENT, Options
from .library import BACKWARD, FORWARD, pack_sizes, pack_strides
from .ops import wants_gradient

_Room = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides of a result


class Plan:
    """Everything about a call that does not depend on the numbers in its tensors."""

    __slots__ = (
        "aligned", "backward", "differentiable", "direct", "forward", "lse_room", "options",
        "rooms", "sizes", "strides", "turned", "views", "with_lse",
    )

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, options: Options, layout: str, with_lse: bool
    ) -> None:
        self.options, self.turned, self.with_lse = options, layout == "bshd", with_lse
        self.differentiable = wants_gradient(q, k, v)
        q_, k_, v_ = given = self._turn(q, k, v)
        self.forward: Any = launch.choose_for("fwd", q_, k_, v_, options)
        # Also now, rather than in the middle of a backward, where there is no kernel.
        self.backward: Any = (
            launch.choose_for("bwd", q_, k_, v_, options) if self.differentiable else None
        )
        (batch, heads, rows, _), (_, kv_heads, keys, head_dim_v) = q_.shape, v_.shape
        self.sizes = pack_sizes((batch, heads, kv_heads, rows, keys), options.scale)
        self.lse_room: _Room = (batch, heads, rows), (heads * rows, rows, 1)
        out = batch, heads, rows, head_dim_v
        self.rooms = [self._room(shape) for shape in (out, *(x.shape for x in given))]
        # Kernels read the tensors as they are. On CUDA their rows are aligned: the strides say so
        # now, the addresses at each call.
        self.aligned = q.is_cuda
        self.direct = self.forward is not None and all(map(launch.readable, given))
        o, dq, dk, dv = (strides for _, strides in self.rooms)
        self.strides = (q.stride(), k.stride(), v.stride(), o, o)  # of what the backward reads
        self.views = [pack_strides(self._ordered(s)) for s in (*self.strides, dq, dk, dv)]

    def _turn(self, *tensors: Tensor) -> Any:
        """From the caller's layout to [batch, heads, rows, dim], or back."""
        return tuple(x.transpose(1, 2) for x in tensors) if self.turned else tensors

    def _ordered(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """The same for shapes and strides."""
        first, second, third, fourth = numbers
        return (first, third, second, fourth) if self.turned else numbers

    def _room(self, shape: tuple[int, ...]) -> _Room:
        batch, heads, rows, dim = shape
        strides = launch.dense(batch, heads, rows, dim, self.options.rows_first)
        return self._ordered(shape), self._ordered(strides)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.differentiable:
            return self.attend(q, k, v)
        output: Any = _apply(q, k, v, self)
        return output if self.with_lse else (output, None)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        q_at, k_at, v_at = q.data_ptr(), k.data_ptr(), v.data_ptr()
        if not self.direct or (self.aligned and (q_at | k_at | v_at) % ALIGNMENT):
            q, k, v = self._turn(q, k, v)
            out, lse = launch.forward(q, k, v, self.options, self.forward)
            (out,) = self._turn(out)
            return out, lse
        q_, k_, v_, o_, *_ = self.views
        out = q.new_empty_strided(*self.rooms[0])
        lse = q.new_empty_strided(*self.lse_room, dtype=torch.float32)
        launch.start(q, self.forward, FORWARD.pack(
            q_at, q_, k_at, k_, v_at, v_, out.data_ptr(), o_, lse.data_ptr(), self.sizes))
        return out, lse

    def gradients(
        self, dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor,
        lse: Tensor,
    ) -> tuple[Tensor, ...]:
        # Saved tensors may come back as others, and a gradient has the strides it has.
        at = q_at, k_at, v_at, o_at, do_at = (
            q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), dout.data_ptr())
        strides = q.stride(), k.stride(), v.stride(), out.stride(), dout.stride()
        if (not self.direct or strides != self.strides
                or (self.aligned and any(x % ALIGNMENT for x in at))):
            q, k, v, out, dout = self._turn(q, k, v, out, dout)
            found: tuple[Tensor, ...] = self._turn(*launch.backward(
                dout, dlse, q, k, v, out, lse, self.options, self.backward))
            return found
        _, dq_room, dk_room, dv_room = self.rooms
        dq = q.new_empty_strided(*dq_room)
        dk = q.new_empty_strided(*dk_room)
        dv = q.new_empty_strided(*dv_room)
        dlse = dlse if dlse is None else dlse.contiguous()
        q_, k_, v_, o_, do_, dq_, dk_, dv_ = self.views
        launch.start(q, self.backward, BACKWARD.pack(
            q_at, q_, k_at, k_, v_at, v_, o_at, o_, do_at, do_,
            dq.data_ptr(), dq_, dk.data_ptr(), dk_, dv.data_ptr(), dv_,
            lse.data_ptr(), 0 if dlse is None else dlse.data_ptr(), self.sizes))
        return dq, dk, dv


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Any:
        out, lse = plan.attend(q, k, v)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.set_materialize_grads(False)
        ctx.plan = plan
        return (out, lse) if plan.with_lse else out

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None = None) -> tuple[Any, ...]:
        # Grad mode is on where a gradient of the gradient is wanted, which there is not.
        found: tuple[Any, ...] = (_once if torch.is_grad_enabled() else _gradients)(ctx, dout, dlse)
        return found


def _gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    if dout is None and dlse is None:
        return None, None, None, None
    q, k, v, out, lse = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    return *ctx.plan.gradients(dout, dlse, q, k, v, out, lse), None


_once = torch.autograd.function.once_differentiable(_gradients)
# What Function.apply does where no transform of torch.func is active, as for all plans.
_apply: Any = super(torch.autograd.Function, _Eager).apply
