"""One worker of a shared search, as a program that can be killed. Its device is a formula, and it
writes down every measurement and every result that it told."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fagen.families.base import Rule
from fagen.model import Candidate, Failure, Measurement
from fagen.workload import Workload
from tests.unit import synthetic
from tests.unit.synthetic import TARGET, WORKLOAD, FakePool, true_us

# Some eighty points, so that all of them are tried.
FAMILY = synthetic.limited(
    Rule("it is one of a few", lambda c: c.config.unroll == 2 and c.config.stages in (2, 3)
         and c.config.block_n >= 80),
)
PROBLEM = synthetic.PROBLEM
TRIALS = 1000
FREE = 8  # points that a worker may measure before a file called GO is there,
GO = "go"  # so that none of them is done before the others have begun


class Pool(FakePool):
    def __init__(self, seed: int, note: Callable[[str], None], go: Path) -> None:
        super().__init__(seed)
        self.note, self.go = note, go

    def measure(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> Measurement | Failure:
        if candidate not in self.measured:  # those near the best are timed again at once
            while len(set(self.measured)) >= FREE and not self.go.exists():
                time.sleep(0.02)
            self.note(f"measure {candidate.family.show(candidate.config)}")
        return super().measure(candidate, workload, seconds)


def skew(hours: float) -> None:
    """This host's clock is wrong."""
    true = time.time
    time.time = lambda: true() + 3600 * hours

    class Skewed(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return super().now(tz) + datetime.timedelta(hours=hours)

    import optuna.storages._rdb.storage as rdb
    import optuna.trial._frozen as frozen

    rdb.datetime = Skewed
    frozen.datetime.datetime = Skewed


def main(folder: Path, name: str, url: str, hours: float) -> None:
    from fagen.search import Budget, tune
    from fagen.storage import Pace, Storage
    from fagen.store import Store

    if hours:
        skew(hours)
    file = (folder / f"{name}.txt").open("a", buffering=1)

    def note(text: str) -> None:
        file.write(text + "\n")

    pool = Pool(len(name) + ord(name[-1]), note, folder / GO)
    pool.pause_s = 0.1
    pace = Pace(renew=0.4, lease=15.0, look=0.1, least=0.2, most=3.0, patience=600.0)

    def tell(event: object) -> None:
        if event.kind == "trial":
            note(f"told {event.candidate.family.show(event.candidate.config)}")

    tune(
        PROBLEM, [WORKLOAD], TARGET, [FAMILY], pool, Store([], folder / f"tuned-{name}"),
        folder / name / "journals", Budget(trials=TRIALS, heats=2, rounds=16), tell,
        storage=Storage(url, pace, lambda text: note(f"said {text}")),
    )
    note("done")


def best() -> float:
    from fagen.families.base import Space

    return min(map(true_us, Space(PROBLEM, TARGET, FAMILY).legal()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]))
