"""Other libraries' ways to call attention, so that code written for them runs as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .attention import attention, scaled_dot_product_attention
from .errors import BadArgument, BadType, NoKernel
from .selection import UNBOUNDED


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """As in the flash-attn package: [batch, seqlen, heads, dim], -1 for an unbounded side.

    With ``return_attn_probs`` the output, the log-sum-exp and None. What no kernel here can do
    (dropout, softcap, ALiBi) raises NoKernel.
    """
    refuse(dropout_p, softcap, alibi_slopes)
    out, lse = attention(
        q, k, v, layout="bshd", scale=softmax_scale, deterministic=deterministic,
        return_lse=True, **band(causal, window_size, k),
    )
    return (out, lse, None) if return_attn_probs else out


def refuse(dropout_p: float, softcap: float, alibi_slopes: Tensor | None) -> None:
    for name, given in (("dropout_p", dropout_p), ("softcap", softcap)):
        if given:
            raise NoKernel(f"{name} is {given!r}; no kernel of this package has it")
    if alibi_slopes is not None:
        raise NoKernel("alibi_slopes is given; no kernel of this package has it")


def band(causal: bool, window_size: Any, k: Any) -> dict[str, Any]:
    """The options of ``attention``: a side that is unbounded reaches over all keys."""
    if not (isinstance(window_size, (tuple, list)) and len(window_size) == 2
            and all(isinstance(n, int) for n in window_size)):
        raise BadType(f"window_size is {window_size!r}; (left, right) is expected")
    left, right = window_size
    if left < UNBOUNDED or right < UNBOUNDED:
        raise BadArgument(f"window_size is {window_size!r}; -1 means unbounded, less means nothing")
    right = 0 if causal else right
    if left == UNBOUNDED and right in (UNBOUNDED, 0):
        return {"causal": right == 0}
    if not isinstance(k, Tensor) or k.dim() != 4:
        return {}  # attention says what is wrong with it
    everything = k.shape[1]
    return {"window": (everything if left == UNBOUNDED else left,
                       everything if right == UNBOUNDED else right)}


@contextlib.contextmanager
def replacing_sdpa() -> Iterator[None]:
    """Inside, ``torch.nn.functional.scaled_dot_product_attention`` is this package's.

    Calls that no kernel serves go on to torch; ``fell_back()`` counts them. For the whole process:
    other threads see it too. Modules that bound torch's function to a name of their own keep it.
    """
    functional: Any = torch.nn.functional
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = scaled_dot_product_attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before
