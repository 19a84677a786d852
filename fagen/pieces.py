"""The independent pieces of a call: one key/value head of one batch entry or packed sequence."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from fagen.model import Problem
from fagen.workload import Workload

Group = tuple[int, int]  # batch entry or sequence, key/value head
_OF_KEYS = ("k", "v", "dk", "dv")


@dataclass(frozen=True)
class Pieces:
    """Which rows of which heads each piece has. Packed tensors have a batch of one."""

    workload: Workload  # as its problem takes it
    starts: tuple[tuple[int, ...], tuple[int, ...]]  # first rows of the sequences, and the totals

    @classmethod
    def of(cls, problem: Problem, workload: Workload) -> Pieces:
        w = workload.of(problem)
        q, kv = (tuple(itertools.accumulate(n, initial=0)) for n in zip(*w.lengths(), strict=True))
        return cls(w, (q, kv))

    def all(self) -> list[Group]:
        w = self.workload
        return [(b, h) for b in range(w.batch) for h in range(w.kv_heads)]

    def lengths(self, group: Group) -> tuple[int, int]:
        q, kv = (starts[group[0] + 1] - starts[group[0]] for starts in self.starts)
        return q, kv

    @property
    def heads(self) -> int:
        """Query heads that share one key/value head."""
        return self.workload.heads // self.workload.kv_heads

    def cut(self, name: str, tensor: Tensor, group: Group) -> Tensor:
        """A view of the piece in a tensor [batch, head, row(, dim)]: heads, rows and dim of it."""
        batch, head = group
        keys = name in _OF_KEYS
        first = head if keys else head * self.heads
        heads = slice(first, first + (1 if keys else self.heads))
        if not self.workload.packed:
            return tensor[batch, heads]
        starts = self.starts[keys]
        return tensor[0, heads, starts[batch] : starts[batch + 1]]
