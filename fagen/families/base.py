"""What a family is: data. Knobs, rules, templates, launch plans; no behaviour outside these types.

A knob is declared once, as a field of a frozen dataclass made with :func:`knob`. The search space,
Optuna's distributions, ``--set`` parsing, YAML reading and the template's constants all come from
that declaration.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, cast

from fagen.errors import UsageError
from fagen.families.plan import Plan
from fagen.model import Candidate, Problem
from fagen.target import Target
from fagen.workload import Workload

Choice = int | bool | str


def knob(
    *choices: Choice, default: Choice, says: str, enum: str = "", launch: bool = False,
    only: tuple[str, Choice] | None = None,
) -> Any:
    """A tunable field. ``enum`` names the C++ enum class that a string knob chooses from. One of
    the ``launch`` is in the plan alone: the kernel's text does not know it. With ``only``, it
    matters where another knob has one value, and keeps its default elsewhere."""
    if default not in choices:
        raise ValueError(f"default {default!r} is not among {choices!r}")
    metadata = {"choices": choices, "says": says, "enum": enum, "launch": launch, "only": only}
    return field(default=default, metadata=metadata)


def parse_config(config_type: type, knobs: dict[str, Any]) -> Any:
    """A config from untrusted names and values (``--set``, YAML)."""
    known = {f.name: f for f in fields(config_type)}
    typed: dict[str, Choice] = {}
    for name, given in knobs.items():
        if name not in known:
            raise UsageError(f"unknown knob {name!r}", f"knobs: {', '.join(known)}")
        typed[name] = _choice(name, given, known[name].metadata["choices"])
    return config_type(**typed)


def _choice(name: str, given: Any, choices: tuple[Choice, ...]) -> Choice:
    for choice in choices:
        if type(given) is type(choice) and given == choice:
            return choice
        if isinstance(given, str) and given.lower() == str(choice).lower():
            return choice
    raise UsageError(
        f"knob {name}={given!r} is not a choice", f"one of: {', '.join(map(str, choices))}"
    )


def symbol(candidate: Candidate) -> str:
    """A C identifier unique to the candidate, so that host kernels link into one library."""
    return "fagen_" + hashlib.sha256(str(candidate).encode()).hexdigest()[:16]


# --- rules and families ------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A sentence that every legal candidate satisfies, and the predicate that decides."""

    says: str
    holds: Callable[[Candidate], bool]


@dataclass(frozen=True)
class Idle:
    """A knob with ``only``."""

    name: str
    default: Choice
    other: str
    value: Choice

    @property
    def rule(self) -> Rule:
        return Rule(
            f"{self.name} only matters with {self.other}={_plain(self.value)}",
            lambda c: getattr(c.config, self.other) == self.value
            or getattr(c.config, self.name) == self.default,
        )


def idle_knobs(config_type: type) -> tuple[Idle, ...]:
    return tuple(Idle(f.name, cast(Choice, f.default), *f.metadata["only"])
                 for f in fields(config_type) if f.metadata["only"])


# What the GPU families' kernels serve.
HALVES = Rule("16-bit elements", lambda c: c.problem.element_bytes == 2)


@dataclass(frozen=True)
class Kernel:
    """How a family does one op."""

    template: str  # under templates/kernels
    config: type
    rules: tuple[Rule, ...]
    plan: Callable[[Candidate], Plan]
    default: Callable[[Problem, Target], Any]
    # Bytes of device (or main) memory one call moves, by the family's own IO model.
    bytes_moved: Callable[[Candidate, Workload], int]
    # Bytes that one thread (CPU) or block (GPU) touches over and over; 0 where nobody said.
    footprint: Callable[[Candidate], int] = lambda candidate: 0
    # Headers that are other files for some problems, under templates/: {included: instead}.
    instead: Callable[[Problem], dict[str, str]] = lambda problem: {}


