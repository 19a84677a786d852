"""What a config changes in the text of a kernel: the prologue, and nothing else.

``tests/snapshots`` holds, for each family and op, the prologue of the space's first legal config
(defaults move with every tuning) and what becomes of the text when a dtype, a pattern or a knob
changes. ``make snapshots`` writes it anew.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fagen import paths
from fagen.families import FAMILIES
from fagen.families.base import Family, Space, constants, symbol
from fagen.model import Candidate, Problem
from fagen.render import Renderer
from fagen.target import KNOWN_TARGETS, Target

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"
KERNELS = [(family, op) for family in FAMILIES for op in family.kernels]
# The last target, in the order of the table, that a family runs on.
TARGETS = {f.name: next(t for t in reversed(KNOWN_TARGETS.values()) if f.runs_on(t))
           for f in FAMILIES}


def first(family: Family, op: str, target: Target) -> Candidate:
    return next(Space(Problem.parse(f"{op}-bf16-d64-causal"), target, family).legal())


def variants(base: Candidate) -> Iterator[Candidate]:
    """Other dtypes and patterns, and one other legal value of each knob."""
    slug = str(base.problem)
    for other in (slug.replace("bf16", "fp16"), slug.replace("causal", "dense"),
                  slug.replace("causal", "window128x32")):
        changed = replace(base, problem=Problem.parse(other))
        if not base.family.broken_rules(changed):
            yield changed
    for name, choices in Space(base.problem, base.target, base.family).knobs().items():
        others = (base.with_config(**{name: c}) for c in choices
                  if c != getattr(base.config, name))
        legal = [c for c in others if not base.family.broken_rules(c)]
        yield from legal[:1]


def text_of(renderer: Renderer, candidate: Candidate) -> list[str]:
    """The lines of a source, without the names that differ for every candidate."""
    text = renderer.render(candidate).text.replace(symbol(candidate), "SYMBOL")
    return text.replace(str(candidate), "CANDIDATE").splitlines()


def prologue(lines: list[str], base: Candidate) -> list[str]:
    """The pattern's type and the constants that the renderer wrote."""
    names = ["DTYPE", "HEAD_DIM", "HEAD_DIM_V", "DETERMINISTIC",
             *(name for _, name, _ in constants(base.config))]
    starts = tuple(f"{name} = " for name in names)
    return [line for line in lines if line.startswith("using Pattern =") or (
        line.startswith("constexpr") and line.split(None, 2)[2].startswith(starts))]


def changes(before: list[str], after: list[str]) -> list[str]:
    lines = difflib.unified_diff(before, after, n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def story(renderer: Renderer, base: Candidate) -> str:
    text = text_of(renderer, base)
    lines = [f"# {base}", *prologue(text, base)]
    for variant in variants(base):
        lines += ["", f"# {variant}", *changes(text, text_of(renderer, variant))]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("family", "op"), KERNELS, ids=lambda x: getattr(x, "name", x))
def test_the_text_of_a_kernel_changes_as_recorded(
    request: pytest.FixtureRequest, family: Family, op: str
) -> None:
    base = first(family, op, TARGETS[family.name])
    told = story(Renderer(paths.templates()), base)
    path = SNAPSHOTS / f"{family.name}-{op}.txt"
    if request.config.getoption("--update-snapshots"):
        path.write_text(told)
    assert path.is_file(), "run: make snapshots"
    assert told == path.read_text(), "run: make snapshots, and review the difference"


def test_no_snapshot_is_left_over() -> None:
    names = {f"{family.name}-{op}.txt" for family, op in KERNELS}
    assert {path.name for path in SNAPSHOTS.iterdir()} == names
