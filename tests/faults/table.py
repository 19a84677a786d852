"""The table of faults in docs/tuning.md: a row for every test that injects one."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

PAGE = Path(__file__).parents[2] / "docs" / "tuning.md"
MODULES = (  # in the order of the table
    "tests.faults.test_faults", "tests.unit.test_scratch", "tests.unit.test_journal",
    "tests.unit.test_search", "tests.unit.test_taint", "tests.unit.test_shared",
    "tests.faults.test_storage",
)
_MARKS = "<!-- written by `make docs` from tests/faults -->", "<!-- end -->"
Test = TypeVar("Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Row:
    module: str
    injected: str
    happened: str
    times: int


ROWS: dict[Row, None] = {}  # a module may be imported under two names


def row(module: str, injected: str, happened: str, times: int = 1) -> None:
    ROWS.setdefault(Row(module.rpartition(".")[2], injected, happened, times))


def fault(injected: str, happened: str, times: int = 1) -> Callable[[Test], Test]:
    """Of a test that injects it so often and asserts that this happened."""

    def registered(test: Test) -> Test:
        row(test.__module__, injected, happened, times)
        return test

    return registered


def markdown() -> str:
    for module in MODULES:
        importlib.import_module(module)
    lines = ["| injected | times | what happened |", "|---|---|---|"]
    lines += [
        f"| {r.injected} | {r.times} | {r.happened} |"
        for module in MODULES for r in ROWS if r.module == module.rpartition(".")[2]
    ]
    return "\n".join(lines)


def written() -> str:
    """What the page holds between the marks."""
    begin, end = map(re.escape, _MARKS)
    found = re.search(rf"{begin}\n\n(.*?)\n\n{end}", PAGE.read_text(), re.DOTALL)
    assert found, f"{PAGE} has no place for the table"
    return found[1]


def write(text: str) -> None:
    before, _, rest = PAGE.read_text().partition(_MARKS[0])
    after = rest.partition(_MARKS[1])[2]
    PAGE.write_text(f"{before}{_MARKS[0]}\n\n{text}\n\n{_MARKS[1]}{after}")
