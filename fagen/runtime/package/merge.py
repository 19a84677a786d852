"""Joining attention over parts of the keys, as ring and split attention need it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import BadArgument


def merge(
    out1: Tensor, lse1: Tensor, out2: Tensor, lse2: Tensor, *, layout: str = "bhsd"
) -> tuple[Tensor, Tensor]:
    """Attention over both sets of keys, from the outputs and log-sum-exps over each.

    Outputs in ``layout``, log-sum-exps [batch, heads, rows] as ``attention(return_lse=True)`` gives
    them. Differentiable. Rows that saw nothing in both stay 0 and -inf.
    """
    if layout not in ("bhsd", "bshd"):
        raise BadArgument(f"layout {layout!r} is unknown; one of: bhsd, bshd")
    if out1.shape != out2.shape or lse1.shape != lse2.shape:
        raise BadArgument(
            f"the parts differ in shape: {list(out1.shape)} and {list(out2.shape)}, "
            f"{list(lse1.shape)} and {list(lse2.shape)}"
        )
    rows = out1.shape[:3] if layout == "bhsd" else (out1.shape[0], out1.shape[2], out1.shape[1])
    if lse1.shape != rows:
        raise BadArgument(
            f"the log-sum-exp has shape {list(lse1.shape)}, the output calls for {list(rows)}"
        )
    top = torch.maximum(lse1, lse2).detach()
    top = top.masked_fill(top == -math.inf, 0)
    weight1, weight2 = torch.exp(lse1 - top), torch.exp(lse2 - top)
    total = weight1 + weight2
    safe = total.masked_fill(total == 0, 1)
    lse = (top + safe.log()).masked_fill(total == 0, -math.inf)
    share1, share2 = (
        (w / safe if layout == "bhsd" else (w / safe).transpose(1, 2))[..., None]
        for w in (weight1, weight2)
    )
    return (out1 * share1 + out2 * share2).to(out1.dtype), lse
