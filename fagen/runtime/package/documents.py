"""Masks of one run of keys per query, for kernels of the pattern ``documents``."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from . import order
from .errors import BadArgument, BadType
from .runs import keys_to_queries


class DocumentMask:
    """Each query sees one run of keys, and no run begins or ends before that of the query before:
    documents one after another in queries and keys alike. For all heads; for all batches, or each.
    """

    def __init__(self, runs: Tensor, seqlen_kv: int, causal: bool) -> None:
        """Use one of the constructors below."""
        self.runs, self.causal = runs, causal
        self.lengths = runs.shape[1], seqlen_kv

    def __repr__(self) -> str:
        return f"DocumentMask({self.name}, {self.lengths[0]} x {self.lengths[1]})"

    # --- made from -------------------------------------------------------------------------------

    @classmethod
    def from_runs(cls, begin: Any, end: Any, seqlen_kv: int) -> DocumentMask:
        """First and one past the last key of each query, [queries] or [batch, queries]."""
        ends = [_integers(x, name) for x, name in ((begin, "begin"), (end, "end"))]
        if ends[0].shape != ends[1].shape:
            raise BadArgument(f"begin has shape {list(ends[0].shape)}, end {list(ends[1].shape)}")
        runs = torch.stack(ends, -1)
        low, high = int(runs.min()), int(runs.max())
        if low < 0 or high > seqlen_kv or bool((runs[..., 0] > runs[..., 1]).any()):
            raise BadArgument(f"runs of keys go from {low} to {high}, or end before they begin; "
                              f"there are {seqlen_kv} keys")
        if bool((runs[:, 1:] < runs[:, :-1]).any()):
            raise BadArgument("a query's keys begin or end before those of the query before; "
                              "documents must stand in one order among queries and keys")
        return cls(runs, seqlen_kv, False)

    @classmethod
    def from_ids(
        cls, ids_q: Any, ids_kv: Any = None, *, causal: bool = False, padding: int | None = None
    ) -> DocumentMask:
        """The document of each query and of each key (the same ones), [rows] or [batch, rows].

        A document's rows stand together. What belongs to ``padding`` neither sees nor is seen.
        """
        queries = _integers(ids_q, "ids_q")
        keys = queries if ids_kv is None else _integers(ids_kv, "ids_kv")
        if len(queries) != len(keys):
            raise BadArgument(f"ids_q is for {len(queries)} batches, ids_kv for {len(keys)}")
        found = [
            _runs(*pair, causal, padding) for pair in zip(queries.cpu(), keys.cpu(), strict=True)
        ]
        begin, end = torch.stack(found).to(queries.device).unbind(-1)
        mask = cls.from_runs(begin, end, keys.shape[1])
        mask.causal = bool(causal)
        return mask

    @classmethod
    def from_cumulative(
        cls, cu_seqlens_q: Any, cu_seqlens_kv: Any = None, *, causal: bool = False
    ) -> DocumentMask:
        """Where each document begins and the last one ends, as packed sequences are given."""
        cuts = [_cuts(cu_seqlens_q, "cu_seqlens_q")]
        cuts += cuts if cu_seqlens_kv is None else [_cuts(cu_seqlens_kv, "cu_seqlens_kv")]
        if len(cuts[0]) != len(cuts[1]):
            raise BadArgument(f"there are {len(cuts[0]) - 1} documents of queries and "
                              f"{len(cuts[1]) - 1} of keys")
        ids = [torch.arange(len(c) - 1).repeat_interleave(c.diff().cpu()).to(c.device)
               for c in cuts]
        return cls.from_ids(*ids, causal=causal)

    # --- what it is ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Of the pattern whose kernels serve it; causal runs are nothing special to them."""
        return "documents" + "-causal" * self.causal

    @property
    def device(self) -> torch.device:
        return self.runs.device

    @property
    def sharing(self) -> tuple[int, int]:
        """For how many batches and heads."""
        return len(self.runs), 1

    def dense(self) -> Tensor:
        """Booleans [batch or 1, 1, queries, keys]."""
        keys = torch.arange(self.lengths[1], device=self.device)
        kept: Tensor = (keys >= self.runs[..., :1]) & (keys < self.runs[..., 1:])
        return kept[:, None]

    def arrays(self, backward: bool) -> list[Tensor]:
        """What kernels read: struct fagen_mask's pointers in their order."""
        none, runs = self._queries.new_empty(0), [self._queries]
        orders = [self._order_of_queries]
        if backward:
            runs.append(self._keys)
            orders.append(self._order_of_keys)
        return [none, orders[0], none, none, orders[-1], none, runs[0], runs[-1]]

    @functools.cached_property
    def _queries(self) -> Tensor:
        return self.runs.int().contiguous()

    @functools.cached_property
    def _keys(self) -> Tensor:
        return keys_to_queries(self.runs, self.lengths[1])

    @functools.cached_property
    def _order_of_queries(self) -> Tensor:
        return order.of_runs(self._queries)

    @functools.cached_property
    def _order_of_keys(self) -> Tensor:
        return order.of_runs(self._keys)


def _integers(given: Any, name: str) -> Tensor:
    """As int64 [batch, rows]."""
    found = torch.as_tensor(given)
    if found.is_floating_point() or found.is_complex() or found.dtype is torch.bool:
        raise BadType(f"{name} is of {found.dtype}; integers are expected")
    if found.dim() not in (1, 2) or not found.numel():
        raise BadArgument(f"{name} has shape {list(found.shape)}; [rows] or [batch, rows] is "
                          "expected, with no dimension of 0")
    return (found if found.dim() == 2 else found[None]).long()


def _cuts(given: Any, name: str) -> Tensor:
    cuts = _integers(given, name)
    if len(cuts) != 1 or int(cuts[0, 0]) or bool((cuts.diff() < 0).any()) or not int(cuts[0, -1]):
        raise BadArgument(f"{name} is {cuts.tolist()}; it must rise from 0 to the number of rows")
    return cuts[0]


def _runs(queries: Tensor, keys: Tensor, causal: bool, padding: int | None) -> Tensor:
    """[queries, 2] of one batch entry."""
    begins, ends = {}, {}
    for name, begin, end in _stretches(keys, "keys"):
        begins[name], ends[name] = begin, end
    found = torch.zeros(len(queries), 2, dtype=torch.int64)
    last = 0
    for name, begin, end in _stretches(queries, "queries"):
        first = begins.get(name) if name != padding else None
        if first is None:  # an empty run, where it does not disturb the order
            found[begin:end] = last
            continue
        last = ends[name]
        found[begin:end, 0] = first
        late = torch.arange(begin + 1 - end, 1) if causal else torch.zeros(end - begin).long()
        found[begin:end, 1] = (late + last).clamp(min=first)
    return found


def _stretches(ids: Tensor, what: str) -> list[tuple[int, int, int]]:
    """Each document with its first row and the one past its last."""
    names, counts = torch.unique_consecutive(ids, return_counts=True)
    if len(names) != len(names.unique()):
        raise BadArgument(f"a document's {what} do not stand together: its id comes back")
    ends = counts.cumsum(0)
    return list(zip(names.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True))
