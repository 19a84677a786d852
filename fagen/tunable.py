"""What the search needs of a device, so that it can be replayed without one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from fagen.model import Binary, Candidate, Failure, Measurement, Source
from fagen.neighbours import Conditions
from fagen.workload import Workload


class Renders(Protocol):
    def render(self, candidate: Candidate) -> Source: ...


class Built(Protocol):
    @property
    def binary(self) -> Binary: ...


class Pool(Protocol):
    """Builds ahead, verified timings, interleaved laps. Kernels that crash, hang or are wrong come
    back as failures; nothing a kernel does raises here."""

    @property
    def renderer(self) -> Renders: ...

    @property
    def lap_samples(self) -> Mapping[Candidate, Sequence[float]]:
        """Of the last lap: microseconds, round by round."""

    @property
    def conditions(self) -> Conditions:
        """Of the last measurement, or of the reference: who else was on the device."""

    def prepare(self, candidates: Iterable[Candidate]) -> None: ...

    def build(self, candidate: Candidate) -> Built | Failure: ...

    def measure(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> Measurement | Failure: ...

    def reference(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> float | Failure:
        """Microseconds, right now, of a candidate that is asked for again and again."""

    def lap(
        self, candidates: Sequence[Candidate], workload: Workload, rounds: int
    ) -> Sequence[Measurement | Failure]: ...

    def contest(
        self, candidate: Candidate, workload: Workload, rounds: int
    ) -> Mapping[str, Sequence[float]]:
        """Against other implementations: samples by name, our own under the empty one."""
