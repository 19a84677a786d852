"""Packed sequences through the emulated sm90 forward."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from fagen.call import Call  # noqa: E402
from fagen.cases import short_list  # noqa: E402
from fagen.errors import RunError, WrongResult  # noqa: E402
from fagen.model import Problem  # noqa: E402
from fagen.verify import Checker  # noqa: E402
from tests.emulated import test_sm90_emulated as machine  # noqa: E402
from tests.emulated.emulator.sm90 import Edit, Emulator  # noqa: E402
from tests.emulated.test_sm90_emulated import Row, candidate_of, case, check, name  # noqa: E402

pytestmark = machine.pytestmark
emulator, checker = machine.emulator, machine.checker

FORWARD: tuple[Row, ...] = (
    ("fwd-bf16-d64-dense+varlen", {}),
    ("fwd-bf16-d128-causal+varlen", {"softmax": "anchored"}),
    ("fwd-fp16-d80-window20x5+varlen", {"softmax": "exact", "block_n": 96, "schedule": "snake"}),
    ("fwd-bf16-d256-causal-topleft+varlen", {}),
    ("fwd-fp16-d192x128-dense+varlen", {"schedule": "grid", "q_buffers": 1, "epilogue": "staged"}),
    ("fwd-bf16-d24x72-prefix40+varlen", {"warpgroups": 3, "block_n": 64, "stages": 4}),
    ("fwd-bf16-d64-longformer-w20-g8+varlen", {"softmax": "anchored", "ping_pong": False,
                                               "schedule": "snake"}),
)


@pytest.mark.parametrize("row", FORWARD, ids=name)
def test_forward(emulator: Emulator, checker: Checker, row: Row) -> None:
    cases = short_list(Problem.parse(row[0]))[1:]
    check(emulator, checker, row,
          {c: {"late": n % 2, "seed": n, "sms": 1 + n % 3} for n, c in enumerate(cases)})


CAUSAL: Row = ("fwd-bf16-d128-causal+varlen", {})
UNCUT: Edit = ("      clear_below(kept);\n", "")


def first_sequence(emulator: Emulator, checker: Checker, dirty: bool,
                   edit: Edit | None = None) -> bytes:
    """Bits of its output, where the second sequence begins with an infinity or does not."""
    candidate = candidate_of(CAUSAL)
    prepared = checker.prepared(candidate.problem, case("b2-h1-s100-t150"))
    length = prepared.case.workload.lengths()[0][0]
    v = prepared.inputs["v"].values.view(150, 128)
    before = v[length].clone()
    v[length] = torch.inf if dirty else 0
    call = Call.bind(emulator.library(candidate, edit), candidate.problem, prepared.case,
                     prepared.inputs, "cpu", 1)
    call.poison()
    call()
    v[length] = before
    return bytes(call.outputs["o"].bits.view(150, -1)[:length].numpy().tobytes())


def test_a_neighbour_is_not_seen(emulator: Emulator, checker: Checker) -> None:
    clean = first_sequence(emulator, checker, False)
    assert first_sequence(emulator, checker, True) == clean
    assert first_sequence(emulator, checker, True, UNCUT) != clean


BLIND: tuple[tuple[str, Edit], ...] = (
    ("a box writes over the next sequence", ("VARLEN && first_row(tile) + 64 > rows", "false")),
    ("no proxy fence behind the zeros", ("    fence_async_shared();\n    __syncwarp();\n", "")),
    ("V is handed on before it is cut", ("whole ? full : shared.v_landed()", "full")),
    ("keys of another sequence", ("Sequence(p, keys.batch).first_kv() + block", "block")),
)


@pytest.mark.parametrize("edit", [row[1] for row in BLIND], ids=[row[0] for row in BLIND])
def test_a_broken_kernel_is_noticed(emulator: Emulator, checker: Checker, edit: Edit) -> None:
    packed = case("b5-h4x2-s193x257-t400x500", layout="bshd")

    def under_every_mode() -> None:
        for seed in range(6):
            check(emulator, checker, CAUSAL, {packed: {"late": seed % 2, "seed": seed}}, edit)

    with pytest.raises((WrongResult, RunError)):
        under_every_mode()
