"""The programs that make evidence, on the host's own kernels: soak, repeat, a suite's package."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench import memory, repeat, soak, suite_package
from fagen.families import FAMILIES, families_for
from fagen.model import Entry, Failure, Measurement, Problem
from fagen.pool import Verdict
from fagen.store import Store
from fagen.target import Target
from fagen.workload import Workload
from tests.unit.imported import imported

ROOT = Path(__file__).parents[2]
H200, V3 = Target.known("h200"), Target.known("x86-64-v3")
FASTER = Measurement(1, 1, 1, 1, 0, "")


def run(*words: object, code: int = 0) -> str:
    ran = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True,
                         text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout


# --- soak ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [H200, V3], ids=lambda t: t.name)
def test_what_is_drawn_is_legal_and_different(target: Target) -> None:
    draw = random.Random(0)
    drawn = list(itertools.islice(soak.candidates(draw, target), 60))
    assert not any(c.family.broken_rules(c) for c in drawn)
    assert {c.family for c in drawn} == {f for f in FAMILIES if f.runs_on(target)}
    assert {c.problem.op for c in drawn} == {"fwd", "bwd"}
    assert len({str(c.problem.pattern) for c in drawn}) > 8
    assert len({c.problem.features for c in drawn}) == 4
    defaults = [c == c.family.default(c.problem, target) for c in drawn]
    assert any(defaults)
    assert not all(defaults)
    again = itertools.islice(soak.candidates(random.Random(0), target), 60)
    assert list(again) == drawn


def test_cases_are_of_all_lengths_and_fit_their_problem() -> None:
    draw, packed = random.Random(1), Problem.parse("bwd-bf16-d64-causal+varlen")
    cases = [soak.case(draw, packed, 2048) for _ in range(200)]
    assert all(case.workload.packed for case in cases)
    lengths = [case.workload.seqlen_q for case in cases]
    assert min(lengths) < 5
    assert max(lengths) > 1000
    assert {case.layout for case in cases} == {"bhsd", "bshd", "padded"}
    plain = [soak.case(draw, Problem.parse("fwd-bf16-d64"), 2048) for _ in range(50)]
    assert not any(case.workload.packed or case.dlse for case in plain)
    assert any(case.workload.heads > case.workload.kv_heads for case in plain)


class Pool:
    """Every second kernel is wrong, every third does not compile."""

    def __init__(self) -> None:
        self.asked, self.now = 0, 0.0  # seconds
        self.built: list[Any] = []

    def prepare(self, candidates: Any) -> None:
        self.built += candidates

    def check(self, candidate: Any, cases: Any) -> Any:
        assert candidate in self.built
        self.now += 1.0
        self.asked += 1
        if self.asked % 2 == 0:
            return Failure("verify", "WrongResult", "o is wrong", "fagen verify it")
        if self.asked % 3 == 0:
            return Failure("build", "BuildError", "spills")
        return Verdict(0.5, "o", len(cases))


def test_what_a_soak_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pool: Any = Pool()
    monkeypatch.setattr(soak.time, "monotonic", lambda: pool.now)
    found = soak.soak(pool, random.Random(0), V3, 12.0, 100, 2)
    assert pool.asked == 12
    assert found["failures"][0]["again"] == "fagen verify it"
    assert len(found["failures"]) == pool.asked // 2
    assert found["kernels"] + found["refused by the compiler"] == pool.asked - pool.asked // 2
    assert found["cases"] == soak.CASES * found["kernels"]
    assert found["worst_error_of_bound"] == 0.5


@pytest.mark.slow
def test_a_short_soak_on_the_host(tmp_path: Path) -> None:
    run("bench/soak.py", tmp_path / "soak.json", "--device", "cpu", "--target", V3.name,
        "--minutes", "0.02", "--longest", "90", "--jobs", "1", "--seed", "3")
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["failures"] == []
    assert found["cases"] >= soak.CASES


# --- repeat --------------------------------------------------------------------------------------


def entry(slug: str, target: Target = V3, workload: str = "b1-h2-s64", **knobs: Any) -> Entry:
    problem = Problem.parse(slug)
    default = families_for(problem, target)[0].default(problem, target).with_config(**knobs)
    return Entry(problem, target, Workload.parse(workload), default.family.name,
                 asdict(default.config), FASTER)


def test_which_kernels_must_repeat() -> None:
    entries = [entry("fwd-bf16-d64-causal", H200), entry("bwd-bf16-d64-causal", H200),
               entry("fwd-fp32-d16-dense")]
    entries.append(replace(entries[0], config={"no_such_knob": 1}))
    steady = ["bwd-bf16-d64-causal+deterministic"]
    found = list(repeat.kernels(entries, H200, steady, Workload.parse("b1-h1-s128")))
    assert [(str(k.problem), str(w)) for k, w in found] == [
        ("fwd-bf16-d64-causal", "b1-h2-s64"),
        *[(steady[0], "b1-h1-s128")] * len([f for f in FAMILIES if f.runs_on(H200)])]


def test_repeated_launches_on_the_host(tmp_path: Path) -> None:
    Store([], tmp_path / "tuned").put(entry("fwd-fp32-d16-dense"))
    run("bench/repeat.py", tmp_path / "repeat.json", "--device", "cpu", "--target", V3.name,
        "--tuned", tmp_path / "tuned", "--runs", "5", "--workload", "b1-h2-s64",
        "--steady", "bwd-fp32-d16-dense+deterministic")
    found = json.loads((tmp_path / "repeat.json").read_text())
    assert [(row["problem"], row["same_bits"], row["runs"]) for row in found["rows"]] == [
        ("fwd-fp32-d16-dense", True, 5), ("bwd-fp32-d16-dense+deterministic", True, 5)]


# --- a package for suites ------------------------------------------------------------------------


def test_where_a_cells_config_comes_from(tmp_path: Path) -> None:
    store = Store([], tmp_path)
    bf16 = entry("fwd-bf16-d64-causal", H200)
    default = families_for(bf16.problem, H200)[0].default(bf16.problem, H200)
    w = Workload.parse("b1-h2-s64")
    fp16 = replace(bf16.problem, dtype="fp16")
    assert suite_package.kernel(fp16, w, H200, store)[1] == "default"
    store.put(bf16)
    assert suite_package.kernel(bf16.problem, w, H200, store) == (default, "tuned")
    found, origin = suite_package.kernel(fp16, w, H200, store)
    assert (found.problem, found.config, origin) == (fp16, default.config, "tuned in bf16")


def test_every_cell_once() -> None:
    asked = list(suite_package.wanted(["shares", "sparse", "autograd"]))
    assert len(asked) == len(set(asked))
    assert {(str(p), str(w)) for p, w in asked} >= {
        ("fwd-bf16-d128-blocks32", "b1-h16-s16384"), ("bwd-bf16-d128-blocks128", "b1-h16-s16384"),
        ("bwd-bf16-d64-causal", "b8-h32-s2048")}


def test_a_package_for_the_packed_suite_of_the_host(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "suite_attention"
    said = run("bench/suite_package.py", folder, "cpu-packed", "--target", V3.name)
    assert "2 kernels, {'default': 2}, 0 failed" in said
    with imported(folder) as package:
        assert [k["problem"] for k in package.kernels()] == [
            "bwd-fp32-d64-causal+varlen", "fwd-fp32-d64-causal+varlen"]
        assert package.kernels()[0]["provenance"]["origin"] == "default"


# --- memory --------------------------------------------------------------------------------------


def test_what_grows_with_the_square_is_seen() -> None:
    def rows(power: int) -> list[dict[str, int]]:
        return [{"seqlen": s, "fagen_bytes": s**power, "standard_bytes": s**2}
                for s in (4096, 8192, 16384)]

    assert memory.is_linear(rows(1))
    assert not memory.is_linear(rows(2))
