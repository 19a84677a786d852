"""One call of a kernel on real tensors: outputs and scratch memory from torch, one C call.

Every line here is host time of every call; a short kernel takes less than a Python function or two.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .library import NO_MASK, kernels, pack, run
from .selection import Call, Choice, Pattern, choose

ALIGNMENT = 16  # bytes, for CUDA kernels
_SCRATCH_ALIGNMENT = 256
_runs: Counter[int] = Counter()  # by kernel
View = tuple[int, int, int, int]  # address and strides, as in struct fagen_view


class Options(NamedTuple):
    """What the operators take beside tensors, in their order."""

    left: int
    right: int
    top_left: bool
    name: str  # of a pattern that is no band
    scale: float
    rows_first: bool  # results are laid out [batch, rows, heads, dim]
    deterministic: bool

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.left, self.right, self.top_left, self.name)


def call_of(
    op: str, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, deterministic: bool
) -> Call:
    sizes = (*q.shape[:2], k.shape[1], q.shape[2], k.shape[2])
    return Call(op, q.dtype, q.device, q.shape[3], v.shape[3], pattern, sizes, deterministic)


def choose_for(op: str, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Choice | None:
    """The kernel, None where there is nothing to compute."""
    if not (q.numel() and k.numel() and v.numel()):
        return None
    return choose(call_of(op, q, k, v, options.pattern, options.deterministic))


def allocate(like: Tensor, heads: int, rows: int, dim: int, rows_first: bool) -> Tensor:
    batch = like.shape[0]
    strides = dense(batch, heads, rows, dim, rows_first)
    return like.new_empty_strided((batch, heads, rows, dim), strides)


def dense(
    batch: int, heads: int, rows: int, dim: int, rows_first: bool
) -> tuple[int, int, int, int]:
    """Strides of [batch, heads, rows, dim]."""
    head, row = (dim, heads * dim) if rows_first else (rows * dim, dim)
    return heads * rows * dim, head, row, 1


def forward(
    q: Tensor, k: Tensor, v: Tensor, options: Options, choice: Choice | None,
    mask: tuple[int, ...] = NO_MASK,
) -> tuple[Tensor, Tensor]:
    batch, heads, seqlen_q, _ = q.shape
    _, kv_heads, seqlen_kv, head_dim_v = v.shape
    out = allocate(q, heads, seqlen_q, head_dim_v, options.rows_first)
    lse = q.new_empty((batch, heads, seqlen_q), dtype=torch.float32)
    if choice is None:
        return out.zero_(), lse.fill_(-math.inf)
    (q, q_), (k, k_), (v, v_) = read(q), read(k), read(v)
    sizes = batch, heads, kv_heads, seqlen_q, seqlen_kv
    views = (*q_, *k_, *v_, *view(out))
    start(q, choice, pack(views, lse.data_ptr(), 0, sizes, options.scale, mask=mask))
    return out, lse


def backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    options: Options, choice: Choice | None, mask: tuple[int, ...] = NO_MASK,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, seqlen_q, head_dim = q.shape
    _, kv_heads, seqlen_kv, head_dim_v = v.shape
    rows_first = options.rows_first
    dq = allocate(q, heads, seqlen_q, head_dim, rows_first)
    dk = allocate(q, kv_heads, seqlen_kv, head_dim, rows_first)
    dv = allocate(q, kv_heads, seqlen_kv, head_dim_v, rows_first)
    if choice is None:
        return dq.zero_(), dk.zero_(), dv.zero_()
    (q, q_), (k, k_), (v, v_), (out, out_), (dout, dout_) = map(read, (q, k, v, out, dout))
    lse = lse.contiguous()
    dlse = dlse if dlse is None else dlse.contiguous()
    views = (*q_, *k_, *v_, *out_, *dout_, *view(dq), *view(dk), *view(dv))
    sizes = batch, heads, kv_heads, seqlen_q, seqlen_kv
    dlse_address = 0 if dlse is None else dlse.data_ptr()
    start(q, choice, pack(
        views, lse.data_ptr(), dlse_address, sizes, options.scale, mask=mask))
    return dq, dk, dv


def view(tensor: Tensor) -> View:
    batch, head, row, _ = tensor.stride()
    return tensor.data_ptr(), batch, head, row


def read(tensor: Tensor) -> tuple[Tensor, View]:
    """The tensor itself wherever a kernel can read it, else a copy; and where it is."""
    if readable(tensor) and not (tensor.is_cuda and tensor.data_ptr() % ALIGNMENT):
        return tensor, view(tensor)
    copy = tensor.clone(memory_format=torch.contiguous_format)
    return copy, view(copy)


def readable(tensor: Tensor) -> bool:
    """Can a kernel read it, as far as its strides say?"""
    batch, head, row, dim = tensor.stride()
    where = 0, batch, head, row
    return dim == 1 and not (
        tensor.is_cuda and crooked(tensor.shape, where, tensor.element_size()))


def crooked(shape: torch.Size, where: View, item: int) -> bool:
    """Not aligned, or expanded: a stride of 0 is nothing that a tensor map can say."""
    address, batch, head, row = where
    if batch and head and row and not (address | (batch | head | row) * item) % ALIGNMENT:
        return False
    return address % ALIGNMENT != 0 or any(
        size > 1 and (stride == 0 or stride * item % ALIGNMENT)
        for size, stride in zip(shape[:3], where[1:], strict=True)
    )


def served() -> dict[str, int]:
    """How many calls each kernel of this package has computed, by problem.

    A forward and its backward are two; what a CUDA graph repeats is not seen.
    """
    known, found = kernels(), Counter[str]()
    for index, count in _runs.copy().items():
        found[known[index]["problem"]] += count
    return dict(found)


def start(q: Tensor, choice: Choice, packed: bytes) -> None:
    """On the device that holds q."""
    _runs[choice.kernel] += 1
    if not q.is_cuda:
        _, start = _scratch(q, choice.workspace_bytes)
        run(choice.kernel, packed, start, 0, torch.get_num_threads())
    elif torch.cuda.current_device() == q.get_device():
        _queue(q, choice, packed)
    else:
        with torch.cuda.device(q.get_device()):
            _queue(q, choice, packed)


def _queue(q: Tensor, choice: Choice, packed: bytes) -> None:
    """On torch's current stream. The scratch memory is only used again after this kernel."""
    _, start = _scratch(q, choice.workspace_bytes)
    run(choice.kernel, packed, start, torch._C._cuda_getCurrentRawStream(q.get_device()), 0)


def _scratch(q: Tensor, size: int) -> tuple[Any, int]:
    """Memory from torch and its aligned start; torch's own alignment may be less."""
    if not size:
        return None, 0
    room = torch.empty(size + _SCRATCH_ALIGNMENT - 1, dtype=torch.uint8, device=q.device)
    return room, -(-room.data_ptr() // _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT
