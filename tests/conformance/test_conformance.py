"""Every family of this host against the reference: op x dtype x head dimension x pattern."""

from __future__ import annotations

import os

import pytest

from fagen import paths
from fagen.build import Builder, Cache
from fagen.devices import host
from fagen.pool import Pool
from fagen.render import Renderer
from tests.conformance import suite

HOST = host()
SAMPLE = suite.defaults(suite.sampled(), HOST.target)
OTHERS = suite.others(HOST.target)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conformance")
    builder, renderer = Builder(Cache(paths.cache())), Renderer(paths.templates())
    with Pool(builder, renderer, HOST, jobs=os.cpu_count() or 1, scratch=folder) as pool:
        yield pool


@pytest.fixture(scope="module", autouse=True)
def built_ahead(pool, request):
    """Compilers run beside the tests, for the tests that were asked for only."""
    asked = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    pool.prepare(p["candidate"] for p in asked if p.get("candidate") in (*SAMPLE, *OTHERS))


@pytest.mark.parametrize("candidate", SAMPLE, ids=suite.name)
def test_defaults_conform(pool, candidate):
    suite.conforms(pool, candidate)


@pytest.mark.parametrize("candidate", OTHERS, ids=str)
def test_other_configs_pass(pool, candidate):
    suite.passes(pool, candidate)
