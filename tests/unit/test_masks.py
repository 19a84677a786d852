"""The masks that kernels are verified with: what is drawn, and what the kernels are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fagen.cases import Case, of_workload
from fagen.errors import UsageError
from fagen.library import Params
from fagen.masks import DrawnBlocks, drawn, point
from fagen.model import Problem
from fagen.workload import Workload
from tests.unit.test_data_patterns import Asked


def case(sizes: str, layout: str = "bshd") -> Case:
    return Case(Workload.parse(sizes), layout=layout)


@pytest.mark.parametrize("pattern", ["blocks16x80-causal", "blocks48x16", "documents"])
@pytest.mark.parametrize("layout", ["bhsd", "bshd", "padded"])
def test_the_arrays_say_what_the_reference_keeps(pattern: str, layout: str) -> None:
    problem, given = Problem.parse(f"bwd-bf16-d64-{pattern}"), case("b2-h4x2-s90x130", layout)
    mask = drawn(problem, given)
    assert mask is not None
    arrays = mask.arrays("cpu")
    params = Params(seqlen_q=90, seqlen_kv=130)
    point(params, {name: array.data_ptr() for name, array in arrays.items()}, mask.sharing)
    asked = Asked(problem.pattern, params, arrays)
    nothing = np.zeros((0, 4), np.int32)
    seen = set()
    for batch in range(2):
        for kv_head in range(2):
            rows = [mask.keeps((batch, kv_head), 2, part, "cpu")
                    for part in (slice(0, 33), slice(33, 90))]
            want = torch.cat(rows, 1).expand(2, -1, -1).numpy()
            for head in range(2):
                _, kept = asked.tell(batch, 2 * kv_head + head, nothing)
                assert (kept == want[head]).all()
                seen.add(kept.tobytes())
    per_head = pattern != "documents" and layout != "bhsd"
    assert len(seen) == (4 if per_head else 1) * (2 if layout == "bshd" else 1)


def test_verification_sees_holes_and_rows_with_nothing() -> None:
    mask = drawn(Problem.parse("fwd-bf16-d64-blocks16"), case("b2-h4x2-s193x257"))
    assert isinstance(mask, DrawnBlocks)
    assert bool((mask.some & ~mask.full).any())
    assert bool((~mask.some.any(-1)).any())
    assert bool((~mask.some.any(-2)).any())


def test_what_is_timed_is_full_blocks_as_dense_as_the_workload_says() -> None:
    problem = Problem.parse("fwd-bf16-d64-blocks64")
    for density in (5, 50):
        workload = Workload.parse(f"b2-h4-s4096-k{density}")
        mask = drawn(problem, of_workload(workload))
        assert isinstance(mask, DrawnBlocks)
        assert mask.sharing == (1, 1)
        assert torch.equal(mask.some, mask.full)
        kept = int(mask.some.sum()) * 64 * 64
        assert workload.kept(problem) == 8 * kept
        assert density / 100 < kept / 4096**2 < density / 100 + 0.03


def test_a_density_is_part_of_a_workload_s_name() -> None:
    workload = Workload.parse("b1-h16x4-s16384x100-k10")
    assert (str(workload), workload.density) == ("b1-h16x4-s16384x100-k10", 10)
    with pytest.raises(UsageError, match="density 101 is not a percentage"):
        Workload.parse("b1-h16-s16384-k101")
    with pytest.raises(UsageError, match="causal knows itself"):
        workload.kept(Problem.parse("fwd-bf16-d64-causal"))


def test_packed_sequences_and_a_mask_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="blocks64 is not served for packed sequences"):
        Problem.parse("fwd-bf16-d64-blocks64+varlen")
