"""Candidate -> Source: one self-contained text per kernel.

A kernel template starts with the prologue (constants, the pattern's type), then includes plain C++
headers. The renderer pulls every ``#include "..."`` in, once, so that the text compiles anywhere
and the digest of its code, comments and blank lines left out, is the kernel's identity.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import jinja2

from fagen.errors import RenderError
from fagen.families.base import constants, symbol
from fagen.model import Candidate, Source
from fagen.patterns.user import header_file

__all__ = ["Renderer", "symbol"]

# Jinja's own delimiters collide with CUDA text: `{%0, %1}` in inline PTX, `{{1, 2}, {3, 4}}`.
_DELIMITERS = {
    "variable_start_string": "${",
    "variable_end_string": "}",
    "block_start_string": "/*%",
    "block_end_string": "%*/",
    "comment_start_string": "/*#",
    "comment_end_string": "#*/",
    "line_statement_prefix": "//%",
    "line_comment_prefix": "//#",
}
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"[^\n]*$', re.MULTILINE)
# Strings and characters go by whole, so that what looks like a comment in them is none.
_COMMENT = re.compile(
    r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])')|//[^\n]*|/\*.*?\*/""", re.DOTALL
)
_GUARD = re.compile(r"^\s*#\s*pragma\s+once\s*$\n?", re.MULTILINE)


class Renderer:
    """Renders the kernels under one templates folder."""

    def __init__(self, templates: Path) -> None:
        self.templates = templates
        self._jinja = jinja2.Environment(
            loader=jinja2.FileSystemLoader(templates),
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            **_DELIMITERS,  # type: ignore[arg-type]
        )

    def render(self, candidate: Candidate) -> Source:
        kernel = candidate.family.kernel(candidate.problem.op)
        name = f"kernels/{kernel.template}"
        try:
            text = self._jinja.get_template(name).render(_context(candidate))
        except jinja2.TemplateError as error:
            where = f" line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise RenderError(f"templates/{name}{where}: {error}") from error
        instead = kernel.instead(candidate.problem)
        text = _pull_in(text, lambda header, by: self._read(instead.get(header, header), by),
                        name, set())
        language = "cpp" if candidate.family.toolchain == "host" else "cuda"
        return Source(text, code_digest(text), language)

    def _read(self, header: str, wanted_by: str) -> str:
        path = header_file(header) or self.templates / header
        if not path.is_file():
            raise RenderError(f"templates/{wanted_by} includes {header!r}, which does not exist")
        return path.read_text()


def code_digest(text: str) -> str:
    """The same for two texts that differ in comments, blank lines and indentation only: a tuned
    entry outlives a better comment."""
    code = _COMMENT.sub(lambda m: m[1] or " ", text)
    lines = (line.strip() for line in code.splitlines())
    return hashlib.sha256("\n".join(filter(None, lines)).encode()).hexdigest()


def _context(candidate: Candidate) -> dict[str, object]:
    problem = candidate.problem
    return {
        "problem": problem,
        "pattern": problem.pattern,
        "target": candidate.target,
        "config": candidate.config,
        "knobs": constants(candidate.config),
        "symbol": symbol(candidate),
        "candidate": str(candidate),
    }


def _pull_in(text: str, read: Callable[[str, str], str], name: str, seen: set[str]) -> str:
    """Replace each quoted include by the file's text, the first time it is met."""

    def expand(match: re.Match[str]) -> str:
        header = match[1]
        if header in seen:
            return ""
        seen.add(header)
        body = _GUARD.sub("", read(header, name))
        return f"// --- {header}\n" + _pull_in(body, read, header, seen).strip("\n")

    return _INCLUDE.sub(expand, text)
