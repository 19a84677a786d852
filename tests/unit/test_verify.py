"""The verifier verified: right results pass, and each way of being wrong is told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch

from fagen import reference
from fagen.call import Call
from fagen.cases import Case, long_list, of_workload, short_list
from fagen.errors import WrongResult
from fagen.inputs import DTYPES, OFFSETS, POISON, Buffer, outputs
from fagen.model import Problem
from fagen.pieces import Pieces
from fagen.solver import difference, tiles
from fagen.verify import SAMPLED_SCORES, Checker, MemoryDamaged, prepare
from fagen.workload import Workload


class Textbook:
    """Stands where a library stands, and computes in fp32 with torch. ``spoil`` goes last."""

    def __init__(self, spoil=lambda outputs: None):
        self.spoil = spoil

    def workspace_bytes(self, params):
        return 64

    def run(self, params, workspace, stream, threads):
        raise AssertionError("the call is replaced")


@dataclass
class TextbookCall:
    """A Call whose kernel is torch."""

    call: Call
    problem: Problem
    case: Case
    spoil: object
    outputs: dict[str, Buffer] = field(init=False)

    def __post_init__(self):
        self.outputs, self.workspace = self.call.outputs, self.call.workspace
        self.poison = self.call.poison

    def __call__(self):
        pieces = Pieces.of(self.problem, self.case.workload)
        tensors = {n: b.values for n, b in {**self.call.inputs, **self.call.outputs}.items()}
        scale = self.case.scale_for(self.problem)
        math_ = reference.plain(DTYPES[self.problem.dtype])
        for group in pieces.all():
            mask = reference.Mask(self.problem.pattern, *pieces.lengths(group), "cpu")
            at = {n: pieces.cut(n, t, group) for n, t in tensors.items() if n not in OFFSETS}
            at = {n: t[0] if n in ("k", "v", "dk", "dv") else t for n, t in at.items()}
            if self.problem.op == "fwd":
                o, lse, _ = reference.forward(
                    at["q"], at["k"], at["v"], mask, scale, math_)
                at["o"].copy_(o)
                at["lse"].copy_(lse)
                continue
            grads = reference.backward(
                at["q"], at["k"], at["v"], at["o"], at["lse"], at["dout"], at.get("dlse"),
                mask, scale, math_)
            for name in ("dq", "dk", "dv"):
                at[name].copy_(getattr(grads, name))
        self.spoil({**tensors, "raw": {n: b.raw for n, b in self.call.outputs.items()}})


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tensors are tiny: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def check(monkeypatch):
    """check(slug, case, spoil): the verdict on a textbook kernel, spoiled."""

    def run(slug, case, spoil=lambda tensors: None):
        problem, checker = Problem.parse(slug), Checker("cpu", 1)
        bind = Call.bind.__func__
        monkeypatch.setattr(
            "fagen.verify.Call.bind",
            lambda *a: TextbookCall(bind(Call, *a), problem, case, spoil),
        )
        try:
            return checker.check(Textbook(), checker.prepared(problem, case))
        finally:
            monkeypatch.undo()

    return run


SLUGS = ["fwd-fp32-d16-causal", "fwd-bf16-d40x24", "bwd-bf16-d16-window5", "bwd-fp16-d24x8-causal"]
PACKED = ["fwd-bf16-d16-causal+varlen", "bwd-fp32-d16x8-window5+varlen"]
CASE = Case(Workload(2, 4, 2, 70, 90), layout="padded", dlse=True)


@pytest.mark.parametrize("slug", [*SLUGS, *PACKED])
def test_a_plain_computation_passes_every_case(check, slug):
    for case in long_list(Problem.parse(slug)):
        assert 0 <= check(slug, case).error <= 1, case


@pytest.mark.parametrize("slug", SLUGS)
def test_a_sampled_case_compares_the_first_the_middle_and_the_last_head(check, slug):
    case = of_workload(Workload(2, 6, 3, 70, 90))
    assert prepare(Problem.parse(slug), case, "cpu").groups == ((0, 0), (0, 2), (1, 2))
    assert 0 < check(slug, case).error <= 1


def test_packed_cases_have_sequences_with_nothing_in_them():
    lengths = [pair for case in short_list(Problem.parse(PACKED[0]))
               for pair in case.workload.lengths()]
    for q, kv in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert any((a > 0, b > 0) == (q, kv) for a, b in lengths), (q, kv)
    assert any(1 in pair for pair in lengths)


@pytest.mark.parametrize("slug", PACKED)
def test_a_sampled_packed_case_compares_the_longest_sequence(check, slug):
    case = of_workload(Workload.parse("b5-h4x2-s90x120-t200x300"))
    prepared = prepare(Problem.parse(slug), case, "cpu")
    sizes = [q * kv for q, kv in case.workload.lengths()]
    assert sizes[prepared.groups[-1][0]] == max(sizes)
    assert len(prepared.groups) == 3
    assert 0 < check(slug, case).error <= 1


@pytest.mark.parametrize("slug", PACKED)
def test_a_wrong_element_of_a_packed_sequence_is_seen(check, slug):
    case = Case(Workload.parse("b3-h4x2-s70x90-t140x200"), layout="bshd")
    name = outputs(Problem.parse(slug))[0]
    with pytest.raises(WrongResult, match=rf"^{name} is wrong on b3.* at \[2, 3, \d+, 5\] it is"):
        check(slug, case, spoiled(name, (0, 3, -1, 5), lambda x: x + 0.1))
    with pytest.raises(MemoryDamaged, match="changed its input cu_kv"):
        check(slug, case, spoiled("cu_kv", 1, lambda x: x + 1))


def test_a_large_sampled_case_compares_fewer_heads(monkeypatch):
    case = of_workload(Workload(2, 6, 3, 70, 90))
    for scores, groups in ((2 * 2 * 6300, ((0, 0), (1, 2))), (1, ((1, 2),))):
        monkeypatch.setitem(SAMPLED_SCORES, "cpu", scores)
        assert prepare(Problem.parse("fwd-fp32-d8"), case, "cpu").groups == groups


def spoiled(name, index, change):
    def spoil(tensors):
        if name in tensors:
            tensors[name][index] = change(tensors[name][index])

    return spoil


@pytest.mark.parametrize(
    ("slug", "name"), [(slug, name) for slug in SLUGS for name in outputs(Problem.parse(slug))]
)
def test_one_wrong_element_anywhere_is_seen(check, slug, name):
    last = (1, -1, -1) if name == "lse" else (1, -1, -1, -1)
    with pytest.raises(WrongResult, match=f"^{name} is wrong on b2-h4x2-s70x90 padded dlse: at "):
        check(slug, CASE, spoiled(name, last, lambda x: x + 0.1))
    with pytest.raises(WrongResult, match=f"1 of .* elements of {name} .* are NaN"):
        check(slug, CASE, spoiled(name, last, lambda x: x * math.nan))


def test_small_late_rows_are_not_hidden_by_large_early_ones(check):
    """Zeroing the last 64 rows of a long causal sequence is within 2 x the global error."""
    case = Case(Workload(1, 1, 1, 4096, 4096))

    def spoil(tensors):
        tensors["o"][:, :, -64:] = 0

    with pytest.raises(WrongResult, match="o is wrong"):
        check("fwd-bf16-d16-causal", case, spoil)


def test_the_log_sum_exp_is_held_to_fp32_whatever_the_tensors_are(check):
    with pytest.raises(WrongResult, match="lse is wrong"):
        check("fwd-bf16-d16-causal", CASE, spoiled("lse", (1, 2, 60), lambda x: x + 1e-3))


def test_a_masked_row_that_is_not_zero_is_seen(check):
    case = Case(Workload(1, 1, 1, 80, 16))
    assert check("fwd-bf16-d16-causal", case).error <= 1
    with pytest.raises(WrongResult, match=r"o is wrong .* at \[0, 0, 0, 0\] it is 0.0009"):
        check("fwd-bf16-d16-causal", case, spoiled("o", (0, 0, 0, 0), lambda x: x + 1e-3))
    with pytest.raises(WrongResult, match=r"lse is wrong .* -1e.30 instead of -inf"):
        check("fwd-bf16-d16-causal", case, spoiled("lse", (0, 0, 0), lambda x: -1e30))


@pytest.mark.parametrize(("byte", "words"), [
    (4095, "1 bytes starting 1 bytes before it"),
    (-4096, "1 bytes starting 0 bytes after its end"),
    (4096 + 16 * 2, "1 bytes between its rows, from byte 32 to byte 32"),
])
def test_a_write_outside_is_seen(check, byte, words):
    def spoil(tensors):
        tensors["raw"]["o"][byte] = 7

    with pytest.raises(MemoryDamaged, match=f"outside of o on .*: {words}"):
        check("fwd-bf16-d16", CASE, spoil)


def test_a_changed_input_is_seen(check):
    with pytest.raises(MemoryDamaged, match="changed its input v"):
        check("fwd-bf16-d16", CASE, spoiled("v", (0, 0, 0, 0), lambda x: x + 1))


def test_not_a_number_must_be_where_the_textbook_has_it(check):
    case = Case(Workload(1, 1, 1, 70, 70), "nan_q")
    assert check("fwd-bf16-d16", case).error <= 1
    with pytest.raises(WrongResult):
        check("fwd-bf16-d16", case, spoiled("o", (0, 0, 35, 3), lambda x: 0.0))
    with pytest.raises(WrongResult):
        check("fwd-bf16-d16", case, spoiled("o", (0, 0, 34, 3), lambda x: math.nan))


def test_old_cases_make_room_for_new_ones():
    problem, checker = Problem.parse("fwd-fp32-d16"), Checker("cpu", 1)
    cases = [Case(Workload(1, 1, 1, n, n)) for n in (65, 66, 67)]
    made = [checker.prepared(problem, case) for case in cases]
    assert [checker.prepared(problem, case) for case in cases] == made  # nothing made twice
    assert made[0].bytes > 65 * 16 * 4 * 4
    checker.room = made[2].bytes * 2.5
    checker.prepared(problem, Case(Workload(1, 1, 1, 68, 68)))
    assert checker.prepared(problem, cases[2]) is made[2]
    assert checker.prepared(problem, cases[0]) is not made[0]


def test_difference_and_tiles():
    inf, nan = math.inf, math.nan
    got = torch.tensor([1.0, nan, nan, inf, inf, -inf, 2.0])
    want = torch.tensor([1.5, nan, 0.0, inf, -inf, -inf, inf])
    assert difference(got, want, "o").tolist() == [0.5, 0, inf, 0, inf, 0, inf]
    assert difference(torch.tensor([nan]), torch.tensor([inf]), "lse").tolist() == [0]
    x = torch.arange(2 * 80 * 3.0).view(2, 80, 3)
    assert tiles(x).tolist() == [[191, 239], [431, 479]]
    assert tiles(x[:, :79]).tolist() == [[236], [476]]  # 15 rows are too few for a tile
    assert tiles(x[:, :5]).tolist() == [[14], [254]]
    assert tiles(x[:, :0]).shape == (2, 0)


def test_guards_keep_their_bytes_through_fills_of_every_layout():
    for layout in ("bhsd", "bshd", "padded"):
        made = Buffer.empty((2, 3, 5, 8), torch.bfloat16, "cpu", fill=POISON, layout=layout)
        made.values.fill_(1.5)
        assert made.raw.data_ptr() % 256 == 0
        assert made.values.shape == (2, 3, 5, 8)
        assert made.damage() == ""


@pytest.mark.parametrize("slug", [*SLUGS, *PACKED, "fwd-fp16-d64-window1024"])
def test_cases_survive_json_and_are_distinct(slug):
    cases = long_list(Problem.parse(slug))
    assert [Case.from_json(case.to_json()) for case in cases] == list(cases)
    assert len({str(case) for case in cases}) == len(cases)
    assert set(short_list(Problem.parse(slug))) <= set(cases)
