"""A pattern of the user's own: one file, its contract, and what is told when it is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fagen import paths
from fagen.errors import BuildError, UsageError, WrongResult
from fagen.families.cpu import CPU
from fagen.model import Problem
from fagen.patterns import parse_pattern, user
from fagen.proof import SIZES, TILES, prove
from fagen.render import Renderer
from fagen.target import Target

# Blocks of SIZE positions that see every second block.
CHECKERS = """\
// fagen pattern: checkers16
// type: Checkers<16>
// keep: (i // 16 + j // 16) % 2 == 0
// span: 64
#ifndef CHECKERS_H
#define CHECKERS_H
#include "patterns/contract.h"

template <int SIZE>
struct Checkers {
  static constexpr bool interval = false;
  int seqlen_q, seqlen_kv, shift;

  FAGEN_HD explicit Checkers(Lengths n)
      : seqlen_q(n.seqlen_q), seqlen_kv(n.seqlen_kv), shift(seqlen_kv - seqlen_q) {}

  FAGEN_HD bool keep(int q, int k) const {
    return ((floor_div(q + shift, SIZE) + k / SIZE) & 1) == 0;
  }
  FAGEN_HD int next_key(int q0, int q1, int k) const {
    if (floor_div(q0 + shift, SIZE) != floor_div(q1 - 1 + shift, SIZE)) return k;
    for (; k < seqlen_kv && !keep(q0, k); ++k) {}
    return k;
  }
  FAGEN_HD int next_query(int k0, int k1, int q) const {
    if (k0 / SIZE != (k1 - 1) / SIZE) return q;
    for (; q < seqlen_q && !keep(q, k0); ++q) {}
    return q;
  }
  FAGEN_HD bool full(int q0, int q1, int k0, int k1) const {
    return keep(q0, k0) && floor_div(q0 + shift, SIZE) == floor_div(q1 - 1 + shift, SIZE) &&
           k0 / SIZE == (k1 - 1) / SIZE;
  }
  FAGEN_HD Tile tile(int q0, int q1, int k0, int k1) const {
    if (next_key(q0, q1, k0) >= k1) return Tile::skip;
    return full(q0, q1, k0, k1) ? Tile::full : Tile::partial;
  }
};
#endif
"""


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    text = CHECKERS
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "checkers.h"
    path.write_text(text)
    return path


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = written(tmp_path)
    monkeypatch.setenv(user.VARIABLE, str(path))
    return path


def test_a_right_file_is_proved(given: Path) -> None:
    pattern = parse_pattern("checkers16")
    assert isinstance(pattern, user.UserPattern)
    assert prove(pattern, paths.templates()) == TILES * len(SIZES)
    assert str(pattern) == "checkers16"
    assert pattern.count_kept(50, 70) == pattern.mask(50, 70).sum() > 0


def test_it_is_part_of_a_problem_and_of_the_source(given: Path) -> None:
    problem = Problem.parse("fwd-fp32-d64-checkers16")
    candidate = CPU.default(problem, Target.known("x86-64-v3"))
    text = Renderer(paths.templates()).render(candidate).text
    assert "struct Checkers" in text
    assert "using Pattern = Checkers<16>;" in text
    assert str(given) not in text  # the same source wherever the file is


def test_without_the_file_the_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(user.VARIABLE, raising=False)
    with pytest.raises(UsageError, match="unknown pattern 'checkers16'"):
        parse_pattern("checkers16")


WRONG = {
    "formula": ([("% 2 == 0", "% 2 == 1")], r"keep\(0, 0\) is True, the expression says False"),
    "walk": ([("return k;", "return k / SIZE * SIZE;")], "next_key"),
    "other walk": ([("return q;", "return seqlen_q;")], "next_query"),
    "skipped": ([("return Tile::skip;", "return Tile::partial;")], r"skip \(0\) is right"),
    "full": ([("return keep(q0, k0) &&", "return keep(q0, k0) ||")], r"not full \(2\) is right"),
    "crash": ([("return ((floor", "if (q == 40) __builtin_trap();\n return ((floor")],
              r"stopped after \d of 7"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_header_is_told_where(tmp_path: Path, name: str) -> None:
    changes, says = WRONG[name]
    with pytest.raises(WrongResult, match=says):
        prove(user.read(written(tmp_path, *changes)), paths.templates())


def test_a_missing_member_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, ("int next_query", "int next_row"))
    with pytest.raises(BuildError, match="lacks a member"):
        prove(user.read(path), paths.templates())


@pytest.mark.parametrize(("old", "new", "says"), [
    ("// type:", "// kind:", "does not say its type"),
    ("pattern: checkers16", "pattern: Checkers", "'Checkers' cannot be a pattern's name"),
    ("span: 64", "span: far", "span 'far' is not a number"),
])
def test_a_file_that_does_not_say_enough(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        user.read(written(tmp_path, (old, new)))


def test_a_formula_that_does_not_work(tmp_path: Path) -> None:
    pattern = user.read(written(tmp_path, ("% 2 == 0", "% nothing == 0")))
    with pytest.raises(UsageError, match="nothing"):
        pattern.mask(4, 4)


def test_the_option_refuses_a_name_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fagen.cli.options import _use_pattern_file

    monkeypatch.setenv(user.VARIABLE, "")
    with pytest.raises(UsageError, match="causal is the name of a pattern that fagen has"):
        _use_pattern_file(written(tmp_path, ("checkers16", "causal")))
    path = written(tmp_path)
    assert _use_pattern_file(path) == path
    assert os.environ[user.VARIABLE] == str(path.resolve())
