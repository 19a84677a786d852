"""Searches replayed on spaces that were recorded whole on real devices."""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from fagen.budget import Budget
from fagen.families.base import Space
from fagen.search import tune
from fagen.store import Store
from tests.recorded import FOLDER, Player, Recording, load, recordings

SEEDS = 50


def search(recording: Recording, seed: int, folder: Path) -> tuple[float, int]:
    """Time of the winner and points measured, on a fifth of the space."""
    pool = Player(recording, seed)
    budget = Budget(trials=len(recording.times) // 5, seed=seed)
    entry = tune(
        recording.problem, [recording.workload], recording.target, [recording.family], pool,
        Store([], folder / "tuned"), folder / f"journal{seed}", budget,
    )
    space = Space(recording.problem, recording.target, recording.family)
    us = recording.us(space.candidate(entry.config))
    assert us is not None
    return us, len(pool.measured)


def replay(path: Path, folder: Path, seed: int) -> tuple[float, int]:
    """In a child of its own."""
    os.fsync = lambda handle: None
    return search(load(path), seed, folder / str(seed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("recording", recordings(), ids=lambda recording: recording.name)
def test_recorded_spaces_are_searched_to_within_one_percent(
    recording: Recording, tmp_path: Path
) -> None:
    best = min(us for us in recording.times.values() if us)
    path, fork = FOLDER / f"{recording.name}.json", multiprocessing.get_context("fork")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=fork) as workers:
        found = list(workers.map(partial(replay, path, tmp_path), range(SEEDS)))
    assert len(found) == SEEDS
    for seed, (us, measured) in enumerate(found):
        assert measured <= len(recording.times) / 5
        assert us <= 1.01 * best, seed


def test_a_recording_plays_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    us = {f"{a:x}{b}{c}": 100.0 + 10 * abs(a - 7) + 8 * abs(b - 2) + 5 * c
          for a in range(12) for b in range(6) for c in range(2) if (a + b) % 5}
    us["720"] = None  # the best place is one that fails
    path = tmp_path / "somewhere.json"
    path.write_text(json.dumps({
        "problem": "fwd-fp32-d64-dense", "workload": "b1-h8-s512", "family": "cpu",
        "target": "somewhere", "kind": "cpu", "default": [16, "c", True], "us": us,
        "knobs": {"rows": [2**n for n in range(12)], "word": list("abcdef"), "on": [True, False]},
    }))
    recording = load(path)
    assert len(recording.times) == len(us)
    found, measured = search(recording, 0, tmp_path)
    assert found in sorted(value for value in us.values() if value)[:4]
    assert measured <= len(us) / 5
