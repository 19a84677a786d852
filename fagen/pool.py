"""Candidates in, outcomes out. Nothing that a kernel or a compiler does gets past this module.

A candidate is built in a build child and run in a worker, always verified before it is timed. A
crash, a hang or a wrong result is a Failure that says what to run to see it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fagen import paths
from fagen.builds import Builds, Built
from fagen.cases import Case, of_workload, short_list
from fagen.child import Child
from fagen.errors import RunError
from fagen.lock import DeviceLock
from fagen.model import Candidate, Failure, Measurement
from fagen.neighbours import Conditions
from fagen.render import Renderer
from fagen.rivals import rivals
from fagen.target import KNOWN_TARGETS
from fagen.workload import Workload

if TYPE_CHECKING:
    from fagen.build import Builder
    from fagen.devices import Device


STEADY_RUNS = 3


@dataclass(frozen=True)
class Limits:
    """Seconds without a word before a stage counts as hung."""

    build: float = 120.0
    start: float = 180.0  # importing torch from a cold disk, creating a CUDA context
    prepare: float = 300.0  # inputs and the reference: none of the candidate's code
    run: float = 30.0  # one case
    time: float = 30.0  # beyond the seconds asked for


@dataclass(frozen=True)
class Verdict:
    """Verified: the worst error as a share of its bound, the tensor it is in, cases passed."""

    error: float
    bound_by: str
    cases: int


class Pool:
    """Build children and one worker on one device."""

    def __init__(
        self, builder: Builder, renderer: Renderer, device: Device | str, *, jobs: int,
        scratch: Path, threads: int = 0, allow_spills: bool = False, limits: Limits | None = None,
        on_wait: Callable[[str], None] = lambda text: None, wrapper: Sequence[str] = (),
    ) -> None:
        self.device = device if isinstance(device, str) else device.name
        self.renderer = renderer  # the search asks for digests
        limits = limits or Limits()
        self._builds = Builds(
            builder, renderer, jobs, scratch / "libraries", limits.build, allow_spills
        )
        self._worker = Child(
            self.device, threads, scratch / "worker.log", asdict(limits), self._builds.pump,
            wrapper,
        )
        self._on_wait = on_wait
        self._verified: dict[tuple[Candidate, Case | None], Verdict | Failure] = {}
        self.lap_samples: dict[Candidate, list[float]] = {}  # medians by round, of the last lap
        self.conditions = Conditions()  # of the last measurement, or of the reference

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._builds.close()
        self._worker.end(grace=10.0)  # it exits by itself when its requests end

    @property
    def worker_pid(self) -> int:
        return self._worker.pid

    @property
    def worker_starts(self) -> int:
        return self._worker.starts

    # --- the three questions -----------------------------------------------------------------

    def prepare(self, candidates: Iterable[Candidate]) -> None:
        """Build ahead, in this order."""
        for candidate in candidates:
            self._builds.add(candidate)

    def build(self, candidate: Candidate) -> Built | Failure:
        built = self._builds.get(candidate)
        return _reproducible(built, candidate) if isinstance(built, Failure) else built

    def verify(
        self, candidate: Candidate, workloads: Iterable[Workload] | None = None
    ) -> Verdict | Failure:
        """On the short list of awkward sizes; or on the sizes given, some heads of each."""
        if workloads is None:
            return self._verdict(candidate, None)
        return self.check(candidate, [of_workload(w) for w in workloads])

    def check(
        self, candidate: Candidate, cases: Sequence[Case], runs: int = 0
    ) -> Verdict | Failure:
        """On any cases; the first that fails decides. Runs of one case must agree in every bit;
        by default a deterministic kernel runs more than once."""
        runs = runs or (STEADY_RUNS if "deterministic" in candidate.problem.features else 1)
        built = self.build(candidate)
        if isinstance(built, Failure):
            return built
        with self._exclusive():
            answer = self._ask(candidate, cases[0] if len(cases) == 1 else None, "verify", {
                "library": str(built.library), "problem": str(candidate.problem),
                "cases": [case.to_json() for case in cases], "runs": runs,
            })
        if isinstance(answer, Failure):
            return answer
        return Verdict(answer["error"], answer["bound_by"], len(cases))

    def measure(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> Measurement | Failure:
        """Verified on the short list and on this workload, then timed."""
        timed = self._timed("measure", candidate, workload, seconds)
        if isinstance(timed, Failure):
            return timed
        verdict, answer = timed
        return _measurement(candidate, workload, verdict, answer)

    def reference(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> float | Failure:
        """Microseconds, of a candidate that is asked for again and again."""
        timed = self._timed("reference", candidate, workload, seconds)
        return timed if isinstance(timed, Failure) else float(timed[1]["us"])

    def _timed(
        self, do: str, candidate: Candidate, workload: Workload, seconds: float
    ) -> tuple[Verdict, dict[str, Any]] | Failure:
        case = of_workload(workload)
        verdict = self._passes(candidate, case)
        if isinstance(verdict, Failure):
            return verdict
        built = self.build(candidate)
        assert isinstance(built, Built)
        with self._exclusive(), self._quiet():
            answer = self._ask(candidate, case, do, {
                "library": str(built.library), "problem": str(candidate.problem),
                "case": case.to_json(), "seconds": seconds,
            })
        if isinstance(answer, Failure):
            return answer
        self.conditions = Conditions(**answer.pop("conditions"))
        return verdict, answer

    def lap(
        self, candidates: Sequence[Candidate], workload: Workload, rounds: int
    ) -> list[Measurement | Failure]:
        """All of them in one process, taking turns, so that drift hits each alike."""
        case = of_workload(workload)
        self.prepare(candidates)
        outcomes: dict[Candidate, Measurement | Failure] = {}
        verdicts: dict[Candidate, Verdict] = {}
        for candidate in candidates:
            verdict = self._passes(candidate, case)
            if isinstance(verdict, Failure):
                outcomes[candidate] = verdict
            else:
                verdicts[candidate] = verdict
        self.lap_samples = {}
        while verdicts and not self._lap(verdicts, workload, rounds, outcomes):
            verdicts = {c: v for c, v in verdicts.items() if c not in outcomes}
        return [outcomes[candidate] for candidate in candidates]

    def _lap(
        self, verdicts: dict[Candidate, Verdict], workload: Workload, rounds: int,
        outcomes: dict[Candidate, Measurement | Failure],
    ) -> bool:
        """One try. False when somebody fell: the others must run again without them."""
        case, field = of_workload(workload), list(verdicts)
        entries = [
            {"library": str(built.library), "problem": str(c.problem)}
            for c in field if isinstance(built := self.build(c), Built)
        ]
        with self._exclusive(), self._quiet():
            answer = self._ask(field[0], case, "lap", {
                "entries": entries, "case": case.to_json(), "rounds": rounds,
            })
        if isinstance(answer, Failure):
            self._blame(field, answer, case, outcomes)
            return False
        for candidate, timed, medians in zip(
            field, answer["timed"], answer["medians"], strict=True
        ):
            outcomes[candidate] = _measurement(candidate, workload, verdicts[candidate], timed)
            self.lap_samples[candidate] = medians
        return True

    def contest(
        self, candidate: Candidate, workload: Workload, rounds: int
    ) -> dict[str, list[float]]:
        """A lap of a verified candidate against other implementations: microseconds by round, our
        own under the empty name. Only ours where no other one can do it, or one fails."""
        names = rivals(candidate.problem, workload, self.device)
        built, slug = self.build(candidate), str(candidate.problem)
        while names and isinstance(built, Built):
            entries = [{"library": str(built.library), "problem": slug}]
            entries += [{"peer": name, "problem": slug} for name in names]
            case = of_workload(workload)
            with self._exclusive(), self._quiet():
                answer = self._ask(candidate, case, "lap", {
                    "entries": entries, "case": case.to_json(), "rounds": rounds,
                })
            if not isinstance(answer, Failure):
                return dict(zip(("", *names), answer["medians"], strict=True))
            turn = self._worker.doing.removeprefix("#")
            fell = int(turn) if turn.isdecimal() else 0  # 0 is ours: then nothing can be said
            names = tuple(n for i, n in enumerate(names, 1) if fell and i != fell)
        return {"": []}

    def _blame(
        self, field: list[Candidate], failure: Failure, case: Case,
        outcomes: dict[Candidate, Measurement | Failure],
    ) -> None:
        """The worker named whose turn it was; where it did not, nobody gets a time."""
        turn = self._worker.doing.removeprefix("#")
        guilty = [field[int(turn)]] if turn.isdecimal() and int(turn) < len(field) else field
        failure = replace(failure, reason=failure.reason.replace(f"#{turn}", str(case)))
        for candidate in guilty:
            outcomes[candidate] = _reproducible(failure, candidate, case)

    # --- behind them -------------------------------------------------------------------------

    def _passes(self, candidate: Candidate, case: Case) -> Verdict | Failure:
        """The short list first: it is quick, and its failures are easier to understand."""
        short = self._verdict(candidate, None)
        if isinstance(short, Failure):
            return short
        full = self._verdict(candidate, case)
        if isinstance(full, Failure):
            return full
        worst = max(short, full, key=lambda verdict: verdict.error)
        return replace(worst, cases=short.cases + full.cases)

    def _verdict(self, candidate: Candidate, case: Case | None) -> Verdict | Failure:
        key = candidate, case
        if key not in self._verified:
            cases = short_list(candidate.problem) if case is None else (case,)
            self._verified[key] = self.check(candidate, cases)
        return self._verified[key]

    def _ask(
        self, candidate: Candidate, case: Case | None, do: str, request: dict[str, Any]
    ) -> dict[str, Any] | Failure:
        try:
            answer = self._worker.ask(do, request, extra=request.get("seconds", 0.0))
        except RunError as error:
            stage = "verify" if do == "verify" else "measure"
            failure = Failure(stage, type(error).__name__, error.message)
            return _reproducible(failure, candidate, case)
        if answer.pop("ok"):
            return answer
        failure = Failure(answer["stage"], answer["kind"], answer["reason"])
        return _reproducible(failure, candidate, case)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """No other process runs anything on this device meanwhile."""
        self._worker.start()
        device = self._worker.facts.get("uuid", self.device)
        with DeviceLock(paths.locks(), device, on_wait=self._on_wait).held():
            yield

    def _quiet(self) -> contextlib.AbstractContextManager[None]:
        """On the host, kernels are timed on the cores that compilers would use."""
        return self._builds.paused() if self.device == "cpu" else contextlib.nullcontext()


def _measurement(
    candidate: Candidate, workload: Workload, verdict: Verdict, timed: dict[str, Any]
) -> Measurement:
    flops = workload.flops(candidate.problem)
    return Measurement(
        **timed, error=round(verdict.error, 4), bound_by=verdict.bound_by,
        tflops=round(flops / timed["median_us"] * 1e-6, 3),
    )


def _reproducible(failure: Failure, candidate: Candidate, case: Case | None = None) -> Failure:
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
