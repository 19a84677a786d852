"""The sm90 kernels run on the host and pass what verifies kernels on a GPU.

``emulator/machine_sm90.h`` says what is emulated: wgmma through descriptor bits, TMA with swizzle,
zero fill and byte counts, both kinds of barriers, register pools, programmatic launches. Every row
below runs under several modes: background work at the first or at the last legal moment, and warps
in a fixed or a random order.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fagen.call import Call  # noqa: E402
from fagen.cases import Case, long_list  # noqa: E402
from fagen.errors import RunError, WrongResult  # noqa: E402
from fagen.families.base import Space, parse_config  # noqa: E402
from fagen.families.sm90 import SM90  # noqa: E402
from fagen.inputs import copied  # noqa: E402
from fagen.model import Candidate, Problem  # noqa: E402
from fagen.pieces import Pieces  # noqa: E402
from fagen.target import Target  # noqa: E402
from fagen.verify import Checker  # noqa: E402
from fagen.workload import Workload  # noqa: E402
from tests.emulated.emulator.ptx_sm90 import translate  # noqa: E402
from tests.emulated.emulator.sm90 import Edit, Emulator  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
H200 = Target.known("h200")
Row = tuple[str, dict[str, Any]]  # a problem, and the knobs that differ from its default


def candidate_of(row: Row) -> Candidate:
    slug, knobs = row
    default = SM90.default(Problem.parse(slug), H200)
    config = parse_config(type(default.config), {**asdict(default.config), **knobs})
    return Candidate(default.problem, H200, SM90, config)


def case(sizes: str, inputs: str = "normal", layout: str = "bhsd", **options: Any) -> Case:
    return Case(Workload.parse(sizes), inputs, layout, **options)


@pytest.fixture(scope="module")
def emulator(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path_factory.mktemp("sm90"))
    for item in request.session.items:  # compiled while others run
        given = item.callspec.params if hasattr(item, "callspec") else {}
        if item.getparent(pytest.Module) is request.node and "row" in given:
            emulator.prepare(candidate_of(given["row"]), given.get("edit"))
    yield emulator
    emulator.workers.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def checker() -> Checker:
    return Checker("cpu", 1)


def check(emulator: Emulator, checker: Checker, row: Row, cases: dict[Case, dict[str, int]],
          edit: Edit | None = None) -> None:
    candidate = candidate_of(row)
    assert [rule.says for rule in SM90.broken_rules(candidate)] == []
    for one, mode in cases.items():
        library = emulator.library(candidate, edit, **mode)
        try:
            checker.check(library, checker.prepared(candidate.problem, one))
        except WrongResult as wrong:
            wrong.add_note(f"mode {mode}; {library.remark()}")
            raise


# --- forward -------------------------------------------------------------------------------------

FORWARD_CASES = {
    case("b2-h4x2-s193x257", layout="bshd"): {"late": 1},
    case("b1-h2-s300x77", layout="padded"): {"late": 0, "seed": 1, "sms": 3},
    case("b1-h2x1-s1x129", scale=0.3): {"late": 0, "sms": 1},
    case("b1-h2-s161x290", "huge_first"): {"late": 1, "seed": 2},
    case("b2-h2x1-s290x333", "falling"): {"late": 0, "seed": 3, "sms": 1},
}
FORWARD: tuple[Row, ...] = (
    ("fwd-bf16-d64-dense", {}),
    ("fwd-fp16-d64-causal", {"softmax": "anchored"}),
    ("fwd-bf16-d64-dense", {"softmax": "anchored", "schedule": "grid", "q_buffers": 1,
                            "warpgroups": 1, "ping_pong": False, "ctas_per_sm": 2}),
    ("fwd-bf16-d128-causal", {}),
    ("fwd-bf16-d128-dense", {"softmax": "anchored", "block_n": 160, "q_buffers": 1}),
    ("fwd-fp16-d128-window20x5", {"softmax": "exact", "warpgroups": 3, "block_n": 64,
                                  "half_blocks": False}),
    ("fwd-bf16-d80-window128", {"softmax": "anchored", "ping_pong": False}),
    ("fwd-fp16-d40-causal-topleft", {"warpgroups": 2, "block_n": 80, "stages": 3,
                                     "half_blocks": True}),
    ("fwd-bf16-d64-window20x5", {"warpgroups": 3, "block_n": 128, "stages": 2, "softmax": "exact",
                                 "half_blocks": True}),
    ("fwd-bf16-d72-prefix100", {"schedule": "grid", "q_buffers": 1, "half_blocks": True}),
    ("fwd-fp16-d128-causal", {"half_blocks": False}),
    ("fwd-bf16-d256-causal", {}),
    ("fwd-bf16-d192x128-dense", {}),
    ("fwd-fp16-d24x72-window3", {"warpgroups": 3, "block_n": 64, "stages": 4,
                                 "half_blocks": False}),
    ("fwd-bf16-d160-causal", {"schedule": "grid", "q_buffers": 1, "block_n": 64, "stages": 4,
                              "softmax": "anchored", "epilogue": "direct", "half_blocks": False}),
    ("fwd-bf16-d64-causal", {"schedule": "snake", "warpgroups": 1, "ping_pong": False,
                             "stages": 2, "ctas_per_sm": 2}),
    # How a tile meets the next.
    ("fwd-bf16-d64-dense", {"seam": "early", "warpgroups": 3}),
    ("fwd-fp16-d64-causal", {"seam": "early", "warpgroups": 2, "block_n": 64, "stages": 3}),
    ("fwd-bf16-d128-causal", {"seam": "early"}),
    ("fwd-fp16-d128-window20x5", {"seam": "early", "block_n": 80, "softmax": "lazy"}),
    ("fwd-bf16-d256-causal", {"seam": "apart"}),
    ("fwd-fp16-d128-window20x5", {"seam": "apart", "warpgroups": 3, "block_n": 64, "stages": 3,
                                  "q_buffers": 1, "half_blocks": False}),
)


def name(row: Row) -> str:
    return "-".join((row[0], *(f"{knob}={value}" for knob, value in row[1].items())))


@pytest.mark.parametrize("row", FORWARD, ids=name)
def test_forward(emulator: Emulator, checker: Checker, row: Row) -> None:
    check(emulator, checker, row, FORWARD_CASES)


def test_sections_that_fall_and_rise(emulator: Emulator, checker: Checker) -> None:
    """A head or two to a section, so that there are several of them."""
    row: Row = "fwd-fp16-d128-causal", {"schedule": "snake", "warpgroups": 1, "ping_pong": False}
    small: Edit = "SECTION_BYTES = 32 << 20", "SECTION_BYTES = 200000"
    cases = {case("b3-h4x2-s193x257"): {"late": 0, "sms": 2},
             case("b1-h5-s300x77"): {"late": 1, "sms": 3}}
    check(emulator, checker, row, cases, small)


HALVES: Row = ("fwd-fp16-d64-causal-topleft", {
    "warpgroups": 2, "block_n": 128, "stages": 2, "half_blocks": True,
})


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_half_a_block_at_the_rim_is_left_out(
    emulator: Emulator, checker: Checker, tiles: int
) -> None:
    def columns(halved: bool) -> int:
        slug, knobs = HALVES
        row = slug, {**knobs, "half_blocks": halved}
        check(emulator, checker, row, {case(f"b1-h1-s{128 * tiles}"): {"late": 1}})
        return emulator.columns_multiplied()

    of_scores, of_output = 64 // 16 * 128, 128 // 16 * 64
    blocks = tiles * (tiles + 1)  # of both warpgroups
    assert columns(False) == blocks * (of_scores + of_output)
    assert columns(True) == (blocks - tiles / 2) * (of_scores + of_output)


def test_what_half_a_block_leaves_out_is_not_read(emulator: Emulator, checker: Checker) -> None:
    """A NaN there would spoil rows whose probabilities are 0."""
    candidate, one = candidate_of(HALVES), case("b1-h2-s64x128")
    clean = checker.prepared(candidate.problem, one).inputs
    dirty = {**clean, **copied(candidate.problem, one, {name: clean[name] for name in "kv"})}
    for tensor in "kv":
        dirty[tensor].values[:, :, 64:] = float("nan")
    results = []
    for inputs in (clean, dirty):
        library = emulator.library(candidate, late=1)
        call = Call.bind(library, candidate.problem, one, inputs, "cpu", 1)
        call.poison()
        call()
        results.append([output.bits.clone() for output in call.outputs.values()])
    assert all(map(torch.equal, *results))


# --- backward ------------------------------------------------------------------------------------

BACKWARD_CASES = {
    case("b2-h4x2-s193x257", layout="bshd", dlse=True): {"late": 1},
    case("b1-h2-s300x77", layout="padded"): {"late": 0, "seed": 1, "sms": 3},
    case("b1-h2x1-s1x129", scale=0.3, dlse=True): {"late": 0, "sms": 1},
    case("b1-h2-s161x290", "falling"): {"late": 1, "seed": 2},
}
COUNTED = {"sums": "counted", "dq": "own", "block_m": 64}
BACKWARD: tuple[Row, ...] = (
    ("bwd-bf16-d64-dense", {}),
    ("bwd-fp16-d64-causal", {"block_m": 80, "dq": "delayed", "stages_ds": 3}),
    ("bwd-bf16-d64-window20x5", {"dq": "own", "block_m": 64, "p_fp32": False}),
    ("bwd-bf16-d64-causal+deterministic", {}),
    ("bwd-bf16-d64-dense+deterministic", {"dq": "own", "block_m": 64, "stages_dq": 1}),
    ("bwd-bf16-d128-causal", {}),
    ("bwd-fp16-d128-dense", {"p_fp32": False}),
    ("bwd-bf16-d80-window128", {}),
    ("bwd-fp16-d40-causal-topleft", {"stages_q": 3, "stages_do": 1}),
    ("bwd-bf16-d256-causal", {}),
    ("bwd-fp16-d192x128-window3+deterministic", {}),
    ("bwd-bf16-d24x72-dense", {"roles": "split", "dq": "own", "block_m": 128,
                               "dq_columns": 128, "overlap": False}),
    # Key blocks count who came, the first stores, the last converts.
    ("bwd-bf16-d64-dense", {**COUNTED, "block_m": 128, "p_fp32": False, "dq_columns": 128}),
    ("bwd-fp16-d64-causal", COUNTED),
    ("bwd-bf16-d128-causal", {**COUNTED, "stages_ds": 1, "stages_dq": 1, "p_fp32": False}),
    ("bwd-bf16-d128-dense", {**COUNTED, "stages_ds": 1, "p_fp32": False}),
    ("bwd-fp16-d256-causal", {"sums": "counted"}),
    ("bwd-bf16-d80-window128", COUNTED),
    ("bwd-fp16-d40-causal-topleft", {**COUNTED, "block_m": 128}),
    ("bwd-bf16-d64-causal+deterministic", COUNTED),
    ("bwd-bf16-d64-dense+deterministic", {**COUNTED, "block_m": 128, "p_fp32": False}),
    ("bwd-bf16-d64-prefix100", COUNTED),
    # One run of tiles, but no band; then patterns whose tiles are looked for.
    ("bwd-bf16-d64-blockdiag100-causal", {"dq": "delayed", "stages_ds": 3}),
    ("bwd-fp16-d72-prefix100", {}),
    ("bwd-bf16-d64-longformer-w64-g20", {}),
    ("bwd-fp16-d128-dilated-w20-d3-causal", {"dq": "delayed", "stages_ds": 3, "stages_q": 3}),
    ("bwd-bf16-d64-butterfly-b48-causal", {"dq": "own", "block_m": 64}),
    ("bwd-bf16-d128-fixed-s64-c8", {"dq": "lockstep", "block_m": 64, "stages_ds": 2}),
    ("bwd-bf16-d64-bigbird-w20-g16-r64-b32-seed3+deterministic", {}),
    ("bwd-bf16-d64-dilated-w1-d200-causal+deterministic",
     {"dq": "own", "block_m": 64, "stages_dq": 1, "stages_ds": 1}),
    ("bwd-fp16-d256-strided-s40-causal", {}),
    # Masks that are data of the call.
    ("bwd-bf16-d64-blocks32x48-causal", {"dq": "delayed", "stages_ds": 3}),
    ("bwd-bf16-d128-blocks128+deterministic", {}),
    ("bwd-fp16-d64-documents", {"dq": "own", "block_m": 64}),
    ("bwd-bf16-d64-documents-causal+deterministic", {}),
    # Heads of one group that follow different patterns.
    ("bwd-bf16-d64-mix_window20x5_2_butterfly-b48_causal", {}),
    ("bwd-fp16-d40-mix_causal_strided-s40-causal+deterministic", {"dq": "own", "block_m": 64}),
)


@pytest.mark.parametrize("row", BACKWARD, ids=name)
def test_backward(emulator: Emulator, checker: Checker, row: Row) -> None:
    check(emulator, checker, row, BACKWARD_CASES)


PACKED_CASES = {
    case("b5-h4x2-s193x257-t400x500", layout="bshd", dlse=True): {"late": 1},
    case("b9-h2-s300x77-t307x80", layout="padded"): {"late": 0, "seed": 1, "sms": 3},
    case("b3-h2x1-s1x129-t2x200", scale=0.3): {"late": 0, "sms": 1},
    case("b3-h2x1-s161x290-t300x600", "falling"): {"late": 1, "seed": 2},
}
PACKED: tuple[Row, ...] = (
    ("bwd-bf16-d64-causal+varlen", {}),
    ("bwd-fp16-d128-window20x5+varlen", {}),
    ("bwd-bf16-d64-longformer-w64-g20+deterministic+varlen", {"dq": "own", "block_m": 64}),
    ("bwd-bf16-d256-dense+varlen", {}),
    ("bwd-fp16-d64-window20x5+varlen", COUNTED),
)


@pytest.mark.parametrize("row", PACKED, ids=name)
def test_packed_backward(emulator: Emulator, checker: Checker, row: Row) -> None:
    check(emulator, checker, row, PACKED_CASES)


@pytest.mark.parametrize("row", PACKED, ids=name)
def test_a_sequence_does_not_see_the_next(
    emulator: Emulator, checker: Checker, row: Row
) -> None:
    """Nothing comes of what is not a number in the rows behind a sequence's end."""
    candidate, one = candidate_of(row), case("b3-h2x1-s161x290-t300x600")
    problem = candidate.problem
    inputs = dict(checker.prepared(problem, one).inputs)
    starts = dict(zip(("q", "kv"), Pieces.of(problem, one.workload).starts, strict=True))

    def results() -> list[Any]:
        library = emulator.library(candidate, late=1)
        call = Call.bind(library, problem, one, inputs, "cpu", 1)
        call.poison()
        call()
        outside = {"dq": starts["q"], "dk": starts["kv"], "dv": starts["kv"]}
        return [part for name, (_, first, end, last) in outside.items()
                for part in (call.outputs[name].values[:, :, :first],
                             call.outputs[name].values[:, :, end:last])]

    clean = [part.clone() for part in results()]
    inputs |= copied(problem, one, {name: inputs[name] for name in ("q", "k", "v", "dout")})
    for tensor in ("q", "k", "v", "dout"):
        _, first, end, _ = starts["kv" if tensor in "kv" else "q"]
        inputs[tensor].values[:, :, first:end] = float("nan")
    for before, after in zip(clean, results(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("slug", ["bwd-fp16-d64-causal", "bwd-bf16-d64-causal+deterministic"])
def test_sections_of_two_heads(emulator: Emulator, checker: Checker, slug: str) -> None:
    """Five key/value heads are three sections, the last one narrow."""
    row: Row = slug, {"order": "by_section"}
    small: Edit = "Order::by_section ? 20e6f", "Order::by_section ? 400e3f"
    cases = {case("b1-h5-s300x257"): {"late": 1, "sms": 3}, case("b3-h4x2-s193x257"): {"late": 0}}
    check(emulator, checker, row, cases, small)


def test_more_query_tiles_than_a_warp_asks_for_at_once(
    emulator: Emulator, checker: Checker
) -> None:
    row: Row = "bwd-bf16-d64-longformer-w64-g20", {}
    check(emulator, checker, row, {case("b1-h1-s4200x300"): {"sms": 3}})


@pytest.mark.parametrize("row", [row for row in BACKWARD if "deterministic" in row[0]], ids=name)
def test_deterministic_whatever_the_order(
    emulator: Emulator, checker: Checker, row: Row
) -> None:
    candidate = candidate_of(row)
    prepared = checker.prepared(candidate.problem, case("b1-h2x1-s193x257"))
    seen = set()
    for seed in range(4):
        library = emulator.library(candidate, seed=seed, late=seed % 2, sms=1 + seed)
        call = Call.bind(library, candidate.problem, prepared.case, prepared.inputs, "cpu", 1)
        call.poison()
        call()
        seen.add(b"".join(o.bits.numpy().tobytes() for o in call.outputs.values()))
    assert len(seen) == 1


# --- what is wrong is noticed --------------------------------------------------------------------

COUNTED_DENSE: Row = ("bwd-bf16-d64-dense", COUNTED)
BLIND: tuple[tuple[str, Row, Edit], ...] = (
    ("a stage is read before it is full", ("fwd-bf16-d64-dense", {}),
     ("barrier_wait(shared.v_full(v.stage), v.parity);", ";")),
    ("a stage is released while a product reads it", ("fwd-bf16-d64-dense", {}),
     ("    wgmma_wait<1>();\n    pin(s);\n    release_k();",
      "    release_k();\n    wgmma_wait<1>();\n    pin(s);")),
    ("an accumulator is read before its wait", ("fwd-bf16-d64-dense", {}),
     ("    wgmma_wait<0>();\n    pin(o);\n    pin(probabilities);\n    release_v();\n"
      "    pack_probabilities(s);\n    rescale();",
      "    pack_probabilities(s);\n    rescale();\n    wgmma_wait<0>();\n    release_v();")),
    ("no wgmma.fence", ("fwd-bf16-d64-dense", {}), ("    wgmma_fence();\n", "")),
    ("the wrong distance between groups of rows", ("fwd-bf16-d64-dense", {}),
     ("(8 * SWIZZLE) >> 4", "(16 * SWIZZLE) >> 4")),
    ("the wrong distance between panels", ("fwd-bf16-d128-causal", {}),
     ("(panel_bytes >> 4) << 16", "(panel_bytes >> 5) << 16")),
    ("the wrong swizzle of what is staged", ("fwd-bf16-d64-dense", {}),
     ("SWIZZLE == 128 ? row & 7 :", "SWIZZLE == 128 ? row >> 1 & 3 :")),
    ("fewer bytes expected than come", ("fwd-bf16-d64-dense", {}),
     ("barrier_expect(full, T::bytes);", "barrier_expect(full, T::bytes - 16);")),
    ("the staging buffer is written while a store reads it", ("fwd-bf16-d64-dense", {}),
     ("if (leader()) bulk_wait_read<0>();", "")),
    ("no proxy fence before a store", ("fwd-bf16-d64-dense", {}),
     ("    fence_async_shared();\n", "")),
    ("a warp misses a phase",
     ("fwd-bf16-d8-window20x5", {"warpgroups": 4, "block_n": 80, "stages": 3, "ping_pong": False}),
     ("void meet() const { named_sync(5 + group, 128); }", "void meet() const {}")),
    ("a turn that is not passed on", ("fwd-bf16-d128-causal", {}),
     ("named_arrive(1 + (group + 1) % WARPGROUPS, 256);", ";")),
    ("more registers than there are", ("fwd-bf16-d64-dense", {}),
     ("claim_registers_to<CONSUMER_REGISTERS>", "claim_registers_to<152>")),
    ("overflow goes unreported", ("fwd-fp16-d64-causal", {"softmax": "anchored"}),
     ("atomicOr(&shared.control().overflowed[(received - 1) % NOTES], 1 << group);", ";")),
    ("keys behind the half block", ("fwd-bf16-d64-window20x5",
                                    {"warpgroups": 2, "block_n": 128, "stages": 2,
                                     "half_blocks": True}),
     ("(end - 1) % BLOCK_N < HALF_BLOCK", "(end - 1) % BLOCK_N < HALF_BLOCK + 16")),
    ("the half block's P V sums over all of it", ("fwd-fp16-d128-causal-topleft", {}),
     ("accumulate = halved ? HALF : 0;", "accumulate = 0;")),
    ("the next P V sums over half", ("fwd-fp16-d128-causal-topleft", {}),
     ("    accumulate = 1;\n", "    accumulate |= 1;\n")),
    ("the rest of a tile is not loaded", ("fwd-bf16-d64-dense", {"seam": "early"}),
     ("        load_pairs(held, held.end - 1);\n", "")),
    ("operands in the wrong order", ("fwd-bf16-d64-dense", {}),
     ('"cvt.rn.bf16x2.f32 %0, %1, %2;"', '"cvt.rn.bf16x2.f32 %0, %2, %1;"')),
    ("tiles are counted from what was there before", ("fwd-bf16-d128-causal", {}),
     ("  wait_for_previous_kernel();  // the counter is its work, see zero_fwd_sm90.h\n"
      "  return gridDim.x + atomicAdd(counter, 1u);",
      "  const unsigned next = gridDim.x + atomicAdd(counter, 1u);\n"
      "  wait_for_previous_kernel();\n  return next;")),
    ("the kernel before has not ended", ("bwd-bf16-d64-dense", {}),
     ("  wait_for_previous_kernel();  // lse and delta are its work\n", "")),
    ("a result converted before it is summed", ("bwd-bf16-d64-dense", {}),
     ("  wait_for_previous_kernel();\n  convert(p,", "  convert(p,")),
    ("no proxy fence before a product", ("bwd-bf16-d128-causal", {}),
     ("    store_gradients(ds(c), w, ds16);\n    fence_async_shared();\n",
      "    store_gradients(ds(c), w, ds16);\n")),
    ("dS is overwritten while dQ reads it", ("bwd-bf16-d64-window20x5",
                                             {"dq": "own", "block_m": 64, "p_fp32": False}),
     ("    wait_empty<STAGES_DS>(shared + DS_EMPTY, c);\n", "")),
    ("the output takes the place of an operand in use", ("bwd-bf16-d256-causal", {}),
     ("if (steps > 0) wait_full<STAGES_DS>(shared + DS_EMPTY, steps - 1);", "")),
    ("dQ leaves before it is staged", ("bwd-bf16-d64-dense", {}),
     ("    named_sync(DQ_STAGED + w, 160);\n", "    named_arrive(DQ_STAGED + w, 160);\n")),
    ("nobody says that no step follows", ("bwd-bf16-d64-longformer-w64-g20", {}),
     ("    barrier_arrive(shared + Q_FULL + 8 * (c % STAGES_Q));\n", "")),
    ("a note is written over one that is to be read",
     ("bwd-bf16-d64-butterfly-b48-causal", {"dq": "own", "block_m": 64}),
     ("c % NOTES * 8", "c % STAGES_Q * 8")),
    ("the turn goes to a key block that does not see the tile",
     ("bwd-bf16-d64-dilated-w1-d200-causal+deterministic",
      {"dq": "own", "block_m": 64, "stages_dq": 1, "stages_ds": 1}),
     ("next_key_block(pattern, m, n + 1) - n", "1")),
    ("a count before what was stored has landed", COUNTED_DENSE,
     ("          bulk_wait<0>();\n          complete |=", "          complete |=")),
    ("a count before the pieces of the step before have landed", COUNTED_DENSE,
     ("        bulk_wait<PIECES>();\n", "")),
    ("adding to what is not stored yet", COUNTED_DENSE, ("work.share.await();", ";")),
    ("two key blocks store", COUNTED_DENSE, ("found == 0; }", "found <= 1; }")),
    ("dQ complete too early", COUNTED_DENSE,
     ("return before == blocks;", "return before == 1;")),
    ("a lane releases what others still read",
     ("bwd-bf16-d256-dense", {"stages_q": 2, "stages_do": 1}),
     ("    fence_async_shared();\n    __syncwarp();\n", "    fence_async_shared();\n")),
    ("one lane shuffles", ("bwd-bf16-d64-dense", {}),
     ("  int c = 0;\n  find_steps<", "  int c = uniform(0);\n  find_steps<")),
)


@pytest.mark.parametrize(("row", "edit"), [row[1:] for row in BLIND], ids=[row[0] for row in BLIND])
def test_a_broken_kernel_is_noticed(
    emulator: Emulator, checker: Checker, row: Row, edit: Edit
) -> None:
    cases = [case("b1-h2x1-s193x257", inputs) for inputs in ("normal", "huge_first")]
    modes = [{"late": n % 2, "seed": n // 2, "sms": 1 + n // 8} for n in range(24)]

    def under_every_mode() -> None:
        for mode in modes:
            check(emulator, checker, row, dict.fromkeys(cases, mode), edit)

    with pytest.raises((WrongResult, RunError)):
        under_every_mode()


RULES: tuple[tuple[str, Row, Edit], ...] = (
    ("a block of bwd_main ends before what it loads has arrived",
     ("bwd-bf16-d64-causal-topleft", {}),
     ("wait_full<STAGES_KV>(shared + V_FULL, consumer.b);", ";")),
    ("a block of fwd never waits for the launch before", ("fwd-bf16-d128-causal", {}),
     ("  wait_for_previous_kernel();  // the counter is its work, see zero_fwd_sm90.h\n", "")),
    ("a block of bwd_post never waits for the launch before", ("bwd-bf16-d64-dense", {}),
     ("  wait_for_previous_kernel();\n  convert(p,", "  convert(p,")),
    ("a barrier that expects 1048576 bytes", ("fwd-bf16-d64-dense", {}),
     ("barrier_expect(full, T::bytes);", "barrier_expect(full, 1 << 20);")),
)


@pytest.mark.parametrize(("says", "row", "edit"), RULES, ids=[row[0] for row in RULES])
def test_a_broken_rule_is_named(
    emulator: Emulator, checker: Checker, says: str, row: Row, edit: Edit
) -> None:
    with pytest.raises(RunError, match=says):
        check(emulator, checker, row, {case("b1-h1-s64x300"): {"late": 1}}, edit)


def test_turns_are_what_makes_it_deterministic(emulator: Emulator, checker: Checker) -> None:
    """Without them the order shows, so the machine does vary it."""
    candidate = candidate_of(("bwd-bf16-d64-causal+deterministic", {}))
    edit = "  while (now != mine);", "  while (false);"
    prepared = checker.prepared(candidate.problem, case("b1-h2x1-s193x257"))
    seen = set()
    for seed in range(6):
        library = emulator.library(candidate, edit, seed=seed, late=seed % 2, sms=4)
        call = Call.bind(library, candidate.problem, prepared.case, prepared.inputs, "cpu", 1)
        call.poison()
        call()
        seen.add(call.workspace.bits.numpy().tobytes())  # sums of dQ in fp32
    assert len(seen) > 1


def test_a_deadlock_says_who_waits_for_what(emulator: Emulator, checker: Checker) -> None:
    edit = "barrier_expect(full, T::bytes);", "barrier_expect(full, T::bytes + 16);"
    with pytest.raises(RunError) as error:
        check(emulator, checker, ("fwd-bf16-d64-dense", {}), {case("b1-h1-s64"): {}}, edit)
    assert "deadlock" in error.value.message
    assert "fwd, block (0, 0, 0), warp 4, lane 0 waits for k_full[0]" in error.value.message
    assert "0 of 1 arrivals and 16 bytes are to come" in error.value.message


# --- more of the same, for longer ----------------------------------------------------------------

DIMS = ("64", "128", "80", "256", "40", "192x128", "96", "16", "112", "160", "8", "64x128",
        "128x64", "24x72", "72x40")
BANDS = ("dense", "causal", "causal-topleft", "window128", "window20x5", "window3", "window200x40")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("op", ["fwd", "bwd"])
def test_defaults_pass_the_conformance_cases(
    emulator: Emulator, checker: Checker, op: str, dims: str
) -> None:
    for pattern in ("dense", "causal", "window128"):
        row: Row = (f"{op}-bf16-d{dims}-{pattern}", {})
        cases = enumerate(long_list(Problem.parse(row[0])))
        check(emulator, checker, row, {c: {"late": n % 2, "seed": n % 3} for n, c in cases})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("draw", range(8))
@pytest.mark.parametrize("op", ["fwd", "bwd"])
def test_candidates_at_random(emulator: Emulator, checker: Checker, op: str, draw: int) -> None:
    dice = random.Random(f"{op} {draw}")
    cases = FORWARD_CASES if op == "fwd" else BACKWARD_CASES
    for _ in range(10):
        parts = op, dice.choice(("bf16", "fp16")), f"d{dice.choice(DIMS)}", dice.choice(BANDS)
        slug = "-".join(parts) + ("+deterministic" if op == "bwd" and dice.random() < 0.3 else "")
        legal = list(Space(Problem.parse(slug), H200, SM90).legal())
        knobs = asdict(dice.choice(legal).config)
        modes = {c: {"late": dice.randrange(2), "seed": dice.randrange(1000), "sms": 1 + draw % 4}
                 for c in cases}
        check(emulator, checker, (slug, knobs), modes)


# --- the translation -----------------------------------------------------------------------------


@pytest.mark.parametrize(("cuda", "cpp"), [
    ('asm("shr.u32 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(n));',
     "{const auto &in1 = x; const auto &in2 = n;  ptx::shr_u32((r), in1, in2);}"),
    ('asm volatile("" : "+f"(d[i])::"memory");', "{}"),
    ('asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(f(a, b)) : "memory");',
     "{const auto &in0 = id; const auto &in1 = f(a, b);  ptx::bar_sync(in0, in1);}"),
    ('asm("@p bra DONE;");', "{if (p) goto DONE;}"),
    ('asm("{.reg .b64 d; mov.b64 d, {%1, %2};}" : "=r"(r) : "r"(a), "r"(b));',
     "{const auto &in1 = a; const auto &in2 = b; { uint64_t d{}; "
     "decltype(&(in1)) vector0[] = {&(in1), &(in2)}; ptx::mov_b64(d, vector0); }}"),
])
def test_instructions_become_calls(cuda: str, cpp: str) -> None:
    assert translate(cuda) == cpp
