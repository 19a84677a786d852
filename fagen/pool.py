"""Candidates in, outcomes out. A candidate is built in a build child and run in a worker, and it is
always verified before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fagen.builds import Built
from fagen.cases import Case, of_workload, short_list
from fagen.model import Candidate, Failure, Measurement
from fagen.neighbours import Conditions
from fagen.render import Renderer
from fagen.rivals import rivals
from fagen.station import Limits, Station, reproducible
from fagen.workload import Workload

if TYPE_CHECKING:
    from fagen.build import Builder
    from fagen.devices import Device


STEADY_RUNS = 3


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
        self.station = Station(
            builder, renderer, self.device, jobs, scratch, threads, allow_spills,
            limits or Limits(), on_wait, wrapper,
        )
        self._verified: dict[tuple[Candidate, Case | None], Verdict | Failure] = {}
        self.lap_samples: dict[Candidate, list[float]] = {}  # medians by round, of the last lap
        self.conditions = Conditions()  # of the last measurement, or of the reference

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.station.close()

    @property
    def worker_pid(self) -> int:
        return self.station.worker.pid

    @property
    def worker_starts(self) -> int:
        return self.station.worker.starts

    # --- the three questions -----------------------------------------------------------------

    def prepare(self, candidates: Iterable[Candidate]) -> None:
        """Build ahead, in this order."""
        for candidate in candidates:
            self.station.builds.add(candidate)

    def build(self, candidate: Candidate) -> Built | Failure:
        return self.station.build(candidate)

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
        answer = self.station.ask(candidate, cases[0] if len(cases) == 1 else None, "verify", {
            "library": str(built.library), "problem": str(candidate.problem),
            "cases": [case.to_json() for case in cases], "runs": runs,
        }, timed=False)
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
        answer = self.station.ask(candidate, case, do, {
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
        answer = self.station.ask(field[0], case, "lap", {
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
            answer = self.station.ask(candidate, case, "lap", {
                "entries": entries, "case": case.to_json(), "rounds": rounds,
            })
            if not isinstance(answer, Failure):
                return dict(zip(("", *names), answer["medians"], strict=True))
            fell = self.station.turn or 0  # 0 is ours: then nothing can be said
            names = tuple(n for i, n in enumerate(names, 1) if fell and i != fell)
        return {"": []}

    def _blame(
        self, field: list[Candidate], failure: Failure, case: Case,
        outcomes: dict[Candidate, Measurement | Failure],
    ) -> None:
        """The worker named whose turn it was; where it did not, nobody gets a time."""
        turn = self.station.turn
        guilty = field if turn is None or turn >= len(field) else [field[turn]]
        failure = replace(failure, reason=failure.reason.replace(f"#{turn}", str(case)))
        for candidate in guilty:
            outcomes[candidate] = reproducible(failure, candidate, case)

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

def _measurement(
    candidate: Candidate, workload: Workload, verdict: Verdict, timed: dict[str, Any]
) -> Measurement:
    flops = workload.flops(candidate.problem)
    return Measurement(
        **timed, error=round(verdict.error, 4), bound_by=verdict.bound_by,
        tflops=round(flops / timed["median_us"] * 1e-6, 3),
    )
