"""Kernels that read a mask, through the C interface: what is missing is told before they run."""

from __future__ import annotations

import pytest

from fagen import paths
from fagen.library import Library
from fagen.link import link
from tests.unit import toykernel
from tests.unit.test_link import OK, Call, error

BAD_ARGUMENT = 2
SLUGS = ("fwd-fp32-d8-blocks16", "fwd-fp32-d8-documents")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        parts = [toykernel.part(slug, paths.cache()) for slug in SLUGS]
    return Library.load(link(parts, tmp_path_factory.mktemp("lib") / "libmasks.so"))


@pytest.mark.parametrize(("index", "says"), [
    (0, "fwd-fp32-d8-blocks16 needs mask.by_query.cells, which is null"),
    (1, "fwd-fp32-d8-documents needs mask.queries, which is null"),
])
def test_a_mask_that_is_not_there(library: Library, index: int, says: str) -> None:
    call = Call(2, 4, 2, 5, 3, 8)
    call.params.mask.batches = call.params.mask.heads = 1
    assert call.run(library, index) == BAD_ARGUMENT
    assert error(library) == says


def test_a_mask_for_other_batches_or_heads(library: Library) -> None:
    from array import array

    call = Call(2, 4, 2, 5, 3, 8)
    runs = array("i", [0, 3] * 10)
    mask = call.params.mask
    mask.queries, mask.batches, mask.heads = runs.buffer_info()[0], 2, 1
    assert call.run(library, 1) == OK, error(library)
    outs, _ = call.expected(causal=False)
    assert call.arrays["o"].tolist() == pytest.approx(outs, abs=1e-5)
    for batches, heads in ((3, 1), (1, 2), (0, 1)):
        mask.batches, mask.heads = batches, heads
        assert call.run(library, 1) == BAD_ARGUMENT
        assert error(library) == (
            f"the mask is for {batches} batches and {heads} heads; 1 or 2, and 1 or 4 are possible")
