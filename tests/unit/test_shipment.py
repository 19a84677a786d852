"""Which entries go into a package: by name, by hardware, and never a stale one in silence."""

from __future__ import annotations

import pytest

from fagen.errors import StoreError
from fagen.model import Entry, Measurement, Problem
from fagen.shipment import Known, chosen, told, without_stale
from fagen.target import Target
from fagen.workload import Workload

H200, A100 = Target.known("h200"), Target.known("a100")
DENSE, CAUSAL = (Problem.parse(f"fwd-bf16-d64-{p}") for p in ("dense", "causal"))


def entry(problem: Problem, target: Target = H200, batch: int = 1) -> Entry:
    return Entry(problem, target, Workload(batch, 2, 2, 64, 64), "toy", {},
                 Measurement(1, 1, 1, 1, 0, ""))


def known(*entries: Entry, shipped: bool = False) -> list[Known]:
    return [Known(e, shipped) for e in entries]


def test_what_is_asked_for() -> None:
    have = known(entry(DENSE), entry(CAUSAL), entry(DENSE, A100))
    assert [k.entry for k in chosen(have, [], [], [H200])] == [have[0].entry, have[1].entry]
    assert [k.entry for k in chosen(have, [DENSE], [], [A100])] == [have[2].entry]
    assert [k.entry for k in chosen(have, [], ["a100"], [])] == [have[2].entry]
    with pytest.raises(StoreError, match=r"about fwd-bf16-d64-causal for a100 \(3 entries in all"):
        chosen(have, [CAUSAL], ["a100"], [])
    with pytest.raises(StoreError, match="about any problem for this machine"):
        chosen(have, [], [], [Target.known("x86-64-v3")])


def gone(*stale: Entry):  # type: ignore[no-untyped-def]
    return lambda e: "the source changed" if any(e is s for s in stale) else ""


def test_all_fresh() -> None:
    mine = entry(DENSE)
    assert without_stale(known(mine), gone()) == ((mine,), ())


def test_shipped_and_stale_is_left_out() -> None:
    mine, theirs = entry(DENSE), entry(CAUSAL)
    given = known(mine) + known(theirs, shipped=True)
    assert without_stale(given, gone(theirs)) == ((mine,), (theirs,))
    assert without_stale(given, gone(theirs), [DENSE], ["h200"]) == ((mine,), (theirs,))


def test_ones_own_and_stale_is_refused() -> None:
    mine, theirs = entry(DENSE), entry(CAUSAL)
    given = known(mine) + known(theirs, shipped=True)
    with pytest.raises(StoreError, match="1 of 2 entries are stale; fwd-bf16-d64-dense b1-h2-s64 "
                                         "on h200: the source changed") as caught:
        without_stale(given, gone(mine))
    assert caught.value.hint == ("fagen refresh where only the text changed, else fagen tune "
                                 "fwd-bf16-d64-dense, or --allow-stale")


def test_nothing_left_of_what_was_asked_for_by_name_is_refused() -> None:
    one, other, there = entry(DENSE), entry(DENSE, batch=2), entry(CAUSAL, A100)
    given = known(one, other, there, shipped=True)
    assert without_stale(given, gone(one), [DENSE, CAUSAL]) == ((other, there), (one,))
    with pytest.raises(StoreError, match="2 of 3 entries are stale; fwd-bf16-d64-dense"):
        without_stale(given, gone(one, other), [DENSE, CAUSAL])
    with pytest.raises(StoreError, match="fwd-bf16-d64-causal b1-h2-s64 on a100"):
        without_stale(given, gone(there), (), ["h200", "a100"])
    with pytest.raises(StoreError, match="3 of 3"):
        without_stale(given, gone(one, other, there))


def test_one_line_says_what_is_missing() -> None:
    left = [entry(Problem.parse(f"fwd-bf16-d{d}-dense"), t) for d in (8, 16, 24, 32)
            for t in (H200, A100)]
    assert told(left).startswith("left out: 8 stale entries that were shipped with fagen "
                                 "(fwd-bf16-d16-dense, fwd-bf16-d24-dense, fwd-bf16-d32-dense and "
                                 "1 more on a100, h200); --allow-stale")
