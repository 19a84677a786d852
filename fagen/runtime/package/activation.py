"""This package as torch's flash implementation, for calls of attention that nobody can edit.

Torch decides as ever which of its implementations takes a call. Where that is the flash one, the
kernels of this package compute it; what they do not serve goes on to torch's own kernel. Results
have the strides that torch's own have, for its compiler relies on them.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import fallback, launch
from .attention import not_ours
from .errors import BadArgument, NoKernel, PackageError
from .launch import Options
from .ops import registry
from .selection import Choice, Pattern

_NAME = (__package__ or "").rpartition(".")[2]
_mine: set[str] = set()
_Served = tuple[Options, Choice | None]


def activate(name: str = _NAME) -> str:
    """Make this package torch's flash implementation, by default under its own name; returns it.

    ``torch.nn.attention.restore_flash_attention_impl()`` takes it back. ``served()`` and
    ``fell_back()`` count the calls.
    """
    theirs: Any = importlib.import_module("torch.nn.attention")
    try:
        register = theirs.register_flash_attention_impl
        known, _ = theirs.list_flash_attention_impls(), torch.library.get_kernel
    except AttributeError:
        raise PackageError(
            f"torch {torch.__version__} has no place for another flash implementation; "
            f"replacing_sdpa() works with every version"
        ) from None
    if name in known and name not in _mine:
        raise BadArgument(f"{name!r} is a flash implementation already; give another name")
    _mine.add(name)
    register(name, register_fn=_Activated)
    theirs.activate_flash_attention_impl(name)
    return name


class _Activated:
    """Keeps the kernels in torch's dispatcher for as long as it lives."""

    def __init__(self) -> None:
        self.library: Any = registry.Library("aten", "IMPL")
        with warnings.catch_warnings():
            # That torch's own kernel is overridden is what was asked for.
            warnings.filterwarnings("ignore", "Warning only once for all operators")
            self._replace()

    def _replace(self) -> None:
        for key, name, ours in _OPERATORS:
            if key == "CPU" or torch.version.cuda:
                theirs = registry.get_kernel(f"aten::{name}", key)
                self.library.impl(name, _either(ours, theirs), key, with_keyset=True)

    def remove(self) -> None:
        self.library = None


def _either(ours: Callable[..., Any], theirs: Any) -> Callable[..., Any]:
    def kernel(keys: Any, *args: Any, **options: Any) -> Any:
        found = ours(*args, **options)
        return theirs.call_boxed(keys, *args, **options) if found is None else found

    return kernel


def _served(
    op: str, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, is_causal: bool,
    scale: float | None, refused: str | None,
) -> _Served | None:
    """What to run, or None, counted."""
    pattern = Pattern(right=0, top_left=True) if is_causal else Pattern()
    deterministic = torch.are_deterministic_algorithms_enabled()
    reason = refused or not_ours(q, k, v, dropout_p, scale, enable_gqa=True)
    if not reason and op == "fwd":
        reason = fallback.cannot_serve(q, k, v, pattern, deterministic)
    if not reason:
        own_scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
        options = Options(*pattern, own_scale, q.stride(1) < q.stride(2), deterministic)
        try:
            return options, launch.choose_for(op, q, k, v, options)
        except NoKernel as error:
            reason = str(error).splitlines()[0]
    fallback.count(reason)
    return None


def _as(wanted: Tensor, found: Tensor) -> Tensor:
    return found if found.stride() == wanted.stride() else wanted.copy_(found)


# --- the operators, as torch calls them ----------------------------------------------------------


def _cpu(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor] | None:
    refused = "attn_mask is given" if attn_mask is not None else None
    served = _served("fwd", q, k, v, dropout_p, is_causal, scale, refused)
    if served is None:
        return None
    out, lse = launch.forward(q, k, v, *served)
    return _as(torch.empty_like(q), out), lse.mT.contiguous().mT


def _cpu_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dropout_p: float,
    is_causal: bool, *, attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    refused = "attn_mask is given" if attn_mask is not None else None
    served = _served("bwd", q, k, v, dropout_p, is_causal, scale, refused)
    if served is None:
        return None
    options, choice = served
    options = options._replace(rows_first=True)
    return launch.backward(dout, None, q, k, v, out, lse, options, choice)


def _cuda(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
    return_debug_mask: bool = False, *, scale: float | None = None,
) -> tuple[Any, ...] | None:
    refused = _refused_on_cuda(q, k, v, is_causal) or (
        "return_debug_mask is True" if return_debug_mask else None)
    served = _served("fwd", q, k, v, dropout_p, is_causal, scale, refused)
    if served is None:
        return None
    out, lse = launch.forward(q, k, v, *served)
    # Offsets of packed sequences, the lengths, the state of the random numbers, a matrix to debug.
    return (_as(torch.empty_like(q), out), lse, None, None, q.shape[2], k.shape[2],
            q.new_empty(2, dtype=torch.uint64), q.new_empty((), dtype=torch.uint64), q.new_empty(0))


def _cuda_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cum_q: Any, cum_k: Any,
    max_q: int, max_k: int, dropout_p: float, is_causal: bool, seed: Any, offset: Any, *,
    scale: float | None = None,
) -> tuple[Tensor, ...] | None:
    refused = _refused_on_cuda(q, k, v, is_causal)
    served = _served("bwd", q, k, v, dropout_p, is_causal, scale, refused)
    if served is None:
        return None
    grads = launch.backward(dout, None, q, k, v, out, lse, *served)
    return tuple(_as(torch.empty_like(x), g) for x, g in zip((q, k, v), grads, strict=True))


def _refused_on_cuda(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> str | None:
    """Torch's kernels for CUDA line the diagonal up with the last row."""
    if is_causal and q.shape[2] != k.shape[2]:
        return "is_causal with rows of q and k that differ in number"
    return None if q.shape[3] == v.shape[3] else "the head dimensions of q and v differ"


_OPERATORS: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("CPU", "_scaled_dot_product_flash_attention_for_cpu", _cpu),
    ("CPU", "_scaled_dot_product_flash_attention_for_cpu_backward", _cpu_backward),
    ("CUDA", "_scaled_dot_product_flash_attention", _cuda),
    ("CUDA", "_scaled_dot_product_flash_attention_backward", _cuda_backward),
)
