"""Is a kernel right? Poisoned outputs, guard zones, and a bound that does not depend on taste.

The rule: in every tile of 64 rows of every output, the error against the exact result is at most
twice that of a plain computation in the same storage type, plus a floor for what fp32 arithmetic
itself cannot hold. A tile and not the whole tensor, because early rows of a causal mask are
large and would hide anything that happens to the small late ones.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fagen.call import Call
from fagen.cases import Case
from fagen.errors import WrongResult
from fagen.inputs import POISON, Buffer, buffer, outputs, random_inputs
from fagen.library import Library
from fagen.model import Problem
from fagen.pieces import Group, Pieces
from fagen.solver import TILE_ROWS, Solver, difference, tiles

SAMPLED_GROUPS = 3  # at most, of a sampled case
SAMPLED_SCORES = {"cpu": 1 << 30, "cuda": 1 << 34}  # in all sampled groups: seconds of reference
KEPT_SHARE = 0.25  # of the device's memory, for prepared cases


class MemoryDamaged(WrongResult):
    """The kernel wrote where it must not: nothing else in this process can be trusted either."""


@dataclass(frozen=True)
class Expected:
    """One output of one piece: exact values, and a bound per tile of rows."""

    want: Tensor
    bound: Tensor


@dataclass(frozen=True)
class Prepared:
    """A case with its inputs made and its answers known."""

    problem: Problem
    case: Case
    inputs: Mapping[str, Buffer]
    untouched: Mapping[str, Tensor]
    pieces: Pieces
    groups: tuple[Group, ...]  # those that are compared
    expected: Mapping[Group, Mapping[str, Expected]]

    @property
    def bytes(self) -> int:
        buffers = (b.raw for b in self.inputs.values())
        answers = (t for by_name in self.expected.values() for e in by_name.values()
                   for t in (e.want, e.bound))
        return sum(t.nbytes for t in (*buffers, *self.untouched.values(), *answers))


@dataclass(frozen=True)
class Score:
    """The worst error as a share of its bound, and the tensor it is in."""

    error: float
    bound_by: str


class Checker:
    """Verifies kernels on one device; remembers prepared cases, the latest ones."""

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self.room = KEPT_SHARE * _memory_bytes(device)
        self._cases: OrderedDict[tuple[str, Case], Prepared] = OrderedDict()

    def prepared(self, problem: Problem, case: Case) -> Prepared:
        key = (str(problem), case)
        if key not in self._cases:
            # Small tensors on several threads: the threads would mostly wait for each other.
            torch.set_num_threads(self.threads if case.sampled else 1)
            made = prepare(problem, case, self.device)
            torch.set_num_threads(1)
            while self._cases and made.bytes + self._bytes() > self.room:
                self._cases.popitem(last=False)
            self._cases[key] = made
        self._cases.move_to_end(key)
        return self._cases[key]

    def _run(self, call: Call) -> None:
        call.poison()
        call()
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def _bytes(self) -> int:
        return sum(kept.bytes for kept in self._cases.values())

    def check(self, library: Library, prepared: Prepared, runs: int = 1) -> Score:
        """Raises WrongResult in words. With more than one run, all must give the same bits."""
        problem, case = prepared.problem, prepared.case
        call = Call.bind(library, problem, case, prepared.inputs, self.device, self.threads)
        self._run(call)
        first = {n: b.bits.clone() for n, b in call.outputs.items()} if runs > 1 else {}
        for n in range(2, runs + 1):
            self._run(call)
            for name, bits in first.items():
                if not torch.equal(call.outputs[name].bits, bits):
                    raise WrongResult(f"run {n} on {case} gives another {name} than the first run")
        scores = [
            _compare(prepared, name, call.outputs[name].values) for name in outputs(problem)
        ]
        for name, guarded in {**call.outputs, "its workspace": call.workspace}.items():
            if damage := guarded.damage():
                raise MemoryDamaged(f"the kernel wrote outside of {name} on {case}: {damage}")
        for name, before in prepared.untouched.items():
            if not torch.equal(prepared.inputs[name].raw, before):
                raise MemoryDamaged(f"the kernel changed its input {name} on {case}")
        return max(scores, key=lambda score: score.error)


def _memory_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _compare(prepared: Prepared, name: str, values: Tensor) -> Score:
    case = prepared.case
    if case.inputs in ("normal", "large") and (unwritten := int(values.isnan().sum())):
        raise WrongResult(f"{unwritten} of {values.numel()} elements of {name} on {case} are NaN")
    misses = [_Miss.of(prepared, name, values, group) for group in prepared.groups]
    worst = max(misses, key=lambda miss: miss.worst)
    if worst.worst > 1:
        bad = sum(int((miss.share > 1).sum()) for miss in misses)
        tiles = sum(miss.share.numel() for miss in misses)
        raise WrongResult(f"{name} is wrong on {case}: {worst} "
                          f"({bad} of {tiles} tiles are out of bounds)")
    return Score(worst.worst, name)


@dataclass(frozen=True)
class _Miss:
    """How far one piece of one output is off."""

    prepared: Prepared
    name: str
    group: Group
    got: Tensor
    error: Tensor
    share: Tensor  # of the bound, by head and tile
    worst: float

    @classmethod
    def of(cls, prepared: Prepared, name: str, values: Tensor, group: Group) -> _Miss:
        expected = prepared.expected[group][name]
        got = prepared.pieces.cut(name, values, group).to(expected.want.dtype)
        error = difference(got, expected.want, name)
        off = tiles(error)
        share = torch.where(off == 0, 0, off / expected.bound)  # exact needs no bound
        worst = float(share.max()) if share.numel() else 0.0
        return cls(prepared, name, group, got, error, share, worst)

    def __str__(self) -> str:
        head, tile = divmod(int(self.share.argmax()), self.share.shape[1])
        last = tile + 1 == self.share.shape[1]
        rows = slice(tile * TILE_ROWS, None if last else (tile + 1) * TILE_ROWS)
        inside = self.error[head, rows]
        at = [int(i) for i in torch.unravel_index(inside.argmax(), inside.shape)]
        at[0] += rows.start
        batch, group = self.group
        element = [batch, group * len(self.got) + head, *at]
        expected = self.prepared.expected[self.group][self.name]
        bound = float(expected.bound[head, tile])
        return (
            f"at {element} it is {float(self.got[(head, *at)]):.6g} instead of"
            f" {float(expected.want[(head, *at)]):.6g}, {self.worst:.3g} times the bound"
            f" {bound:.3g}"
        )


# --- preparing -----------------------------------------------------------------------------------


def prepare(problem: Problem, case: Case, device: str) -> Prepared:
    inputs = random_inputs(problem, case, device)
    pieces = Pieces.of(problem, case.workload)
    everything = pieces.all()
    groups = _sample(pieces, device) if case.sampled else everything
    solver = Solver(problem, case, pieces, inputs)
    if problem.op == "bwd":
        inputs |= {name: buffer(name, problem, case, device, POISON) for name in ("o", "lse")}
        for group in everything:
            solver.feed(group, exact=group in groups)
    expected = {
        group: {name: Expected(*answer) for name, answer in solver.solve(group).items()}
        for group in groups
    }
    untouched = {} if case.sampled else {name: b.raw.clone() for name, b in inputs.items()}
    return Prepared(problem, case, inputs, untouched, pieces, tuple(groups), expected)


def _sample(pieces: Pieces, device: str) -> list[Group]:
    """The last one at least, then the first, then the middle one; the longest one is last."""
    groups = sorted(pieces.all(), key=lambda group: math.prod(pieces.lengths(group)))
    scores = pieces.heads * math.prod(pieces.lengths(groups[-1]))
    count = max(1, min(SAMPLED_GROUPS, SAMPLED_SCORES[device.partition(":")[0]] // scores))
    last = len(groups) - 1
    return [groups[i] for i in sorted({*(last, 0, last // 2)[:count]})]
