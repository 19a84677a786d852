"""Searches of the past, as their journals tell them: read only, while they run or after."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna

from fagen.journal import ABOUT, RECORD, disk, storage_of
from fagen.model import Problem
from fagen.target import Target
from fagen.trial import Trial, from_record
from fagen.workload import Workload

_ENOUGH = 12  # scores from which it can be said which knob matters


@dataclass(frozen=True)
class Told:
    """A candidate that was tried: when (seconds since 1970), and what came of it."""

    family: str
    config: Mapping[str, Any]
    trial: Trial
    at: float


@dataclass(frozen=True)
class Lane:
    """A family's knobs with their choices, and how much each decides (none: not known)."""

    family: str
    knobs: Mapping[str, Sequence[Any]]
    importance: Mapping[str, float]


@dataclass(frozen=True)
class Search:
    """All that was tried for one problem, in order."""

    path: Path
    problem: Problem
    target: Target
    workloads: tuple[Workload, ...]
    lanes: tuple[Lane, ...]
    told: tuple[Told, ...]

    def best(self) -> Told | None:
        """The fastest as the search timed it; the final lap may have decided otherwise."""
        complete = [
            t for t in self.told
            if t.trial.score is not None and len(t.trial.measurements) == len(self.workloads)
        ]
        return min(complete, key=lambda t: t.trial.score or 0.0, default=None)


def searches(folder: Path, problems: Sequence[Problem] = ()) -> tuple[Search, ...]:
    """Of these problems, or of all; journals of another version of fagen are left out."""
    paths = sorted(folder.glob("*.journal")) if folder.is_dir() else []
    found = (read(path) for path in paths)
    return tuple(s for s in found if s and s.told and (not problems or s.problem in problems))


def read(path: Path) -> Search | None:
    """None for a journal that does not say what it is about."""
    with disk(path):
        storage = storage_of(path.absolute())
        names = [study.study_name for study in storage.get_all_studies()]
        studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
        about = next((s.user_attrs[ABOUT] for s in studies if ABOUT in s.user_attrs), None)
        if about is None:
            return None
        told = sorted((t for s in studies for t in _told(s)), key=lambda t: t.at)
        lanes = tuple(map(_lane, studies))
    return Search(
        path, Problem.parse(about["problem"]), _target(about["target"]),
        tuple(Workload.parse(slug, weight) for slug, weight in about["workloads"]),
        lanes, tuple(told),
    )


def _target(facts: dict[str, Any]) -> Target:
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return Target(**given)


def _told(study: optuna.Study) -> list[Told]:
    """Of what was timed again, the latest."""
    told: dict[str, Told] = {}
    for trial in study.get_trials(deepcopy=False):
        if record := trial.user_attrs.get(RECORD):
            told[json.dumps(record["config"], sort_keys=True)] = Told(
                record["family"], record["config"], from_record(record),
                trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0,
            )
    return list(told.values())


def _lane(study: optuna.Study) -> Lane:
    knobs: dict[str, Sequence[Any]] = {}
    for trial in study.get_trials(deepcopy=False):
        for name, choices in trial.distributions.items():
            if isinstance(choices, optuna.distributions.CategoricalDistribution):
                knobs.setdefault(name, choices.choices)
    told = [t for t in _told(study) if t.trial.score]
    known = knobs if len(told) >= _ENOUGH else {}
    return Lane(study.study_name, knobs, {name: importance(name, told) for name in known})


def importance(knob: str, told: Sequence[Told]) -> float:
    """The share of the spread of (the logarithm of) time that a knob explains by itself: between
    its choices against in all, less what chance would explain."""
    groups: dict[Any, list[float]] = {}
    for t in told:
        if t.trial.score:
            groups.setdefault(t.config[knob], []).append(math.log(t.trial.score))
    values = [v for group in groups.values() for v in group]
    chance = len(values) - len(groups)
    spread = _squares(values)
    if chance <= 0 or len(groups) < 2 or spread == 0:
        return 0.0
    within = sum(map(_squares, groups.values()))
    return max(0.0, (spread - within - (len(groups) - 1) * within / chance) / spread)


def _squares(values: Sequence[float]) -> float:
    mean = fmean(values)
    return sum((v - mean) ** 2 for v in values)
