"""Sparse patterns through the emulated sm90 forward: blocks are listed, skipped, masked."""

from __future__ import annotations

import ctypes
import random
from dataclasses import asdict

import pytest

pytest.importorskip("torch")

from fagen.call import Call
from fagen.errors import RunError, WrongResult
from fagen.families.base import Space
from fagen.families.sm90 import SM90
from fagen.model import Problem
from fagen.verify import Checker
from tests.emulated import test_sm90_emulated as machine
from tests.emulated.emulator.sm90 import Edit, Emulator
from tests.emulated.test_sm90_emulated import H200, Row, candidate_of, case, check, name

pytestmark = machine.pytestmark
emulator, checker = machine.emulator, machine.checker

CASES = {
    case("b2-h4x2-s193x257", layout="bshd"): {"late": 1},
    case("b1-h2-s300x77", layout="padded"): {"late": 0, "seed": 1, "sms": 3},
    case("b1-h2x1-s320x448", "huge_last"): {"late": 1, "seed": 2},
    case("b1-h2x1-s390x433", "rising"): {"late": 0, "seed": 3, "sms": 1},
}
FORWARD: tuple[Row, ...] = (
    ("fwd-bf16-d64-prefix40", {}),
    ("fwd-fp16-d128-blockdiag48-causal", {"softmax": "anchored"}),
    ("fwd-bf16-d64-longformer-w20-g8", {}),
    ("fwd-fp16-d128-longformer-w150-g130", {"softmax": "anchored", "block_n": 64}),
    ("fwd-bf16-d40x24-bigbird-w9-g5-r32-b16-seed3", {"warpgroups": 3, "block_n": 64, "stages": 4}),
    ("fwd-fp16-d64-bigbird-w9-g5-r128-b128-seed3-causal", {"softmax": "exact", "block_n": 96}),
    ("fwd-bf16-d64-butterfly-b64", {"softmax": "anchored", "schedule": "grid", "q_buffers": 1,
                                    "warpgroups": 1, "ping_pong": False, "ctas_per_sm": 2}),
    ("fwd-bf16-d256-butterfly-b128-causal", {}),
    ("fwd-bf16-d256-blocks32", {"seam": "apart"}),
    ("fwd-bf16-d64-strided-s24-causal", {"warpgroups": 3, "block_n": 80, "stages": 3,
                                         "schedule": "snake"}),
    ("fwd-fp16-d72-dilated-w5-d40", {"warpgroups": 3, "block_n": 64, "ping_pong": False}),
    ("fwd-bf16-d192x128-fixed-s128-c8-causal", {"softmax": "anchored"}),
    ("fwd-bf16-d64-blocks32", {}),
    ("fwd-fp16-d40-blocks64x16-causal", {"softmax": "anchored", "schedule": "snake"}),
    ("fwd-bf16-d128-documents", {"softmax": "anchored"}),
    ("fwd-bf16-d64-mix_window20x5_longformer-w20-g8_causal", {"block_n": 64}),
)


@pytest.mark.parametrize("row", FORWARD, ids=name)
def test_forward(emulator: Emulator, checker: Checker, row: Row) -> None:
    check(emulator, checker, row, CASES)


WIDE: Row = ("fwd-bf16-d16-longformer-w9-g5",
             {"warpgroups": 4, "block_n": 64, "stages": 2, "softmax": "anchored"})
