"""What the store holds of a problem and of those like it, nearest first."""

from __future__ import annotations

from fagen.model import Entry, Problem
from fagen.store import Store, distance
from fagen.target import Target
from fagen.workload import Workload


def like(store: Store, problem: Problem, target: Target, workload: Workload) -> list[Entry]:
    """Same op, dtype and pattern."""
    def unlikeness(entry: Entry) -> tuple[bool, bool, int, float, str]:
        return (
            entry.problem != problem,
            entry.target.facts() != target.facts(),
            abs(entry.problem.head_dim - problem.head_dim),
            distance(entry.workload, workload),
            f"{entry.problem} {entry.target.name} {entry.workload}",
        )

    def is_like(entry: Entry) -> bool:
        a, b = entry.problem, problem
        return (a.op, a.dtype, a.pattern) == (b.op, b.dtype, b.pattern)

    return sorted(filter(is_like, store.entries()), key=unlikeness)


def same(store: Store, problem: Problem, target: Target, workload: Workload) -> Entry | None:
    """Of exactly this target and size."""
    entry = store.find(problem, target, workload)
    if entry is None or str(entry.workload) != str(workload):
        return None
    return entry if entry.target.facts() == target.facts() else None
