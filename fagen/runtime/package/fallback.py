"""What torch computes instead, when the caller allows it, and why it had to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as torchs

from . import launch
from .errors import NoKernel
from .library import kernels
from .ops import wants_gradient
from .selection import UNBOUNDED, Call, Pattern, choose, find, problems

_reasons: Counter[str] = Counter()


def fell_back() -> dict[str, int]:
    """How many calls torch computed instead of a kernel of this package, by reason.

    A call that is compiled is counted when it is compiled, not when it runs.
    """
    return dict(_reasons)


def count(reason: str) -> None:
    if torch.compiler.is_compiling():
        _count_compiled(reason)
    else:
        _reasons[reason] += 1


def _count_compiled(reason: str) -> bool:
    """A constant to the compiler, which runs it once."""
    _reasons[f"{reason} (compiled)"] += 1
    return True


def cannot_serve(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, deterministic: bool
) -> str | None:
    """None when kernels serve the call and, if a gradient is wanted, its backward."""
    if not q.numel() or not k.numel() or not v.numel():
        return None
    def call_of(op: str) -> Call:
        return launch.call_of(op, q, k, v, pattern, deterministic)

    return no_kernel(call_of, wants_gradient(q, k, v))


def no_kernel(call_of: Callable[[str], Call], differentiable: bool) -> str | None:
    """What speaks against a forward and, if a gradient is wanted, its backward."""
    for op in ("fwd", "bwd") if differentiable else ("fwd",):
        call = call_of(op)
        if torch.compiler.is_compiling():
            if not _compiled_in(tuple(problems(call)), call.device, any(call.totals)):
                return f"no kernel of this package serves the {op}"
            continue
        try:
            choose(call)
        except NoKernel as reason:
            return str(reason).splitlines()[0]
    return None


def is_not_beaten(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, deterministic: bool
) -> str | None:
    """When the kernels of this call were tuned, torch was as fast, or faster. A compiled program
    keeps to kernels: the compiler sees no sizes."""
    if torch.compiler.is_compiling() or not q.numel() or not k.numel():
        return None
    for op in ("fwd", "bwd") if wants_gradient(q, k, v) else ("fwd",):
        call = launch.call_of(op, q, k, v, pattern, deterministic)
        search = kernels()[choose(call).kernel]["provenance"].get("search", {})
        if search.get("peers", {}).get("torch", {}).get("beaten", True):
            return None
    return "torch was as fast when this was tuned"


def _compiled_in(names: tuple[str, ...], device: torch.device, packed: bool) -> bool:
    """A constant to the compiler: the same for all sizes."""
    return find(names, device, (1, 1, 1, 1, 1), (int(packed),) * 2) is not None


# What torch.compiler.assume_constant_result does, without the seconds that importing dynamo takes.
for _constant in (_compiled_in, _count_compiled):
    setattr(_constant, "_dynamo_marked_constant", True)  # noqa: B010


# --- attention by the textbook -------------------------------------------------------------------


def textbook(
    q: Tensor, k: Tensor, v: Tensor, *, reason: str, pattern: Pattern, scale: float,
    with_lse: bool, keep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """torch's own function where it can say the same, else the formula; differentiable by torch.

    ``keep`` is the mask where the pattern's name does not say it, [batch, heads, queries, keys].

    The log-sum-exp is only right ``with_lse``.
    """
    count(reason)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    is_causal = pattern == Pattern(right=0, top_left=True) or (
        pattern == Pattern(right=0) and q.shape[2] == k.shape[2]
    )
    if not with_lse and (is_causal or pattern == Pattern()):
        out = torchs(q, k, v, is_causal=is_causal, scale=scale)
        return out, out.new_empty(0)
    exact = torch.promote_types(q.dtype, torch.float32)
    if keep is None:
        keep = mask(pattern, q.shape[2], k.shape[2], q.device)
    scores = (q.to(exact) @ k.to(exact).mT * scale).masked_fill(~keep, -math.inf)
    seen = keep.any(-1, keepdim=True)
    # A row that sees nothing takes part as a row of zeros, so that no gradient is nan.
    scores = scores.masked_fill(~seen, 0)
    out = (scores.softmax(-1).masked_fill(~seen, 0) @ v.to(exact)).to(q.dtype)
    lse = scores.logsumexp(-1).masked_fill(~seen[..., 0], -math.inf)
    return out, lse if exact is torch.float64 else lse.to(torch.float32)


def mask(pattern: Pattern, seqlen_q: int, seqlen_kv: int, device: torch.device) -> Tensor:
    """True where (q, k) stays."""
    shift = 0 if pattern.top_left else seqlen_kv - seqlen_q
    diagonal = torch.arange(seqlen_q, device=device)[:, None] + shift
    key = torch.arange(seqlen_kv, device=device)[None, :]
    keep = torch.ones(seqlen_q, seqlen_kv, dtype=torch.bool, device=device)
    if pattern.left != UNBOUNDED:
        keep = keep & (key >= diagonal - pattern.left)
    if pattern.right != UNBOUNDED:
        keep = keep & (key <= diagonal + pattern.right)
    return keep
