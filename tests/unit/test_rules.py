"""Rules, defaults and spaces of every family there is, on every target that is known."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace

import pytest

from fagen.errors import UsageError
from fagen.families import FAMILIES, families_for, family_named
from fagen.families.base import Family, Space, constants, idle_knobs, knob, parse_config
from fagen.model import Candidate, Problem
from fagen.target import KNOWN_TARGETS, Target
from fagen.workload import Workload

WORKLOAD = Workload(2, 8, 2, 1000, 1200)
PROBLEMS = [
    Problem.parse(f"{op}-{dtype}-{dims}-{pattern}")
    for op in ("fwd", "bwd")
    for dtype in ("fp32", "fp16", "bf16")
    for dims in ("d64", "d128", "d192x128", "d256", "d40")
    for pattern in ("causal", "window128")
]


def served() -> Iterator[tuple[Family, Problem, Target]]:
    for problem, target in itertools.product(PROBLEMS, KNOWN_TARGETS.values()):
        for family in families_for(problem, target):
            yield family, problem, target


SERVED = list(served())
SPACES = {(f.name, p.op): (f, p, t) for f, p, t in reversed(SERVED)}


def test_every_family_and_op_is_served_somewhere() -> None:
    assert set(SPACES) == {(f.name, op) for f in FAMILIES for op in f.kernels}


def test_defaults_are_legal_points_of_the_space() -> None:
    for family, problem, target in SERVED:
        default = family.default(problem, target)
        assert not family.broken_rules(default), default
        for name, choices in Space(problem, target, family).knobs().items():
            assert getattr(default.config, name) in choices, (default, name)


def test_there_is_something_to_tune_wherever_a_family_serves() -> None:
    for family, problem, target in SERVED[::11]:
        others = Space(problem, target, family).legal()
        assert len(list(itertools.islice(others, 2))) == 2, (family.name, problem, target.name)


def sample(family: Family, problem: Problem, target: Target, count: int) -> list[Candidate]:
    space, rng = Space(problem, target, family), random.Random(0)
    knobs = space.knobs()
    return [
        space.candidate({name: rng.choice(choices) for name, choices in knobs.items()})
        for _ in range(count)
    ]


@pytest.mark.parametrize("key", sorted(SPACES))
def test_knobs_survive_the_way_through_text(key: tuple[str, str]) -> None:
    family, problem, target = SPACES[key]
    for candidate in sample(family, problem, target, 50):
        shown = dict(pair.split("=") for pair in family.show(candidate.config).split(","))
        assert parse_config(type(candidate.config), shown) == candidate.config
        assert parse_config(type(candidate.config), asdict(candidate.config)) == candidate.config


@pytest.mark.parametrize("key", sorted(SPACES))
def test_allowed_is_what_breaks_no_rule(key: tuple[str, str]) -> None:
    family, problem, target = SPACES[key]
    default = family.default(problem, target)
    for candidate in (default, *sample(family, problem, target, 200)):
        assert family.allows(candidate) == (not family.broken_rules(candidate))


SMALL = {key for key, served in SPACES.items() if Space(*served[1:], served[0]).size < 30_000}


@pytest.mark.parametrize("key", sorted(SMALL))
def test_census_counts_what_legal_yields(key: tuple[str, str]) -> None:
    """On the smaller spaces; both walk all of it."""
    family, problem, target = SPACES[key]
    space = Space(problem, target, family)
    legal, removed = space.census()
    assert legal == sum(1 for _ in space.legal())
    assert set(removed) == {rule.says for rule in space.kernel.rules}


@dataclass(frozen=True)
class Engine:
    fuel: str = knob("petrol", "electric", "none", default="petrol", says="what it burns")
    cylinders: int = knob(2, 4, 6, default=4, says="how many", only=("fuel", "petrol"))


def test_a_knob_that_does_not_matter_keeps_its_default() -> None:
    rules = tuple(idle.rule for idle in idle_knobs(Engine))
    some, problem, target = SPACES["sm90", "fwd"]
    kernel = replace(some.kernel("fwd"), config=Engine, rules=rules)
    space = Space(problem, target, replace(some, kernels={"fwd": kernel}))
    points = [(c.config.fuel, c.config.cylinders) for c in space.all_points()]
    assert points == [("petrol", 2), ("petrol", 4), ("petrol", 6), ("electric", 4), ("none", 4)]
    assert space.size == 9
    assert space.census() == (5, {"cylinders only matters with fuel=petrol": 4})
    broken = space.family.broken_rules(space.candidate({"fuel": "none", "cylinders": 6}))
    assert [rule.says for rule in broken] == ["cylinders only matters with fuel=petrol"]


@pytest.mark.parametrize("key", sorted(SPACES))
def test_rules_and_knobs_are_sentences_and_frozen(key: tuple[str, str]) -> None:
    family, _, _ = SPACES[key]
    kernel = family.kernel(key[1])
    assert len({rule.says for rule in kernel.rules}) == len(kernel.rules)
    assert all(rule.says.strip() for rule in kernel.rules)
    assert is_dataclass(kernel.config)
    assert kernel.config.__dataclass_params__.frozen  # candidates are keys
    assert all(f.metadata["says"] for f in fields(kernel.config))


@pytest.mark.parametrize("key", sorted(SPACES))
def test_plans_and_bytes_of_legal_points_make_sense(key: tuple[str, str]) -> None:
    family, problem, target = SPACES[key]
    kernel = family.kernel(problem.op)
    legal = [c for c in sample(family, problem, target, 400) if not family.broken_rules(c)]
    for candidate in [family.default(problem, target), *legal[:40]]:
        assert kernel.bytes_moved(candidate, WORKLOAD) >= 0.5 * WORKLOAD.min_bytes(problem)
        plan = kernel.plan(candidate)
        assert plan.workspace_bytes(WORKLOAD) >= 0
        for step in plan.steps:
            assert 0 <= step.shared_bytes <= target.shared_bytes, candidate
            assert 0 < step.block <= 1024
            assert all(p.value(WORKLOAD) >= 1 for p in step.grid)
            assert all(len(p.factors) <= 5 for p in step.grid)
        names = [name for _, name, _ in constants(candidate.config)]
        assert len(set(names)) == len(names)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown family"):
        family_named("abacus")
    config = FAMILIES[0].kernels["fwd"].config
    with pytest.raises(UsageError, match="unknown knob"):
        parse_config(config, {"horses": 4})
    knob = fields(config)[0]
    with pytest.raises(UsageError, match="is not a choice"):
        parse_config(config, {knob.name: "many"})
    with pytest.raises(UsageError, match="has no sideways"):
        FAMILIES[0].kernel("sideways")


@pytest.mark.parametrize("family", ["sm80", "sm90"])
@pytest.mark.parametrize("op", ["fwd", "bwd"])
def test_gpu_families_refuse_fp32_in_a_sentence(family: str, op: str) -> None:
    wanted = family_named(family)
    broken = wanted.broken_rules(
        wanted.default(Problem.parse(f"{op}-fp32-d64"), Target.known("h200"))
    )
    assert "16-bit elements" in [rule.says for rule in broken]
