"""What a worker does with kernels: verify them, time them, time several in turn."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from fagen import peers
from fagen.call import Call
from fagen.cases import Case
from fagen.inputs import Buffer, copied
from fagen.library import Library
from fagen.model import Problem
from fagen.timing import CPU_FOOTPRINT_BYTES, CPU_ROTATION, Summary, Timer
from fagen.verify import Checker

Doing = Callable[[str, str], None]
Timed = Call | peers.PeerCall

_ROUND_SECONDS = 0.02  # of one candidate's turn in a lap
_ROUND_SAMPLES = 3  # at least


class Workbench:
    """One device, the libraries loaded so far, and the cases prepared so far."""

    def __init__(self, device: str, threads: int, doing: Doing) -> None:
        self.device, self.doing = device, doing
        self.threads = threads or len(os.sched_getaffinity(0))
        if device != "cpu":
            torch.zeros(1, device=device)  # create the primary context that kernels will share
        torch.set_grad_enabled(False)
        self.checker = Checker(device, self.threads)
        self.timer = Timer(device)
        self._libraries: dict[str, Library] = {}
        self._watched: tuple[object, list[Call]] = None, []  # the reference that was timed last

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"torch": str(torch.__version__), "threads": self.threads}
        if self.device != "cpu":
            properties = torch.cuda.get_device_properties(self.device)
            facts |= {"gpu": properties.name, "uuid": f"GPU-{properties.uuid}"}
        return facts

    def forget(self) -> None:
        """Give memory back."""
        self.checker = Checker(self.device, self.threads)
        self._watched = None, []
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def library(self, path: str) -> Library:
        if path not in self._libraries:
            self._libraries[path] = Library.load(path)
        return self._libraries[path]

    # --- requests --------------------------------------------------------------------------------

    def verify(
        self, library: str, problem: str, cases: list[dict[str, Any]], runs: int = 1
    ) -> dict[str, Any]:
        """Stops at the first case that fails."""
        parsed, worst = Problem.parse(problem), None
        for case in map(Case.from_json, cases):
            self.doing("prepare", str(case))
            prepared = self.checker.prepared(parsed, case)
            self.doing("run", str(case))
            score = self.checker.check(self.library(library), prepared, runs)
            if worst is None or score.error > worst.error:
                worst = score
        return asdict(worst) if worst else {"error": 0.0, "bound_by": "nothing"}

    def measure(
        self, library: str, problem: str, case: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        size = Case.from_json(case)
        calls = self._calls(library, problem, size, str(size))
        self.doing("time", str(size))
        before, conditions = self.timer.mhz(), self.timer.watch()
        samples = self.timer.sample(calls, seconds)
        return {**self._timed(samples, before, calls[0]), "conditions": asdict(conditions())}

    def reference(
        self, library: str, problem: str, case: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        """A kernel that is timed over and over; its calls are kept."""
        size = Case.from_json(case)
        if self._watched[0] != (library, problem, size):
            calls = self._calls(library, problem, size, str(size))
            self._watched = (library, problem, size), calls
        self.doing("time", str(size))
        conditions = self.timer.watch()
        us = statistics.median(self.timer.sample(self._watched[1], seconds))
        return {"us": us, "conditions": asdict(conditions())}

    def lap(
        self, entries: list[dict[str, str]], case: dict[str, Any], rounds: int
    ) -> dict[str, Any]:
        """Each entry (library or peer, problem) in turn, ``rounds`` times, another one first each
        round."""
        size = Case.from_json(case)
        calls = [self._entry_calls(e, size, f"#{i}") for i, e in enumerate(entries)]
        each = [self._turn_samples(call, f"#{i}") for i, call in enumerate(calls)]
        samples: list[list[float]] = [[] for _ in entries]
        medians: list[list[float]] = [[] for _ in entries]
        before = self.timer.mhz()
        for n in range(rounds):
            for i in ((n + i) % len(entries) for i in range(len(entries))):
                self.doing("time", f"#{i}")
                turn = calls[i] * -(-each[i] // len(calls[i]))
                self.timer.once(turn[:1])  # the one before left its own data and clocks
                taken = self.timer.once(turn[: each[i]])
                samples[i] += taken
                medians[i].append(round(statistics.median(taken), 3))
        timed = [self._timed(s, before, c[0]) for s, c in zip(samples, calls, strict=True)]
        return {"timed": timed, "medians": medians}

    def _entry_calls(self, entry: dict[str, str], case: Case, what: str) -> list[Timed]:
        if "peer" not in entry:
            return list(self._calls(entry["library"], entry["problem"], case, what))
        problem = Problem.parse(entry["problem"])
        self.doing("prepare", what)
        given = self.checker.prepared(problem, case).inputs
        self.doing("run", what)
        size = 2 * sum(len(b.raw) for b in given.values())
        copies = 0 if self.device != "cpu" else min(CPU_ROTATION, -(-CPU_FOOTPRINT_BYTES // size))
        sets = [given] + [copied(problem, case, given) for _ in range(copies - 1)]
        calls = [peers.bind(entry["peer"], problem, case, i, self.threads) for i in sets]
        calls[0]()  # what cannot run is said now
        return list(calls)

    def _turn_samples(self, calls: Sequence[Timed], what: str) -> int:
        self.doing("time", what)
        typical = statistics.median(self.timer.sample(calls, _ROUND_SECONDS * 3))
        return max(_ROUND_SAMPLES, min(50, int(_ROUND_SECONDS * 1e6 / typical)))

    def _timed(self, samples: list[float], mhz_before: float, call: Timed) -> dict[str, Any]:
        clock = (mhz_before + self.timer.mhz()) / 2
        return {
            **asdict(Summary.of(samples)), "clock_mhz": clock, "bytes_peak": call.workspace_bytes,
        }

    def _calls(self, library: str, slug: str, case: Case, what: str) -> list[Call]:
        """The same call over enough copies of its tensors that a CPU's caches do not hold all."""
        problem = Problem.parse(slug)
        self.doing("prepare", what)
        prepared = self.checker.prepared(problem, case)
        self.doing("run", what)
        loaded = self.library(library)

        def bind(inputs: dict[str, Buffer]) -> Call:
            return Call.bind(loaded, problem, case, inputs, self.device, self.threads)

        first = bind(dict(prepared.inputs))
        if self.device != "cpu":
            return [first]
        size = sum(len(b.raw) for b in (*first.inputs.values(), *first.outputs.values()))
        copies = min(CPU_ROTATION, -(-CPU_FOOTPRINT_BYTES // size))
        return [first] + [bind(copied(problem, case, prepared.inputs)) for _ in range(copies - 1)]
