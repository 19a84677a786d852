"""Names round-trip, sizes are checked, counts are exact."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fagen.errors import UsageError
from fagen.model import DTYPES, FEATURES, OPS, Problem
from fagen.packing import draw
from fagen.patterns import Band, parse_pattern
from fagen.target import KNOWN_TARGETS, Target
from fagen.workload import Workload

dims = st.integers(1, 32).map(lambda n: 8 * n)
patterns = st.sampled_from(["dense", "causal", "causal-topleft"]).map(parse_pattern) | st.builds(
    Band, st.integers(0, 10**6), st.integers(0, 10**6)
)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    op = draw(st.sampled_from(OPS))
    features = tuple(
        f for f in FEATURES if (f != "deterministic" or op == "bwd") and draw(st.booleans())
    )
    return Problem(
        op, draw(st.sampled_from(sorted(DTYPES))), draw(dims), draw(patterns), draw(dims), features
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    kv_heads = draw(st.integers(1, 64))
    batch, lengths = draw(st.integers(1, 512)), (draw(st.integers(1, 10**6)) for _ in "qk")
    q, kv = lengths
    totals = [draw(st.integers(n, n * batch)) for n in (q, kv)] if draw(st.booleans()) else (0, 0)
    heads = kv_heads * draw(st.integers(1, 16))
    return Workload(batch, heads, kv_heads, q, kv, 1.0, *totals)


@given(problems())
def test_problems_round_trip(problem: Problem) -> None:
    assert Problem.parse(str(problem)) == problem


@given(problems(), problems())
def test_two_problems_have_two_names(a: Problem, b: Problem) -> None:
    assume(a != b)
    assert str(a) != str(b)


@given(workloads())
def test_workloads_round_trip(workload: Workload) -> None:
    assert Workload.parse(str(workload)) == workload


@given(problems())
def test_slugs_are_safe_as_file_names(problem: Problem) -> None:
    assert set(str(problem)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-+")


@pytest.mark.parametrize(
    "slug",
    [
        "", "fwd", "fwd-bf16", "fwd-bf16-d7", "fwd-bf16-d264", "fwd-bf16-d0", "sideways-bf16-d64",
        "fwd-int8-d64", "fwd-bf16-d64-spiral", "fwd-bf16-d64+loud", "fwd-bf16-d64+deterministic",
        "fwd-bf16-d64/../../etc/passwd", "fwd-bf16-d64;true", "fwd-bf16-d64\n", "FWD-bf16-d64",
        "fwd-bf16-d64x65", "fwd-bf16-d-64", "fwd-bf16-d\u0666\u0664",
        "fwd-bf16-d" + "9" * 5000,
    ],
)
def test_other_problems_are_refused(slug: str) -> None:
    with pytest.raises(UsageError):
        Problem.parse(slug)


@pytest.mark.parametrize(
    "slug",
    ["", "b0-h1-s1", "b1-h8x3-s64", "b1-h8-s64x0", "b1-h8", "b1-h8-s-4", "b1-h8-s9999999999",
     "b1-h8-s" + "9" * 5000, "b2-h8-s64-t63", "b2-h8-s64-t129", "b2-h8-s64-t0", "b2-h8-s64-t",
     "b9-h8-s2000000000-t2147483648"],
)
def test_other_workloads_are_refused(slug: str) -> None:
    with pytest.raises(UsageError):
        Workload.parse(slug)


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 300), st.floats(0, 1), st.sampled_from(["", "kv"]))
def test_drawn_lengths_come_to_their_total(
    count: int, longest: int, full: float, seed: str
) -> None:
    total = longest + int(full * (count - 1) * longest)
    lengths = draw(count, longest, total, seed)
    assert lengths == draw(count, longest, total, seed)
    assert (len(lengths), sum(lengths), max(lengths)) == (count, total, longest)
    assert min(lengths) >= 0


def test_drawn_lengths_have_a_long_tail() -> None:
    """64K rows, 1K in the mean, 16K at most: the batch that packed kernels are compared on."""
    lengths = sorted(q for q, _ in Workload.parse("b64-h16-s16384-t65536").lengths())
    assert lengths[0] > 0
    assert lengths[32] < 1024
    assert lengths[-1] == 16384
    assert 2048 < lengths[-4] < 8192
    assert len(set(lengths)) > 50


def test_a_packed_batch_is_for_problems_that_take_one() -> None:
    plain, packed = map(Problem.parse, ("fwd-bf16-d64-causal", "fwd-bf16-d64-causal+varlen"))
    drawn, equal = Workload.parse("b6-h2-s130x90-t140x300"), Workload.parse("b3-h2-s100")
    with pytest.raises(UsageError, match="b6-h2-s130x90-t140x300 is a packed batch"):
        drawn.flops(plain)
    assert equal.of(packed) == Workload.parse("b3-h2-s100-t300")
    assert equal.of(packed).lengths() == equal.lengths() == ((100, 100),) * 3
    assert equal.flops(packed) == equal.flops(plain)
    queries, keys = zip(*drawn.lengths(), strict=True)
    assert (sum(queries), sum(keys), queries != keys) == (140, 300, True)
    kept = sum(plain.pattern.count_kept(q, kv) for q, kv in drawn.lengths() if q and kv)
    assert drawn.flops(packed) == 2 * kept * 4 * 64
    assert drawn.min_bytes(packed) == 2 * (2 * 2 * (140 + 300) * 64) + 4 * 2 * 140


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_weights_are_positive(weight: float) -> None:
    with pytest.raises(UsageError, match="weight"):
        Workload(1, 1, 1, 1, 1, weight)


def test_short_names_mean_the_same() -> None:
    assert Problem.parse("fwd-bf16-d64") == Problem.parse("fwd-bf16-d64-dense")
    assert Problem.parse("fwd-bf16-d64x64-causal").head_dim_v == 64
    assert str(Problem.parse("bwd-fp16-d192x128-window31+deterministic")) == (
        "bwd-fp16-d192x128-window31+deterministic"
    )
    assert Workload.parse("b2-h8x8-s64x64") == Workload(2, 8, 8, 64, 64)


def test_flops_are_those_of_the_kept_scores() -> None:
    workload = Workload(2, 8, 4, 1024, 1024)
    dense, causal = Problem.parse("fwd-bf16-d64"), Problem.parse("fwd-bf16-d64-causal")
    assert dense.element_bytes == 2
    assert workload.flops(dense) == 4 * 2 * 8 * 1024 * 1024 * 64
    assert workload.flops(causal) == 4 * 2 * 8 * (1024 * 1025 // 2) * 64
    assert workload.flops(Problem.parse("bwd-bf16-d64")) * 2 == workload.flops(dense) * 5


def test_least_bytes_count_every_tensor_once() -> None:
    workload = Workload(2, 8, 4, 100, 300)
    q, kv = 2 * 8 * 100, 2 * 4 * 300
    assert workload.min_bytes(Problem.parse("fwd-bf16-d64x32")) == (
        2 * (q * 64 + kv * 64 + kv * 32 + q * 32) + 4 * q
    )
    assert workload.min_bytes(Problem.parse("bwd-fp32-d64")) == (
        4 * (2 * (q * 64 + 2 * kv * 64) + 2 * q * 64) + 4 * q
    )


@pytest.mark.parametrize("name", ["", "H100", "a/b", "..", "-x", "a b", "h100\n"])
def test_target_names_are_safe_as_folder_names(name: str) -> None:
    with pytest.raises(UsageError):
        Target(name, "cuda")


def test_code_runs_where_its_instructions_are() -> None:
    old, new = Target.known("x86-64-v3"), Target.known("x86-64-v4")
    assert old.serves(new)
    assert not new.serves(old)
    assert Target.known("h100").serves(Target.known("h200"))
    assert not Target.known("a100").serves(Target.known("a10"))
    assert not old.serves(Target.known("h100"))
    with pytest.raises(UsageError, match="unknown target 'abacus'"):
        Target.known("abacus")
    assert all(name == target.name for name, target in KNOWN_TARGETS.items())