BLIND: tuple[tuple[str, Row, Edit], ...] = (
    ("a note on a block replaces one that is still read", WIDE,
     ("    barrier_wait(shared.k_empty(k.stage), k.parity ^ 1);\n"
      "    shared.control().visit[k.stage] = visit;\n",
      "    shared.control().visit[k.stage] = visit;\n")),
    ("a long skip holds on to a V", WIDE, ("    if (pending && skipped == STAGES) flush();\n", "")),
    ("a block is not masked", WIDE, ("masked = kind == PARTIAL", "masked = false")),
    ("a tile ends with a skip", WIDE,
     ("      } else if (!pending) {\n        output.write(o, softmax, tile, received - 1);\n", "")),
    ("overflow goes unreported",
     ("fwd-fp16-d64-butterfly-b64", {"softmax": "anchored", "warpgroups": 2, "block_n": 64}),
     ("atomicOr(&shared.control().overflowed[(received - 1) % NOTES], 1 << group);", ";")),
    # The first of an order again and again: other tiles are never computed.
    ("the order of a mask's tiles is used", ("fwd-bf16-d16-blocks32", {"block_n": 64, "stages": 2}),
     ("  return order[", "  return 0 & order[")),
    ("the order of documents' tiles is used",
     ("fwd-bf16-d16-documents", {"block_n": 64, "stages": 2, "half_blocks": False}),
     ("  return order[", "  return 0 & order[")),
    ("the order of a mask's key blocks is used", ("bwd-bf16-d16-blocks32", {}),
     ("  return order[", "  return 0 & order[")),
)


@pytest.mark.parametrize(("row", "edit"), [row[1:] for row in BLIND], ids=[row[0] for row in BLIND])
def test_a_broken_kernel_is_noticed(
    emulator: Emulator, checker: Checker, row: Row, edit: Edit
) -> None:
    modes = [{"late": n % 2, "seed": n // 2, "sms": 1} for n in range(16)]
    cases = [case("b1-h2x1-s320x448", "huge_last"), case("b1-h2x1-s700x900")]

    def under_every_mode() -> None:
        for mode in modes:
            check(emulator, checker, row, dict.fromkeys(cases, mode), edit)

    with pytest.raises((WrongResult, RunError)):
        under_every_mode()


# Counts the blocks whose V is loaded, in a variable beside the kernel.
WALK = "template <class P>\nstruct Producer : Loads {"
COUNTED: Edit = (WALK, 'extern "C" int visited = 0;\n'
                       f"#define fill_v(...) visited++, fill_v(__VA_ARGS__)\n{WALK}")


@pytest.mark.parametrize("pattern", ["butterfly-b16", "bigbird-w9-g5-r32-b16-seed3-causal",
                                     "dilated-w2-d70", "longformer-w20-g8"])
def test_no_block_is_loaded_in_vain(emulator: Emulator, checker: Checker, pattern: str) -> None:
    """Counted, not inferred: a dropped block would only cost time, and no result would tell."""
    candidate = candidate_of((f"fwd-bf16-d64-{pattern}", {"warpgroups": 2, "block_n": 64}))
    prepared = checker.prepared(candidate.problem, case("b1-h2x1-s390x433"))
    library = emulator.library(candidate, COUNTED)
    Call.bind(library, candidate.problem, prepared.case, prepared.inputs, "cpu", 1)()
    kept = candidate.problem.pattern.tiles(390, 433, 128, 64)
    count = kept.kinds.size - kept.count(kept.SKIPPED)
    assert ctypes.c_int.in_dll(library.kernels, "visited").value == 2 * count


PATTERNS = ("longformer-w60-g70", "longformer-w20-g8-causal", "bigbird-w9-g5-r128-b64-seed3",
            "bigbird-w96-g64-r128-b32-seed1-causal", "butterfly-b128", "butterfly-b16-causal",
            "strided-s24", "strided-s100-causal", "dilated-w5-d40", "dilated-w2-d70-causal",
            "fixed-s32-c4", "fixed-s64-c64-causal", "prefix300", "blockdiag100",
            "blockdiag64-causal", "blocks128", "blocks16x48-causal", "documents")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_candidates_at_random(emulator: Emulator, checker: Checker, pattern: str) -> None:
    dice = random.Random(pattern)
    for _ in range(4):
        slug = f"fwd-{dice.choice(('bf16', 'fp16'))}-d{dice.choice(machine.DIMS)}-{pattern}"
        legal = list(Space(Problem.parse(slug), H200, SM90).legal())
        knobs = asdict(dice.choice(legal).config)
        modes = {c: {"late": dice.randrange(2), "seed": dice.randrange(1000), "sms": 1 + n}
                 for n, c in enumerate((*CASES, case("b1-h2x1-s390x433", "rising")))}
        check(emulator, checker, (slug, knobs), modes)
