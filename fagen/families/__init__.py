"""The families, in order of preference on the targets they run on."""

from __future__ import annotations

from fagen.errors import UsageError
from fagen.families.base import Family
from fagen.families.cpu import CPU
from fagen.families.sm80 import SM80
from fagen.families.sm90 import SM90
from fagen.model import Problem
from fagen.target import Target

FAMILIES: tuple[Family, ...] = (SM90, SM80, CPU)


def family_named(name: str, families: tuple[Family, ...] = FAMILIES) -> Family:
    for family in families:
        if family.name == name:
            return family
    raise UsageError(
        f"unknown family {name!r}", f"families: {', '.join(f.name for f in families)}"
    )


def families_for(
    problem: Problem, target: Target, families: tuple[Family, ...] = FAMILIES
) -> tuple[Family, ...]:
    """Every family that runs on the target and has a legal default for the problem."""
    return tuple(
        f
        for f in families
        if f.runs_on(target)
        and problem.op in f.kernels
        and not f.broken_rules(f.default(problem, target))
    )
