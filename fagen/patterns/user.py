"""Patterns of a user's own: a header file whose first comments say what is in it.

    // fagen pattern: checkers16
    // type: Checkers<16>
    // keep: (i // 16 + j // 16) % 2 == 0
    // span: 64

``keep`` is the mask once more, in Python: of the query's position i (the last query stands at the
last key), the key j and ``seqlen_kv``, arrays of integers. The type has a constructor from Lengths
and what ``patterns/contract.h`` lists. A sequence longer than ``span`` shows all of the pattern.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fagen.errors import UsageError
from fagen.patterns.base import StaticPattern

VARIABLE = "FAGEN_PATTERN_FILES"  # paths; child processes read it too
_LINE = re.compile(r"^\s*//\s*(fagen pattern|type|keep|span)\s*:\s*(.+?)\s*$", re.MULTILINE)
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", re.ASCII)
_SPAN = 256
_ROWS = 1024  # counted at once


@dataclass(frozen=True)
class UserPattern(StaticPattern):
    name: str
    type: str
    formula: str
    file: str
    spans: int = _SPAN

    def __str__(self) -> str:
        return self.name

    @property
    def header(self) -> str:  # type: ignore[override]
        """The renderer knows where it is."""
        return f"user/{self.name}.h"

    @property
    def cpp(self) -> str:
        return self.type

    @property
    def span(self) -> int:
        return self.spans

    def keep(self, i: Any, j: Any, seqlen_kv: int) -> Any:
        known = {"__builtins__": {}, "abs": abs, "i": i, "j": j, "seqlen_kv": seqlen_kv}
        try:
            kept = eval(self.formula, known)
            return kept & (i == i) & (j == j)  # in the shape of both
        except Exception as error:
            raise UsageError(f"{self.file}: keep: {self.formula}: {error}",
                             "an expression of i, j and seqlen_kv with & and |") from error

    def count_kept(self, seqlen_q: int, seqlen_kv: int) -> int:
        return _counted(self, seqlen_q, seqlen_kv)


@functools.lru_cache(maxsize=64)
def _counted(pattern: UserPattern, seqlen_q: int, seqlen_kv: int) -> int:
    import numpy as np

    starts = range(0, seqlen_q, _ROWS)
    chunks = (np.arange(q, min(q + _ROWS, seqlen_q)) for q in starts)
    return sum(int(pattern.kept(q, seqlen_q, seqlen_kv).sum()) for q in chunks)


def read(path: str | Path) -> UserPattern:
    """The pattern of one file."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the pattern file {path} cannot be read: {error}") from error
    said = dict(reversed(_LINE.findall(text)))  # the first of each counts
    missing = [word for word in ("fagen pattern", "type", "keep") if word not in said]
    if missing:
        raise UsageError(f"{path} does not say its {' or '.join(missing)}",
                         f"a line such as: // {missing[0]}: ...")
    name, span = said["fagen pattern"], said.get("span", str(_SPAN))
    if not _NAME.fullmatch(name):
        raise UsageError(f"{path}: {name!r} cannot be a pattern's name",
                         "lower-case letters and digits, in words joined by -")
    if not re.fullmatch(r"\d{1,6}", span, re.ASCII):
        raise UsageError(f"{path}: span {span!r} is not a number of positions")
    return UserPattern(name, said["type"], said["keep"], str(Path(path).resolve()), int(span))


def given() -> dict[str, UserPattern]:
    """The patterns of all files that the environment names."""
    return _all(os.environ.get(VARIABLE, ""))


@functools.lru_cache(maxsize=8)
def _all(paths: str) -> dict[str, UserPattern]:
    return {p.name: p for p in map(read, filter(None, paths.split(os.pathsep)))}


def header_file(header: str) -> Path | None:
    """Where the header of a user's pattern is."""
    match = re.fullmatch(r"user/(.+)\.h", header)
    pattern = given().get(match[1]) if match else None
    return Path(pattern.file) if pattern else None
