"""Tensors for one call: guarded memory, the layouts, and random or adversarial values."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fagen.cases import Case
from fagen.masks import ARRAYS, RUNS, drawn
from fagen.model import Problem
from fagen.pieces import Pieces

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BITS = {4: torch.int32, 2: torch.int16}

MASKS = ARRAYS + RUNS
OFFSETS = ("cu_q", "cu_kv")  # of packed sequences
ALIGNMENT = 256
GUARD_BYTES = 4096
CANARY = 0xA5  # around outputs: must still be there afterwards
POISON = 0xFF  # around inputs: reads as not-a-number in every type


def _signed(byte: int, size: int) -> int:
    return int.from_bytes(bytes([byte]) * size, "little", signed=True)


@dataclass(frozen=True)
class Buffer:
    """A tensor inside a larger allocation whose other bytes all hold one known value."""

    raw: Tensor
    values: Tensor
    bits: Tensor  # the same elements as integers
    fill: int

    @classmethod
    def empty(
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: str, *, fill: int,
        layout: str = "bhsd",
    ) -> Buffer:
        """``shape`` is [batch, heads, rows, dim], or anything for the layout bhsd."""
        memory = list(shape)
        if layout == "bshd":
            memory[1], memory[2] = memory[2], memory[1]
        elif layout == "padded":
            memory[3] += 8
        size = math.prod(memory) * dtype.itemsize
        raw = torch.full(
            (size + 2 * GUARD_BYTES + ALIGNMENT,), fill, dtype=torch.uint8, device=device
        )
        start = -raw.data_ptr() % ALIGNMENT
        raw = raw[start : start + size + 2 * GUARD_BYTES]
        inside = raw[GUARD_BYTES : GUARD_BYTES + size]

        def seen(as_type: torch.dtype) -> Tensor:
            view = inside.view(as_type).view(memory)
            if layout == "bshd":
                view = view.transpose(1, 2)
            return view[..., : shape[3]] if layout == "padded" else view

        return cls(raw, seen(dtype), seen(_BITS[dtype.itemsize]), fill)

    def damage(self) -> str:
        """Which bytes outside the values changed, in words. Overwrites the values."""
        self.bits.fill_(_signed(self.fill, self.values.element_size()))
        if bool((self.raw == self.fill).all()):
            return ""
        wrong = (self.raw != self.fill).nonzero().flatten()
        first, last = int(wrong[0]) - GUARD_BYTES, int(wrong[-1]) - GUARD_BYTES
        size = len(self.raw) - 2 * GUARD_BYTES
        where = (
            f"starting {-first} bytes before it" if first < 0
            else f"starting {first - size} bytes after its end" if first >= size
            else f"between its rows, from byte {first} to byte {last}"
        )
        return f"{len(wrong)} bytes {where}"


def shapes(problem: Problem, case: Case) -> dict[str, tuple[int, ...]]:
    w = case.workload.of(problem)
    batch, seqlen_q, seqlen_kv = w.batch, w.seqlen_q, w.seqlen_kv
    if w.packed:
        batch, seqlen_q, seqlen_kv = 1, w.total_q, w.total_kv
    rows_q, rows_kv = (batch, w.heads, seqlen_q), (batch, w.kv_heads, seqlen_kv)
    d, dv = problem.head_dim, problem.head_dim_v
    return {
        "q": (*rows_q, d), "k": (*rows_kv, d), "v": (*rows_kv, dv), "o": (*rows_q, dv),
        "dout": (*rows_q, dv), "dq": (*rows_q, d), "dk": (*rows_kv, d), "dv": (*rows_kv, dv),
        "lse": rows_q, "dlse": rows_q, "cu_q": (w.batch + 1,), "cu_kv": (w.batch + 1,),
    }  # fmt: skip


def outputs(problem: Problem) -> tuple[str, ...]:
    return ("o", "lse") if problem.op == "fwd" else ("dq", "dk", "dv")


def buffer(name: str, problem: Problem, case: Case, device: str, fill: int) -> Buffer:
    shape = shapes(problem, case)[name]
    if name in ("lse", "dlse"):  # dense fp32, whatever the layout
        return Buffer.empty(shape, torch.float32, device, fill=fill)
    if name in OFFSETS:
        return Buffer.empty(shape, torch.int32, device, fill=fill)
    dtype = DTYPES[problem.dtype]
    return Buffer.empty(shape, dtype, device, fill=fill, layout=case.layout)


def random_inputs(problem: Problem, case: Case, device: str) -> dict[str, Buffer]:
    """q, k, v, and for the backward dout (and dlse): the same numbers every time."""
    names = ["q", "k", "v"]
    if problem.op == "bwd":
        names += ["dout", "dlse"] if case.dlse else ["dout"]
    generator = torch.Generator(device).manual_seed(zlib.crc32(f"{problem} {case}".encode()))
    given = {}
    for name in names:
        given[name] = buffer(name, problem, case, device, POISON)
        values = given[name].values
        values.copy_(torch.randn(values.shape, generator=generator, device=device))
    _arrange(case, case.scale_for(problem), *(given[name].values for name in "qkv"))
    return given | _offsets(problem, case, device) | _mask(problem, case, device)


def _offsets(problem: Problem, case: Case, device: str) -> dict[str, Buffer]:
    if "varlen" not in problem.features:
        return {}
    made = {name: buffer(name, problem, case, device, POISON) for name in OFFSETS}
    starts = Pieces.of(problem, case.workload).starts
    for name, values in zip(OFFSETS, starts, strict=True):
        made[name].values.copy_(torch.tensor(values))
    return made


def _mask(problem: Problem, case: Case, device: str) -> dict[str, Buffer]:
    """The arrays of a mask that comes with the call."""
    mask = drawn(problem, case)
    made = {}
    for name, array in ({} if mask is None else mask.arrays(device)).items():
        made[name] = Buffer.empty(tuple(array.shape), array.dtype, device, fill=POISON)
        made[name].values.copy_(array)
    return made


def copied(problem: Problem, case: Case, given: Mapping[str, Buffer]) -> dict[str, Buffer]:
    """The same values elsewhere in memory."""
    made = {}
    for name, old in given.items():
        device = str(old.raw.device)
        made[name] = (
            Buffer.empty(tuple(old.values.shape), old.values.dtype, device, fill=old.fill)
            if name in MASKS else buffer(name, problem, case, device, old.fill)
        )
        made[name].values.copy_(old.values)
    return made


def _arrange(case: Case, scale: float, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Turn N(0, 1) into the case's kind of input, in place."""
    kind, keys = case.inputs, k.shape[2]
    if kind == "large":
        for x in (q, k):  # scores have a standard deviation of 2,500
            x.mul_(50)
    elif kind == "equal":
        k.copy_(k[:, :, :1].expand_as(k).clone())
    elif kind in ("rising", "falling", "huge_first", "huge_last"):
        height = torch.zeros(keys, device=k.device)
        if kind in ("rising", "falling"):
            height = torch.linspace(-40, 40, keys, device=k.device)
            height = height if kind == "rising" else height.flip(0)
        else:
            height[0 if kind == "huge_first" else -1] = 200
        _tilt(scale, q, k, height)
    elif kind != "normal":
        value, tensor = kind.split("_")
        x = {"q": q, "k": k, "v": v}[tensor]
        x[0, 0, x.shape[2] // 2, 0] = math.nan if value == "nan" else math.inf


def _tilt(scale: float, q: Tensor, k: Tensor, height: Tensor) -> None:
    """Add ``height[j]`` to every score of key j, through one shared direction."""
    dim = k.shape[-1]
    direction = dim**-0.5
    reach = scale**-0.5
    q.copy_(0.25 * q.float() + reach * direction)
    k.copy_(0.25 * k.float() + (height * reach * direction)[:, None])
