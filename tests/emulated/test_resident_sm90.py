"""The sm90 backward where a CTA takes key blocks until none is left, on the emulated GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

from fagen.call import Call
from fagen.errors import RunError, WrongResult
from fagen.verify import Checker
from tests.emulated import test_sm90_emulated as machine
from tests.emulated.emulator.sm90 import Edit, Emulator
from tests.emulated.test_sm90_emulated import COUNTED, Row, candidate_of, case, check, name

pytestmark = machine.pytestmark
emulator, checker = machine.emulator, machine.checker

GRID: dict[str, Any] = {"schedule": "dynamic"}
TWO: dict[str, Any] = {**GRID, "stages_kv": 2}
OWN: dict[str, Any] = {"dq": "own", "block_m": 64, "stages_ds": 1, "stages_dq": 1, "p_fp32": False}
ROWS: tuple[Row, ...] = (
    ("bwd-bf16-d64-dense", {**TWO, "stages_do": 1}),
    ("bwd-fp16-d64-causal", {**GRID, "dq": "delayed", "block_m": 80, "stages_ds": 3}),
    ("bwd-bf16-d128-causal", {**TWO, **OWN}),
    ("bwd-fp16-d128-dense", {**GRID, **OWN, "sums": "counted"}),
    ("bwd-bf16-d256-causal", {**GRID, "order": "heavy_first"}),
    ("bwd-fp16-d256-dense", {**GRID, "sums": "counted"}),
    ("bwd-bf16-d24x72-dense", {**TWO, "roles": "split", "dq": "own", "block_m": 128,
                               "dq_columns": 128, "overlap": False}),
    ("bwd-bf16-d64-window20x5", {**TWO, "dq": "own", "block_m": 64, "stages_dq": 1}),
    # Key blocks that no query sees.
    ("bwd-fp16-d40-causal-topleft", {**TWO, **COUNTED}),
    ("bwd-bf16-d64-causal-topleft", {**TWO, "dq": "delayed", "stages_ds": 2, "stages_do": 1}),
    ("bwd-bf16-d64-blockdiag100-causal", {**GRID, **OWN}),
    ("bwd-bf16-d64-causal+deterministic", {**GRID, "block_m": 64, "stages_ds": 2}),
    ("bwd-bf16-d64-dense+deterministic", {**TWO, **COUNTED}),
    ("bwd-fp16-d192x128-window3+deterministic", {**GRID}),
)
# Ten key blocks to each of four heads of queries: on every CTA several, of both kinds of ends.
CASES = {
    **machine.BACKWARD_CASES,
    case("b2-h2x1-s130x1200"): {"late": 1, "seed": 5, "sms": 3},
    case("b1-h2-s64x900"): {"late": 0, "seed": 6, "sms": 4},
}


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_backward(emulator: Emulator, checker: Checker, row: Row) -> None:
    check(emulator, checker, row, CASES)


@pytest.mark.parametrize("row", [row for row in ROWS if "deterministic" in row[0]], ids=name)
def test_deterministic_whatever_the_order(
    emulator: Emulator, checker: Checker, row: Row
) -> None:
    machine.test_deterministic_whatever_the_order(emulator, checker, row)


WAITING: tuple[Row, ...] = (
    ("bwd-bf16-d64-dense+deterministic", {**TWO, **COUNTED}),
    ("bwd-bf16-d64-dense", {**TWO, **COUNTED}),
)


def _while_others_have_not_begun(
    emulator: Emulator, checker: Checker, row: Row, edit: Edit | None = None
) -> None:
    """A grid of four CTAs where there is room for one."""
    candidate = candidate_of(row)
    prepared = checker.prepared(candidate.problem, case("b1-h2-s130x900"))
    library = replace(emulator.library(candidate, edit, sms=4), room=1)
    checker.check(library, prepared)


@pytest.mark.parametrize("row", WAITING, ids=name)
def test_nobody_waits_for_a_cta_that_has_not_begun(
    emulator: Emulator, checker: Checker, row: Row
) -> None:
    _while_others_have_not_begun(emulator, checker, row)


def test_turns_would_wait_for_the_first_block_of_such_a_cta(
    emulator: Emulator, checker: Checker
) -> None:
    own_number: Edit = ("constexpr bool ALL_COUNTED = DETERMINISTIC;",
                        "constexpr bool ALL_COUNTED = false;")
    with pytest.raises(RunError):
        _while_others_have_not_begun(emulator, checker, WAITING[0], own_number)


def test_scratch_memory_of_the_last_call_may_be_anything(
    emulator: Emulator, checker: Checker
) -> None:
    """The count begins at zero in every call, whatever the call before left."""
    candidate = candidate_of(ROWS[2])
    prepared = checker.prepared(candidate.problem, case("b1-h2-s130x900"))
    library = emulator.library(candidate)
    call = Call.bind(library, candidate.problem, prepared.case, prepared.inputs, "cpu", 1)
    results = []
    for _ in range(2):
        call.poison()
        call()
        results.append(b"".join(o.bits.numpy().tobytes() for o in call.outputs.values()))
    assert results[0] == results[1]


RESIDENT: Row = ("bwd-bf16-d128-dense", {**TWO, **OWN})
BLIND: tuple[tuple[str, Row, Edit], ...] = (
    ("K and V are loaded where they are in use", ("bwd-bf16-d128-dense", {**GRID, **OWN}),
     ("      wait_empty<STAGES_KV>(shared + KEYS_EMPTY, b);\n", "")),
    ("a place is empty before its stores have read it", RESIDENT,
     ("      bulk_commit();\n      bulk_wait_read<0>();\n    }\n    release_keys",
      "      bulk_commit();\n    }\n    release_keys")),
    ("dK and dV leave before they are staged", RESIDENT,
     ("    wait_full<STAGES_KV>(shared + OUTPUT_FULL, b);\n", "")),
    ("the place of the next key block is forgotten", RESIDENT,
     ("    work.k = shared + AT_K + b % STAGES_KV * KEYS_BYTES;\n", "")),
    ("a key block is taken twice", RESIDENT,
     ("(ALL_COUNTED ? 0 : gridDim.x) + atomicAdd", "(ALL_COUNTED ? 0 : 1) + atomicAdd")),
    ("the count is not begun anew", RESIDENT, ("*taken(p) = 0;", "*taken(p) = 1;")),
    ("the kernel before has not ended", RESIDENT,
     ("      if (b == 0) wait_for_previous_kernel();  // lse, delta and the count are its work\n",
      "")),
    ("nobody says that no key block follows", RESIDENT,
     ("        barrier_arrive(shared + K_FULL + 8 * (b % STAGES_KV));\n        return;",
      "        return;")),
    ("the last dS of a key block is kept", ROWS[1],
     ("  if (RESIDENT) arrive_by_warp<STAGES_DS>(shared + DS_EMPTY, steps - 1);\n", "")),
    ("a key block's first step sends the dQ of the one before", ROWS[1],
     ("bool fresh = true;", "bool fresh = false;")),
    ("a count of the block before is lost", ("bwd-bf16-d64-dense", {**TWO, **COUNTED}),
     ("      if (before.count) complete = before.add();\n    }\n    named_sync",
      "    }\n    named_sync")),
)


@pytest.mark.parametrize(("row", "edit"), [row[1:] for row in BLIND], ids=[row[0] for row in BLIND])
def test_a_broken_kernel_is_noticed(
    emulator: Emulator, checker: Checker, row: Row, edit: Edit
) -> None:
    one = case("b1-h2x1-s193x600")
    modes = [{"late": n % 2, "seed": n // 2, "sms": 1 + n // 4} for n in range(12)]

    def under_every_mode() -> None:
        for mode in modes:
            check(emulator, checker, row, {one: mode}, edit)

    with pytest.raises((WrongResult, RunError)):
        under_every_mode()
