"""Sparse patterns in the CPU kernels with knobs that cut tiles other than the defaults do."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from fagen.families.cpu import CPU
from tests.cpu.harness import Harness, default
from tests.unit.test_cpu_kernels import BEST, TARGETS, Sizes, check, make_inputs, run

pytestmark = pytest.mark.skipif(not TARGETS, reason="this CPU has no AVX2")

Knobs = dict[str, int]
CASES: tuple[tuple[str, Knobs, Knobs], ...] = (
    ("fp32-d40-bigbird-w20-g10-r64-b16-seed3",
     {"panels": 2, "q_vectors": 2, "block_n": 96, "qk_rows": 8},
     {"block_n": 48, "qk_rows": 4, "dkv_rows": 6, "block_kv": 96, "q_vectors": 2}),
    ("fp32-d64-fixed-s40-c5-causal",
     {"panels": 4, "q_vectors": 1, "block_n": 48, "qk_rows": 6},
     {"block_n": 96, "qk_rows": 4, "dkv_rows": 6, "block_kv": 96}),
)


@pytest.mark.parametrize(("slug", "forward", "backward"), CASES, ids=[row[0] for row in CASES])
@pytest.mark.parametrize("n", [Sizes(1, 2, 1, 333, 270, packed=False), Sizes(1, 1, 1, 40, 500)])
def test_tiles_that_are_cut_to_what_rows_need(
    tmp_path: Path, slug: str, forward: Knobs, backward: Knobs, n: Sizes
) -> None:
    fwd = default(f"fwd-{slug}", BEST, **forward)
    bwd = default(f"bwd-{slug}", BEST, **backward)
    x = make_inputs(fwd.problem, n)
    if CPU.broken_rules(fwd) or CPU.broken_rules(bwd):
        pytest.skip("these knobs need more registers than this CPU has")
    check(fwd.problem, run(Harness(tmp_path), fwd, bwd, x, n, 0.2), x, 0.2)
