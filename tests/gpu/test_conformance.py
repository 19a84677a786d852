"""The conformance suite on a GPU: the same problems and cases, and every common combination."""

from __future__ import annotations

import os

import pytest

from fagen import paths
from fagen.build import Builder, Cache
from fagen.devices import gpus
from fagen.model import Target
from fagen.pool import Pool
from fagen.render import Renderer
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
