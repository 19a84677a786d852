"""The identity of a kernel: its code, and nothing that only people read."""

from __future__ import annotations

import pytest

from fagen import paths
from fagen.families.cpu import CPU
from fagen.model import Problem
from fagen.render import Renderer, code_digest
from fagen.target import Target

CODE = """int f(int x) {
    return x / 2;  // half
}
"""


@pytest.mark.parametrize("same", [
    "// a title\n\n" + CODE,
    CODE.replace("half", "the half of it"),
    CODE.replace("    return", "  /* two\n lines */ return"),
    CODE.replace("// half", ""),
])
def test_comments_and_blank_lines_do_not_count(same: str) -> None:
    assert code_digest(same) == code_digest(CODE)


@pytest.mark.parametrize(("one", "other"), [
    ("x / 2", "x / 4"),
    ("int x", "intx"),
    ("return x", 'puts("// a"); return x'),
])
def test_code_counts(one: str, other: str) -> None:
    assert code_digest(CODE.replace(one, other)) != code_digest(CODE)


@pytest.mark.parametrize(("a", "b"), [
    ('asm("bar; // a")', 'asm("bar; // b")'),
    ('asm("\\"/*a*/")', 'asm("\\"/*b*/")'),
    ("'\"' + 1 // x \"", "'\"' + 2 // x \""),
])
def test_a_comment_in_a_string_is_none(a: str, b: str) -> None:
    assert code_digest(a) != code_digest(b)


def test_a_better_comment_keeps_what_was_tuned() -> None:
    candidate = CPU.default(Problem.parse("fwd-fp32-d64-dense"), Target.known("x86-64-v3"))
    source = Renderer(paths.templates()).render(candidate)
    assert source.digest == code_digest(source.text + "\n// one more word\n")
    assert source.digest != code_digest(source.text + "\nint one_more;\n")
