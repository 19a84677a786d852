"""One device: the worker that runs kernels on it, and the builds that feed the worker.

Nothing that a kernel or a compiler does gets past this module: a crash, a hang or a wrong result is
a Failure that says what to run to see it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fagen import paths
from fagen.builds import Builds, Built
from fagen.cases import Case
from fagen.child import Child
from fagen.errors import RunError
from fagen.lock import DeviceLock
from fagen.model import Candidate, Failure
from fagen.render import Renderer
from fagen.target import KNOWN_TARGETS

if TYPE_CHECKING:
    from fagen.build import Builder


@dataclass(frozen=True)
class Limits:
    """Seconds without a word before a stage counts as hung."""

    build: float = 120.0
    start: float = 180.0  # importing torch from a cold disk, creating a CUDA context
    prepare: float = 300.0  # inputs and the reference: none of the candidate's code
    run: float = 30.0  # one case
    time: float = 30.0  # beyond the seconds asked for


class Station:
    """Asked about one candidate at a time."""

    def __init__(
        self, builder: Builder, renderer: Renderer, device: str, jobs: int, scratch: Path,
        threads: int, allow_spills: bool, limits: Limits, on_wait: Callable[[str], None],
        wrapper: Sequence[str],
    ) -> None:
        self.device = device
        self.builds = Builds(
            builder, renderer, jobs, scratch / "libraries", limits.build, allow_spills
        )
        self.worker = Child(
            device, threads, scratch / "worker.log", asdict(limits), self.builds.pump, wrapper
        )
        self._on_wait = on_wait

    def close(self) -> None:
        self.builds.close()
        self.worker.end(grace=10.0)  # it exits by itself when its requests end

    @property
    def turn(self) -> int | None:
        """Of those that take turns, whose it was when the worker last said so."""
        number = self.worker.doing.removeprefix("#")
        return int(number) if number.isdecimal() else None

    def build(self, candidate: Candidate) -> Built | Failure:
        built = self.builds.get(candidate)
        return reproducible(built, candidate) if isinstance(built, Failure) else built

    def ask(
        self, candidate: Candidate, case: Case | None, do: str, request: dict[str, Any],
        timed: bool = True,
    ) -> dict[str, Any] | Failure:
        """The worker's answer. No other process runs anything on this device meanwhile."""
        with self._exclusive(), self._quiet() if timed else contextlib.nullcontext():
            try:
                answer = self.worker.ask(do, request, extra=request.get("seconds", 0.0))
            except RunError as error:
                stage = "measure" if timed else "verify"
                failure = Failure(stage, type(error).__name__, error.message)
                return reproducible(failure, candidate, case)
        if answer.pop("ok"):
            return answer
        failure = Failure(answer["stage"], answer["kind"], answer["reason"])
        return reproducible(failure, candidate, case)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        self.worker.start()
        device = self.worker.facts.get("uuid", self.device)
        with DeviceLock(paths.locks(), device, on_wait=self._on_wait).held():
            yield

    def _quiet(self) -> contextlib.AbstractContextManager[None]:
        """On the host, kernels are timed on the cores that compilers would use."""
        return self.builds.paused() if self.device == "cpu" else contextlib.nullcontext()


def reproducible(failure: Failure, candidate: Candidate, case: Case | None = None) -> Failure:
    return replace(failure, reproduce=reproduce(candidate, case))


def reproduce(candidate: Candidate, case: Case | None = None) -> str:
    """The command that shows a failure again."""
    target = candidate.target
    words = ["fagen verify", f"'{candidate.problem}'"]
    if KNOWN_TARGETS.get(target.name) == target:
        words.append(f"--target {target.name}")
    elif target.kind == "cpu":
        words.append("--gpu none")
    words.append(f"--family {candidate.family.name}")
    knobs = candidate.family.show(candidate.config)
    words += [f"--set {knob}" for knob in knobs.split(",") if knob]
    words += [f"--workload {case.workload}"] if case else []
    return " ".join(words)
