"""The text of a file in ``tuned/``: entries to YAML and back, with complaints that name the line.

Keys stand in a fixed order and numbers are rounded, so that tuning again is a diff a person can
judge.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fagen import yamlfile
from fagen.errors import FagenError, StoreError
from fagen.model import Entry, Measurement, Problem
from fagen.target import Target
from fagen.workload import Workload
from fagen.yamlfile import Complaint, Line, Mapping, field, mapping, only

SCHEMA = 1
_HEADER = "# Written by `fagen tune`. Review it like code; `fagen list` says what is stale.\n"
_DIGITS = 5  # significant; timing noise is far above the rest
_TOP = ("schema", "problem", "target", "entries")
_ENTRY = (
    "workload", "weight", "family", "config", "result", "binary", "runners_up", "provenance",
)



def to_text(entries: Sequence[Entry]) -> str:
    """The file of entries that share problem and target."""
    return _HEADER + yamlfile.dump(
        {
            "schema": SCHEMA,
            "problem": str(entries[0].problem),
            "target": {"name": entries[0].target.name, **facts(entries[0].target)},
            "entries": [_plain(_entry_document(e)) for e in entries],
        }
    )


def facts(target: Target) -> dict[str, Any]:
    """A target's facts in YAML's own types, the same for 600 and 600.0."""
    given = target.facts() | {"memory_gb_s": float(target.memory_gb_s)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}


def _entry_document(entry: Entry) -> dict[str, Any]:
    return {
        "workload": str(entry.workload),
        "weight": float(entry.workload.weight),
        "family": entry.family,
        "config": entry.config,
        "result": dataclasses.asdict(entry.measurement),
        "binary": entry.binary,
        "runners_up": [Line(r | {"config": Line(r["config"])}) for r in entry.runners_up],
        "provenance": entry.provenance,
    }


def _plain(value: Any) -> Any:
    """Rounded, and made of YAML's own types."""
    if isinstance(value, dict):
        kind = Line if isinstance(value, Line) else dict
        return kind({str(k): _plain(v) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{_DIGITS}g}")
    return value


def read_file(path: Path) -> tuple[Entry, ...]:
    """The entries of one file, or a StoreError that says which line and what to do."""
    return _read(lambda: yamlfile.read(path), path)


def read_text(text: str, where: Path) -> tuple[Entry, ...]:
    """The same of a text; ``where`` is for complaints."""
    return _read(lambda: yamlfile.parse(text), where)


def _read(document: Callable[[], Any], path: Path) -> tuple[Entry, ...]:
    try:
        return _entries(document(), path)
    except Complaint as error:
        where = f"{path}, line {error.line}" if error.line else str(path)
        raise StoreError(
            f"{where}: {error.says}",
            f"restore it (git checkout -- {path}), or delete it and tune again",
        ) from None


def _entries(document: Any, path: Path) -> tuple[Entry, ...]:
    top = mapping(document, 1, "the file")
    only(top, _TOP)
    schema = field(top, "schema", int)
    if schema != SCHEMA:
        raise Complaint(
            top.lines["schema"], f"the file has schema {schema}, this fagen reads schema {SCHEMA}"
        )
    slug = field(top, "problem", str)
    problem = _made(top, "problem", lambda: Problem.parse(slug))
    if path.stem != str(problem):
        raise Complaint(top.lines["problem"], f"{problem} stands in a file named {path.name}")
    target = _target(mapping(field(top, "target", dict), top.lines["target"], "target"))
    listed = field(top, "entries", list)
    return tuple(
        _entry(mapping(e, top.lines["entries"], "an entry"), problem, target) for e in listed
    )


def _target(facts: Mapping) -> Any:
    lists = {}
    for name, kind in (("capability", int), ("isa", str)):
        lists[name] = tuple(field(facts, name, list))
        if not all(type(item) is kind for item in lists[name]):
            raise Complaint(facts.lines[name], f"{name} is {list(lists[name])!r}")
    return _dataclass(Target, facts, lists)


def _entry(given: Mapping, problem: Problem, target: Target) -> Entry:
    only(given, _ENTRY)
    slug, weight = field(given, "workload", str), field(given, "weight", float)
    result = mapping(field(given, "result", dict), given.lines["result"], "result")
    return Entry(
        problem,
        target,
        _made(given, "workload", lambda: Workload.parse(slug, weight)),
        field(given, "family", str),
        dict(field(given, "config", dict)),
        _dataclass(Measurement, result, {}),
        dict(field(given, "binary", dict)),
        tuple(dict(r) for r in field(given, "runners_up", list)),
        dict(field(given, "provenance", dict)),
    )


def _dataclass(made: Any, given: Mapping, known: dict[str, Any]) -> Any:
    """A flat dataclass of numbers and texts from a mapping; ``known`` fields are already read."""
    kinds = {"int": int, "float": float, "str": str}
    fields = dataclasses.fields(made)
    only(given, tuple(f.name for f in fields))
    values = dict(known)
    for f in fields:
        required = f.default is dataclasses.MISSING
        if f.name not in known and (required or f.name in given):
            values[f.name] = field(given, f.name, kinds[str(f.type)])
    return _made(given, next(iter(given), ""), lambda: made(**values))


def _made(given: Mapping, name: str, make: Any) -> Any:
    """A noun from text; its own complaint becomes one about this line."""
    try:
        return make()
    except FagenError as error:
        raise Complaint(given.lines.get(name, given.line), error.message) from None