@dataclass(frozen=True)
class Family:
    """A set of templates that share a hardware model."""

    name: str
    says: str
    toolchain: str  # "host" or "nvcc"
    kernels: dict[str, Kernel] = field(compare=False)  # by op
    runs_on: Callable[[Target], bool] = field(compare=False)
    # e.g. {"sm_90a"}: the architecture to compile for
    arch: Callable[[Target], str] = field(compare=False)

    def show(self, config: Any) -> str:
        """One line, every knob: ``block_m=128,stages=2``."""
        return ",".join(f"{k}={_plain(v)}" for k, v in asdict(config).items())

    def kernel(self, op: str) -> Kernel:
        try:
            return self.kernels[op]
        except KeyError:
            raise UsageError(
                f"family {self.name} has no {op}", f"it has: {', '.join(self.kernels)}"
            ) from None

    def default(self, problem: Problem, target: Target) -> Candidate:
        config = self.kernel(problem.op).default(problem, target)
        return Candidate(problem, target, self, config)

    def allows(self, candidate: Candidate) -> bool:
        """Does no rule break? Asked of whole spaces: the first that does is answer enough."""
        return all(rule.holds(candidate) for rule in self.kernel(candidate.problem.op).rules)

    def broken_rules(self, candidate: Candidate) -> tuple[Rule, ...]:
        rules = self.kernel(candidate.problem.op).rules
        return tuple(rule for rule in rules if not rule.holds(candidate))


def _plain(value: Choice) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Space:
    """The legal configs of one family for one problem on one target, in declaration order."""

    def __init__(self, problem: Problem, target: Target, family: Family) -> None:
        self.problem, self.target, self.family = problem, target, family
        self.kernel = family.kernel(problem.op)

    def knobs(self) -> dict[str, tuple[Choice, ...]]:
        return {f.name: f.metadata["choices"] for f in fields(self.kernel.config)}

    @property
    def size(self) -> int:
        """Points before any rule."""
        total = 1
        for choices in self.knobs().values():
            total *= len(choices)
        return total

    def candidate(self, knobs: dict[str, Any]) -> Candidate:
        config = parse_config(self.kernel.config, knobs)
        return Candidate(self.problem, self.target, self.family, config)

    def all_points(self) -> Iterator[Candidate]:
        """But those where a knob that does not matter leaves its default: there are many."""
        names = list(self.knobs())
        idle = [(names.index(knob.name), knob.default, names.index(knob.other), knob.value)
                for knob in idle_knobs(self.kernel.config)]
        for values in itertools.product(*self.knobs().values()):
            if any(values[at] != default and values[other] != value
                   for at, default, other, value in idle):
                continue
            config = self.kernel.config(**dict(zip(names, values, strict=True)))
            yield Candidate(self.problem, self.target, self.family, config)

    def legal(self) -> Iterator[Candidate]:
        return filter(self.family.allows, self.all_points())

    def census(self) -> tuple[int, dict[str, int]]:
        """How many points are legal, and how many each rule alone removes: of all points a rule
        that a knob does not matter, of the rest any other."""
        removed = {rule.says: 0 for rule in self.kernel.rules}
        for knob in idle_knobs(self.kernel.config):
            left, others = len(self.knobs()[knob.name]), len(self.knobs()[knob.other])
            removed[knob.rule.says] = self.size // (left * others) * (left - 1) * (others - 1)
        legal = 0
        for candidate in self.all_points():
            broken = self.family.broken_rules(candidate)
            legal += not broken
            for rule in broken:
                removed[rule.says] += 1
        return legal, removed


def constants(config: Any) -> list[tuple[str, str, str]]:
    """The kernel's knobs as C++ constants: (type, NAME, value)."""
    lines = []
    for f in fields(config):
        if f.default is MISSING:
            raise ValueError(f"knob {f.name} has no default")
        if f.metadata["launch"]:
            continue
        value = getattr(config, f.name)
        if isinstance(value, bool):
            lines.append(("bool", f.name.upper(), str(value).lower()))
        elif isinstance(value, int):
            lines.append(("int", f.name.upper(), str(value)))
        else:
            enum = f.metadata["enum"]
            lines.append((enum, f.name.upper(), f"{enum}::{value}"))
    return lines
