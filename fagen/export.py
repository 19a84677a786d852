"""What was tried, in formats that other tools read.

``t4`` is the JSON of results that auto-tuners share (schema 1.0.0): its six words for what became
of a configuration are ours too. ``csv`` has one row per candidate and workload.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections.abc import Sequence
from typing import Any

from fagen.history import Search, Told
from fagen.model import Failure, Measurement

FORMATS = ("t4", "csv")
T4_SCHEMA = "1.0.0"
_CORRECT = "correct"
_BY_KIND = {"WorkerTimeout": "timeout", "WrongResult": "correctness"}
_BY_STAGE = {"rule": "constraints", "render": "compile", "build": "compile"}
_COLUMNS = (
    "problem", "target", "workload", "weight", "family", "time", "invalidity", "median_us",
    "low_us", "high_us", "samples", "tflops", "error", "compile_s", "run_s", "stage", "kind",
    "reason",
)


def export(found: Sequence[Search], form: str) -> str:
    return {"t4": t4, "csv": as_csv}[form](found)


def invalidity(failure: Failure | None) -> str:
    """One of T4's six words."""
    if failure is None:
        return _CORRECT
    if failure.stage == "build" and "did not finish" in failure.reason:
        return "timeout"
    return _BY_KIND.get(failure.kind) or _BY_STAGE.get(failure.stage, "runtime")


def t4(found: Sequence[Search]) -> str:
    results = [_result(search, told) for search in found for told in search.told]
    document = {"schema_version": T4_SCHEMA, "results": results}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _result(search: Search, told: Told) -> dict[str, Any]:
    """Times are in seconds, as the schema has them; measurements name their unit. What a problem
    is and on what it ran stands in the configuration: a file may hold several."""
    trial, word = told.trial, invalidity(told.trial.failure)
    timed = list(zip(search.workloads, trial.measurements, strict=False))
    measurements = [] if trial.score is None else [
        {"name": "score", "value": trial.score, "unit": "us"}
    ]
    for workload, m in timed:
        measurements += _measurements(str(workload), m)
    if trial.failure:
        measurements += [
            {"name": name, "value": getattr(trial.failure, name), "unit": ""}
            for name in ("stage", "kind", "reason", "reproduce")
        ]
    return {
        "timestamp": _when(told),
        "configuration": {
            "problem": str(search.problem), "target": search.target.name,
            "family": told.family, **told.config,
        },
        "objectives": ["score"],
        "times": {
            "compilation_time": trial.seconds.get("compile", 0.0),
            "runtimes": [m.median_us * 1e-6 for _, m in timed],
            "framework": trial.seconds.get("wait", 0.0),
        },
        "invalidity": word,
        "correctness": float(word == _CORRECT),
        "measurements": measurements,
    }


def _measurements(workload: str, m: Measurement) -> list[dict[str, Any]]:
    values = (("median", m.median_us, "us"), ("low", m.low_us, "us"), ("high", m.high_us, "us"),
              ("speed", m.tflops, "TFLOP/s"), ("error", m.error, "of its bound"))
    return [{"name": f"{workload} {name}", "value": v, "unit": unit} for name, v, unit in values]


def _when(told: Told) -> str:
    return datetime.datetime.fromtimestamp(told.at, datetime.UTC).isoformat()


def as_csv(found: Sequence[Search]) -> str:
    """Knobs follow the fixed columns; a knob that a family lacks is empty."""
    knobs = sorted({name for s in found for t in s.told for name in t.config})
    clash = [f"knob_{name}" if name in _COLUMNS else name for name in knobs]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *clash])
    for search in found:
        for told in search.told:
            values = [told.config.get(name, "") for name in knobs]
            writer.writerows([*row, *values] for row in _rows(search, told))
    return text.getvalue()


def _rows(search: Search, told: Told) -> list[list[Any]]:
    trial, failure = told.trial, told.trial.failure
    seconds = [trial.seconds.get("compile", ""), trial.seconds.get("run", "")]
    ends = [failure.stage, failure.kind, failure.reason] if failure else ["", "", ""]
    head = [str(search.problem), search.target.name]
    middle = [told.family, _when(told), invalidity(failure)]
    if failure or not trial.measurements:
        return [[*head, "", "", *middle, "", "", "", "", "", "", *seconds, *ends]]
    return [
        [*head, str(w), w.weight, *middle, m.median_us, m.low_us, m.high_us, m.samples, m.tflops,
         m.error, *seconds, *ends]
        for w, m in zip(search.workloads, trial.measurements, strict=False)
    ]
