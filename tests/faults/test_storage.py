"""PostgreSQL for real: workers come and go, two are killed, the server restarts, clocks lie."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fagen.board import RECORD
from fagen.budget import Budget
from fagen.families.base import Space
from fagen.search import tune
from fagen.storage import Storage
from fagen.store import Store
from tests.faults import postgres, storm
from tests.faults.storm import FAMILY, PROBLEM, TARGET, WORKLOAD
from tests.faults.table import fault
from tests.unit.synthetic import FakePool

ROOT = Path(__file__).parents[2]
LEGAL = len(list(Space(PROBLEM, TARGET, FAMILY).legal()))


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    binaries = postgres.binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server: apt-get install postgresql")
    with TemporaryDirectory(prefix="fagen-postgres-") as folder:
        server = postgres.Server(binaries, Path(folder))
        server.start()
        yield server
        server.stop("immediate")


class Worker:
    def __init__(self, folder: Path, name: str, url: str, skew_h: float = 0.0) -> None:
        self.name, self._notes = name, folder / f"{name}.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.storm", str(folder), name, url, str(skew_h)],
            cwd=ROOT, stderr=(folder / f"{name}.err").open("wb"),
        )

    def notes(self, kind: str) -> list[str]:
        """Whole lines only: the last one may be cut by a kill."""
        text = self._notes.read_text() if self._notes.exists() else ""
        return [line.removeprefix(f"{kind} ") for line in text.split("\n")[:-1]
                if line.startswith(f"{kind} ")]

    def wait_for(self, count: int, kind: str = "told", words: str = "") -> None:
        while len([note for note in self.notes(kind) if words in note]) < count:
            assert self.process.poll() is None, "it ended before its time"
            time.sleep(0.02)


@fault(
    "PostgreSQL, 4 workers: 2 killed with `kill -9`, the server stopped as in a crash and started "
    "again, clocks 26 h and -5 h off, one worker joining late",
    "no told result lost; nothing measured twice but what the dead had begun; the entry is that of "
    "a worker alone, or ties with it", times=4,
)
def test_four_workers_two_deaths_and_a_restart_lose_nothing(
    server: postgres.Server, tmp_path: Path
) -> None:
    chance = random.Random(time.time_ns())
    workers = [Worker(tmp_path, f"worker{n}", server.url, skew_h=[0, 26, -5, 0][n])
               for n in range(4)]
    victims, others = workers[:2], workers[2:]
    for victim in victims:
        victim.wait_for(chance.randint(2, 5))
        time.sleep(chance.uniform(0, 0.2))
        victim.process.kill()
    others[0].wait_for(storm.FREE)
    server.stop("immediate")
    (tmp_path / storm.GO).touch()
    others[0].wait_for(1, "said", "does not answer")
    server.start()
    late = Worker(tmp_path, "late", server.url)
    for worker in (*others, late):
        assert worker.process.wait() == 0, (tmp_path / f"{worker.name}.err").read_text()

    everybody = [*workers, late]
    said = [line for worker in others for line in worker.notes("said")]
    assert any("does not answer" in line for line in said), said
    assert any("answers again" in line for line in said), said

    # No told result is lost: the storage has each of them.
    there = in_storage(server.url)
    told = Counter(config for worker in everybody for config in worker.notes("told"))
    assert set(told) <= set(there)
    assert len(there) == LEGAL

    # Nothing is measured twice but what the dead had begun.
    measured = Counter(config for worker in everybody for config in worker.notes("measure"))
    begun = {config for victim in victims for config in victim.notes("measure")}
    begun -= {config for victim in victims for config in victim.notes("told")}
    twice = {config for config, count in measured.items() if count > 1}
    assert twice <= begun
    assert len(twice) <= 2
    assert set(measured) == set(there)

    # All that live stored the same entry, and a worker alone would call it a tie.
    texts = {next((tmp_path / f"tuned-{w.name}").rglob("*.yaml")).read_text()
             for w in (*others, late)}
    assert len(texts) == 1
    (entry,) = Store([], tmp_path / "tuned-late").entries()
    alone = tune(
        PROBLEM, [WORKLOAD], TARGET, [FAMILY], FakePool(99), Store([], tmp_path / "alone"),
        tmp_path / "journals", Budget(trials=storm.TRIALS, heats=2, rounds=16),
    )
    assert entry.config in [alone.config, *(r["config"] for r in alone.runners_up if r["tie"])]
    assert entry.provenance["search"]["tried"] == LEGAL


def in_storage(url: str) -> list[str]:
    """The configs whose result is there."""
    storage = Storage(url)
    ids = {s.study_name: s._study_id for s in storage.call(lambda s: s.get_all_studies())}
    (points,) = (id for name, id in ids.items() if "/" in name)
    space = Space(PROBLEM, TARGET, FAMILY)
    return [
        FAMILY.show(space.candidate(t.user_attrs[RECORD]["config"]).config)
        for t in storage.call(lambda s: s.get_all_trials(points))
        if RECORD in t.user_attrs and t.state.name in ("COMPLETE", "PRUNED")
    ]
