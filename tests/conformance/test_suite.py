"""The suite covers what it says it covers."""

from __future__ import annotations

import itertools

import pytest

from fagen.model import Problem
from fagen.patterns import PATTERNS
from fagen.target import KNOWN_TARGETS, Target
from tests.conformance import suite

PROBLEMS = [Problem.parse(slug) for slug in suite.sampled()]


def test_every_op_meets_every_dtype_and_every_band():
    met = {(p.op, p.dtype, str(p.pattern)) for p in PROBLEMS}
    bands = {str(Problem.parse(f"fwd-fp32-d8-{slug}").pattern) for slug in suite.PATTERNS}
    assert met >= set(itertools.product(suite.OPS, suite.DTYPES, bands))


def test_every_head_dimension_is_there_and_some_differ_between_keys_and_values():
    assert {p.head_dim for p in PROBLEMS} >= set(suite.HEAD_DIMS)
    assert {p.head_dim > p.head_dim_v for p in PROBLEMS if p.head_dim != p.head_dim_v} == {
        True, False
    }


@pytest.mark.parametrize("row", PATTERNS, ids=lambda row: row.slug)
def test_every_named_pattern_is_there_forward_and_backward(row):
    kinds = {p.op for p in PROBLEMS if type(p.pattern) is row.kind}
    assert kinds == set(suite.OPS)


@pytest.mark.parametrize("name", sorted(KNOWN_TARGETS))
def test_every_known_target_has_something_to_test(name):
    target = Target.known(name)
    assert len(suite.defaults(suite.sampled(), target)) >= 30
    assert len(suite.others(target)) >= 4
