"""The conformance suite on a GPU: the same problems and cases, and every common combination."""

from __future__ import annotations

import os

import pytest

from fagen import paths
from fagen.build import Builder, Cache
from fagen.cases import short_list
from fagen.devices import gpus
from fagen.pool import Pool, Verdict
from fagen.render import Renderer
from fagen.target import Target
from tests.conformance import suite
from tests.conftest import HAS_GPU

pytestmark = pytest.mark.gpu

DEVICE = gpus().gpus[0] if HAS_GPU else None
TARGET = DEVICE.target if DEVICE else Target.known("h200")
SAMPLE = suite.defaults(suite.sampled() + suite.usual(), TARGET)
OTHERS = suite.others(TARGET)
STEADY = suite.steady(TARGET)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conformance")
    builder, renderer = Builder(Cache(paths.cache())), Renderer(paths.templates())
    with Pool(builder, renderer, DEVICE, jobs=os.cpu_count() or 1, scratch=folder) as pool:
        yield pool


@pytest.fixture(scope="module", autouse=True)
def built_ahead(pool, request):
    asked = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    pool.prepare(p["candidate"] for p in asked if p.get("candidate") in (*SAMPLE, *OTHERS, *STEADY))


@pytest.mark.parametrize("candidate", SAMPLE, ids=suite.name)
def test_defaults_conform(pool, candidate):
    suite.conforms(pool, candidate)


@pytest.mark.parametrize("candidate", OTHERS, ids=str)
def test_other_configs_pass(pool, candidate):
    suite.passes(pool, candidate)


@pytest.mark.parametrize("candidate", STEADY, ids=suite.name)
def test_deterministic_kernels_give_the_same_bits(pool, candidate):
    suite.repeats(pool, candidate)


# Several consumers and stages each: what releases a buffer too early fails here, now and then.
RACES = [
    f"{op}-bf16-d{dims}-{pattern}" for op in ("fwd", "bwd") for dims in (64, 128, 192, 256)
    for pattern in ("dense", "causal")
]


@pytest.mark.parametrize("candidate", suite.defaults(RACES, TARGET), ids=suite.name)
def test_again_and_again(pool, candidate):
    cases = short_list(candidate.problem)
    for _ in range(100):
        verdict = pool.check(candidate, cases)
        assert isinstance(verdict, Verdict), verdict.reason
