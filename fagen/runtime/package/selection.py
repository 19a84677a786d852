"""Which kernel serves a call. Decided once per kind of call, then remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .errors import NoKernel
from .library import kernels, last_error, library, pack

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
DEVICES = ("cpu", "cuda")
UNBOUNDED = -1
_REMEMBERED = 4096  # kinds of call; beyond that the memory starts over


class Pattern(NamedTuple):
    """Row q keeps keys d-left .. d+right, where d is q aligned to the end or, top-left, to 0.

    A ``name`` stands for itself: a pattern of this package's kernels that is no such band.
    """

    left: int = UNBOUNDED
    right: int = UNBOUNDED
    top_left: bool = False
    name: str = ""


class Call(NamedTuple):
    """What decides which kernel runs."""

    op: str  # "fwd" or "bwd"
    dtype: torch.dtype
    device: torch.device
    head_dim: int
    head_dim_v: int
    pattern: Pattern
    sizes: tuple[int, int, int, int, int]  # batch, heads, kv_heads, seqlen_q, seqlen_kv
    deterministic: bool
    totals: tuple[int, int] = (0, 0)  # rows of q and of k, of packed sequences


class Choice(NamedTuple):
    kernel: int
    workspace_bytes: int


_chosen: dict[Call, Choice] = {}


def choose(call: Call) -> Choice:
    """The kernel for a call, or NoKernel."""
    found = _chosen.get(call)
    if found is None:
        if len(_chosen) >= _REMEMBERED:
            _chosen.clear()
        found = _chosen[call] = _choose(call)
    return found


def _choose(call: Call) -> Choice:
    if call.device.type not in DEVICES:
        raise NoKernel(f"kernels are for {' and '.join(DEVICES)}; the tensors are on {call.device}")
    index = find(problems(call), call.device, call.sizes, call.totals)
    if index is None:
        raise NoKernel(_reasons(call))
    packed = pack((), 0, 0, call.sizes, 1.0, (0, 0, *call.totals))
    size = library().fagen_workspace_bytes(index, packed)
    if size < 0:
        raise NoKernel(last_error())
    return Choice(index, size)


def find(
    names: Sequence[str], device: torch.device, sizes: tuple[int, int, int, int, int],
    totals: tuple[int, int] = (0, 0),
) -> int | None:
    """The best kernel of the first name that has one."""
    packed = pack((), 0, 0, sizes, 1.0, (0, 0, *totals))
    where = _device_index(device)
    found = (library().fagen_select(name.encode(), packed, where) for name in names)
    return next((index for index in found if index >= 0), None)


def _device_index(device: torch.device) -> int:
    """As the C interface counts: -1 is the host."""
    if device.type == "cpu":
        return -1
    return torch.cuda.current_device() if device.index is None else device.index


# --- names ---------------------------------------------------------------------------------------


_DOCUMENTS = ("documents", "documents-causal")  # one kernel; tuned on different runs


def same(
    asked: Pattern, seqlen_q: int, seqlen_kv: int, packed: bool = False
) -> list[Pattern]:
    """The patterns that keep the same elements at these lengths, the one asked for first. Packed
    sequences are this long or shorter."""
    left, right, top_left, name = asked
    if name:
        twins = [name] if name not in _DOCUMENTS else sorted(_DOCUMENTS, key=name.__ne__)
        return [Pattern(name=twin) for twin in twins]
    first, last = (0, seqlen_q - 1) if top_left else (seqlen_kv - seqlen_q, seqlen_kv - 1)
    lifted = Pattern(
        UNBOUNDED if left >= last else left,
        UNBOUNDED if right >= seqlen_kv - 1 - first else right,
        top_left,
    )
    if lifted.left == lifted.right == UNBOUNDED:
        lifted = Pattern()
    found = [asked, lifted]
    if seqlen_q == seqlen_kv and not packed:
        found += [Pattern(b.left, b.right, not b.top_left) for b in found]
    return found


def slug(asked: Pattern) -> str | None:
    """The name that kernels carry, None when there is none for this band."""
    left, right, top_left, name = asked
    if name:
        return name
    if left == UNBOUNDED:
        if right == UNBOUNDED:
            return None if top_left else "dense"
        return None if right else "causal-topleft" if top_left else "causal"
    if right == UNBOUNDED or top_left:
        return None
    return f"window{left}" + (f"x{right}" if right else "")


def problems(call: Call) -> list[str]:
    """Names of the kernels that would serve, best first. Deterministic ones serve any call."""
    dtype = DTYPES.get(call.dtype)
    if dtype is None:
        return []
    dims = f"d{call.head_dim}" + (
        f"x{call.head_dim_v}" if call.head_dim_v != call.head_dim else ""
    )
    features = [""] if call.op == "fwd" else ["+deterministic"]
    if call.op == "bwd" and not call.deterministic:
        features = ["", "+deterministic"]
    packed = any(call.totals)
    varlen = "+varlen" if packed else ""
    _, _, _, seqlen_q, seqlen_kv = call.sizes
    names = [slug(pattern) for pattern in same(call.pattern, seqlen_q, seqlen_kv, packed)]
    return [
        f"{call.op}-{dtype}-{dims}-{name}{feature}{varlen}"
        for name in names if name for feature in features
    ]


def _reasons(call: Call) -> str:
    """Every kernel's reason, and the commands that fill the gap."""
    wanted, device = problems(call), _device_index(call.device)
    batch, heads, kv_heads, seqlen_q, seqlen_kv = call.sizes
    what = wanted[0] if wanted else f"{call.op} of {call.dtype} with {call.pattern}"
    lines = [f"no kernel of this package serves {what} on {call.device}"]
    for index, kernel in enumerate(kernels()):
        if kernel["problem"] in wanted:
            library().fagen_serves(index, device)
            lines.append(f"  {index}: {last_error()}")
        else:
            lines.append(f"  {index}: is for {kernel['problem']} on {kernel['target']['name']}")
    if wanted:
        sizes = f"--batch {batch} --heads {heads} --kv-heads {kv_heads} --seqlen {seqlen_q}"
        sizes += f" --seqlen-kv {seqlen_kv}" if seqlen_kv != seqlen_q else ""
        lines.append(f"to fill the gap: fagen tune {wanted[0]} {sizes}, then emit again;")
    lines.append('or pass fallback="sdpa" to let torch compute it')
    return "\n".join(lines)
