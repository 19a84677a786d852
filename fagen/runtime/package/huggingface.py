"""This package as an attention implementation of Hugging Face transformers."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from . import fallback
from .attention import attention, autocast, not_ours
from .errors import BadArgument, NoKernel, PackageError
from .masks import masked
from .ops import is_plain

_NAME = (__package__ or "").rpartition(".")[2]
# What changes the result and transformers' own call of torch either takes or silently drops.
_TORCHS = ("position_bias", "cache")
_NOBODYS = ("softcap", "s_aux")


def register_with_transformers(name: str = _NAME) -> str:
    """Make ``attn_implementation=name`` call this package; by default its own name. Returns it.

    Calls without a mask, and masks that fall into bands (padding, windows, packed sequences, a
    static cache), are served by kernels; the rest goes to torch as with ``"sdpa"``, and
    ``fell_back()`` counts it. To tell a mask's form its values are read, once per mask.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
        functions, masks = transformers.AttentionInterface, transformers.AttentionMaskInterface
        theirs: Any = importlib.import_module("transformers.integrations.sdpa_attention")
        of_masks: Any = importlib.import_module("transformers.masking_utils")
        ours = functools.partial(_attend, theirs.sdpa_attention_forward)
        mask = of_masks.sdpa_mask
    except (ImportError, AttributeError) as error:
        raise PackageError(
            f"transformers with an AttentionInterface is needed: {error}. "
            'pip install "transformers>=5"'
        ) from error
    known = functions().get(name, None) if name != "eager" else _attend
    if known is not None and getattr(known, "func", None) is not _attend:
        raise BadArgument(f"{name!r} is an attention implementation already; give another name")
    functions.register(name, ours)
    masks.register(name, mask)
    return name


def _attend(
    theirs: Any,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """In transformers' terms; the output is [batch, rows, heads, dim]."""
    for name in _NOBODYS:
        if others.get(name) is not None:
            raise NoKernel(f"{name} is given; no kernel of this package has it")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    query, key, value = autocast(query, key, value)
    given = [name for name in _TORCHS if others.get(name) is not None]
    reason = f"{given[0]} is given" if given else not_ours(
        query, key, value, dropout, scaling, enable_gqa=True)
    if not reason:
        out, reason = _ours(query, key, value, attention_mask, scaling, bool(causal))
        if out is not None:
            return out.transpose(1, 2).contiguous(), None
    fallback.count(reason)
    out, _ = theirs(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
                    is_causal=is_causal, **others)
    return out, None


def _ours(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, causal: bool
) -> tuple[Tensor | None, str]:
    """The output as [batch, heads, rows, dim], or None and what speaks against it."""
    if mask is not None:
        if torch.compiler.is_compiling() or not is_plain(q, k, v):
            return None, "a mask cannot be read while compiling"
        return masked(q, k, v, mask, scale)
    rows = q.shape[2]
    if not causal or rows == 1:  # one row alone is the newest and sees every key
        return attention(q, k, v, scale=scale, fallback="sdpa"), ""
    # Without a mask the first keys are the rows' own; behind them is room of a static cache.
    k, v = k[:, :, :rows], v[:, :, :rows]
    return attention(q, k, v, causal="top-left", scale=scale, fallback="sdpa"), ""
