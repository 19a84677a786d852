"""Other implementations in the final lap: who may take part, what is said of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fagen import peers
from fagen.budget import Budget
from fagen.cases import Case
from fagen.inputs import random_inputs
from fagen.model import Entry, Problem
from fagen.rivals import rivals, standing
from fagen.search import tune
from fagen.store import Store
from fagen.trial import Event
from fagen.workload import Workload
from tests.unit.synthetic import FAMILY, PROBLEM, TARGET, WORKLOAD, FakePool

SQUARE, LONG = Workload(1, 2, 1, 48, 48), Workload(1, 2, 1, 48, 80)


@pytest.mark.parametrize(("slug", "workload", "device", "who"), [
    ("fwd-bf16-d64-causal", SQUARE, "cpu", ("torch",)),
    ("fwd-bf16-d64-causal", SQUARE, "cuda:0", ("torch", "cudnn")),
    ("fwd-fp32-d64-causal", SQUARE, "cuda:0", ("torch",)),
    ("bwd-fp32-d64-causal", LONG, "cpu", ()),
    ("bwd-fp32-d64-causal-topleft", LONG, "cpu", ("torch",)),
    ("fwd-fp32-d64-dense", LONG, "cpu", ("torch",)),
    ("fwd-fp32-d64-window8", SQUARE, "cpu", ()),
    ("bwd-fp32-d64-causal+deterministic", SQUARE, "cpu", ()),
])
def test_who_can_do_the_same(
    slug: str, workload: Workload, device: str, who: tuple[str, ...]
) -> None:
    assert rivals(Problem.parse(slug), workload, device) == who


@pytest.mark.parametrize("slug", [
    "fwd-fp32-d16-causal", "fwd-fp32-d16-dense", "bwd-fp32-d16-causal", "bwd-fp32-d16x8-dense",
])
def test_a_peer_computes_the_same(slug: str) -> None:
    """Else its time would be that of something else."""
    problem, case = Problem.parse(slug), Case(SQUARE)
    given = random_inputs(problem, case, "cpu")
    call = peers.bind("torch", problem, case, given, threads=torch.get_num_threads())
    call()
    found: Any = call.run()
    exact = [given[name].values.double().requires_grad_() for name in "qkv"]
    q, k, v = (exact[0], *(t.repeat_interleave(2, 1) for t in exact[1:]))
    scores = q @ k.mT * problem.head_dim**-0.5
    if str(problem.pattern) == "causal":
        scores = scores.masked_fill(~torch.ones(48, 48).tril().bool(), -torch.inf)
    wanted: Any = scores.softmax(-1) @ v
    if problem.op == "bwd":
        wanted = torch.autograd.grad(wanted, exact, given["dout"].values.double())
    for made, right in zip(*((x if problem.op == "bwd" else (x,)) for x in (found, wanted)),
                           strict=True):
        torch.testing.assert_close(made.double(), right, atol=1e-4, rtol=1e-4)


def test_a_peer_is_beaten_beyond_noise_or_not() -> None:
    ours = [10.0, 10.1, 9.9, 10.0, 10.2, 9.8] * 3
    slow, same = [t * 1.2 for t in ours], list(reversed(ours))
    stormy = [*ours[:-2], 30.0, 30.0]
    found = standing(stormy, {"slow": [*slow[:-2], 36.0, 36.0], "same": [*same[:-2], 30.0, 30.0]})
    assert found["slow"].is_beaten
    assert found["slow"].gap.slower == pytest.approx(0.2)
    assert not found["same"].is_beaten
    assert found["same"].us < 11
    assert standing(ours, {}) == {}


def tuned(folder: Path, pool: FakePool, events: list[Event]) -> Entry:
    return tune(PROBLEM, [WORKLOAD], TARGET, [FAMILY], pool, Store([], folder / "tuned"),
                folder / "journals", Budget(trials=12, heats=1), events.append)


def test_an_entry_says_who_was_not_beaten(tmp_path: Path) -> None:
    pool, events = FakePool(), list[Event]()
    best = tuned(tmp_path / "first", pool, []).measurement.median_us
    pool.rivals = {"torch": 0.99 * best, "cudnn": 1.5 * best}
    search = tuned(tmp_path / "second", pool, events).provenance["search"]
    assert search["beats_peers"] is False
    assert search["peers"]["torch"]["beaten"] is False
    assert search["peers"]["cudnn"]["beaten"] is True
    assert search["peers"]["cudnn"]["slower"] == pytest.approx(0.5, abs=0.05)
    assert events[-1].unbeaten == ("torch",)
    (stored,) = Store([], tmp_path / "second" / "tuned").entries()
    assert stored.provenance["search"]["peers"].keys() == {"torch", "cudnn"}
    assert replace(stored, provenance={}).problem == PROBLEM
