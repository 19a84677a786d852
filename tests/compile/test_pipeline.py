"""The command line from tune to import, as a user runs it: in processes, with an empty home."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FWD, BWD = "fwd-fp32-d16-causal", "bwd-fp32-d16-causal"
SIZES = ("--gpu", "none", "--heads", "2", "--seqlen", "128")
TINY = (*SIZES, "--effort", "quick", "--trials", "3")


class Home:
    """An empty home, a folder to work in, and a place for temporary files."""

    def __init__(self, root: Path) -> None:
        self.home, self.work, self.temporary = (root / n for n in ("home", "work", "tmp"))
        for folder in (self.home, self.work, self.temporary):
            folder.mkdir()
        drop = ("FAGEN", "XDG_", "PYTHON", "COV")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(drop)} | {
            "HOME": str(self.home), "TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, *words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        ran = subprocess.run(
            [sys.executable, "-m", "fagen", *words], cwd=self.work, env=self.env | env, text=True,
            capture_output=True, timeout=600,
        )
        assert ran.returncode == code, ran.stdout + ran.stderr
        assert "Traceback" not in ran.stderr
        return ran

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "fagen", *words], cwd=self.work, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json").stdout)

    def files(self) -> set[str]:
        roots = (self.home, self.work, self.temporary)
        return {str(p.relative_to(self.home.parent)) for r in roots for p in r.rglob("*")
                if p.is_file()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Forward and backward tuned, with as little work as possible."""
    home = Home(tmp_path_factory.mktemp("pipeline"))
    home.tuned = home.json("tune", FWD, BWD, *TINY)  # type: ignore[attr-defined]
    return home


def test_tune_reports_an_entry_per_problem(home: Home) -> None:
    entries = home.tuned["entries"]  # type: ignore[attr-defined]
    assert [entry["problem"] for entry in entries] == [FWD, BWD]
    for entry in entries:
        assert entry["workload"] == "b1-h2-s128"
        assert entry["measurement"]["median_us"] > 0
        assert 0 <= entry["measurement"]["error"] <= 1


def test_only_the_documented_folders_are_written(home: Home) -> None:
    places = ("home/.cache/fagen/", "home/.local/share/fagen/")
    emitted = "work/"  # by tests below, where -o said
    strangers = {f for f in home.files() if not f.startswith((*places, emitted))}
    assert strangers == set()
    assert list(home.temporary.iterdir()) == []


def test_what_was_learned_is_listed_and_fresh(home: Home) -> None:
    listed = home.json("list")["entries"]
    mine = [item for item in listed if item["entry"]["problem"] in (FWD, BWD)]
    assert len(mine) == 2
    assert [item["stale"] for item in mine] == ["", ""]
    assert FWD in home.run("list").stdout
    assert "nothing was learned" in home.run("list", "--target", "nowhere").stdout


def test_explain_says_why(home: Home) -> None:
    facts = home.json("explain", FWD, *SIZES, "--no-ceiling")
    assert facts["memory"]["footprint_bytes"] > 0
    assert facts["memory"]["moved_bytes"] >= facts["memory"]["least_bytes"] / 2
    assert facts["space"]["legal"] > 0
    assert len(facts["runners_up"]) == 2
    text = home.run("explain", FWD, *SIZES, "--no-ceiling").stdout
    for word in ("block_n", "footprint", "per thread", "removed", "runner-up", "slower",
                 "thrown away"):
        assert word in text


def test_explain_compares_with_a_matrix_product(home: Home) -> None:
    ceiling = home.json("explain", FWD, *SIZES)["ceiling"]
    assert ceiling["tflops"] > 0
    assert ceiling["share"] > 0


def test_explain_of_what_was_not_learned(home: Home) -> None:
    ran = home.run("explain", "fwd-fp32-d24-dense", "--gpu", "none", code=1)
    assert "hint: fagen tune fwd-fp32-d24-dense" in ran.stderr
    ran = home.run("explain", FWD, "--gpu", "none", "--seqlen", "64", code=1)
    assert "the nearest is b1-h2-s128" in ran.stderr


def test_a_second_run_goes_on_and_a_fresh_one_does_not(home: Home) -> None:
    again = home.run("tune", FWD, *TINY)
    assert "3 known from an earlier run" in again.stderr
    fresh = home.run("tune", FWD, *TINY, "--fresh")
    assert "known from an earlier run" not in fresh.stderr


def test_the_package_runs_without_fagen(home: Home) -> None:
    package = home.json("emit", "-o", "dist/my_attention", "--problem", FWD, "--problem", BWD)
    assert {k["problem"] for k in package["kernels"]} == {FWD, BWD}
    code = """
import sys, torch
import torch.nn.functional as F
import my_attention
assert "fagen" not in sys.modules
a = [torch.randn(2, 4, 100, 16, requires_grad=True) for _ in range(3)]
b = [x.detach().clone().requires_grad_() for x in a]
ours = my_attention.attention(*a, causal=True)
theirs = F.scaled_dot_product_attention(*b, is_causal=True)
ours.square().sum().backward(); theirs.square().sum().backward()
pairs = [(ours, theirs), *((x.grad, y.grad) for x, y in zip(a, b))]
assert all(torch.allclose(x, y, atol=1e-4) for x, y in pairs)
"""
    env = {k: v for k, v in home.env.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=home.work / "dist", env=env, check=True,
                   timeout=600)


@pytest.mark.parametrize(("words", "code", "says"), [
    (["--problem", "fwd-fp32-d24-dense"], 1, "nothing was learned about fwd-fp32-d24-dense"),
    (["--problem", "nonsense"], 2, "cannot read the problem 'nonsense'"),
    (["--target", "nowhere"], 1, "for nowhere"),
    (["--name", "not-a-name", "--problem", FWD], 2, "'not-a-name' cannot be imported"),
])
def test_emit_refuses(home: Home, words: list[str], code: int, says: str) -> None:
    ran = home.run("emit", "-o", "refused", *words, code=code)
    assert says in ran.stderr
    assert not (home.work / "refused").exists()


def test_emit_removes_nothing_that_is_not_its_own(home: Home) -> None:
    mine = home.work / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    ran = home.run("emit", "-o", "mine", "--problem", FWD, code=2)
    assert "is not a package that fagen wrote" in ran.stderr
    assert (mine / "thesis.txt").read_text() == "years"


def test_stale_entries_are_marked_and_refused(home: Home, tmp_path: Path) -> None:
    # Of a problem that nobody else knows: a fresh entry of another folder would take its place.
    tuned, slug = tmp_path / "tuned", "fwd-fp32-d48-dense"
    home.run("tune", slug, *TINY, "--tuned", str(tuned), "-q")
    (path,) = tuned.rglob("*.yaml")
    path.write_text(re.sub(r'source: "?\w+"?', f'source: "{"0" * 64}"', path.read_text()))
    option = ("--tuned", str(tuned))
    listed = home.json("list", *option)["entries"]
    (stale,) = [i["stale"] for i in listed if i["entry"]["problem"] == slug]
    assert stale == "the source changed since it was tuned"
    emit = ("emit", "-o", "stale", "--problem", slug, *option)
    ran = home.run(*emit, code=1)
    assert "1 of 1 entries are stale" in ran.stderr
    assert "--allow-stale" in ran.stderr
    home.run(*emit, "--allow-stale")
    assert (home.work / "stale" / "manifest.json").is_file()


def test_a_corrupt_entry_is_named_with_its_line(home: Home, tmp_path: Path) -> None:
    bad = tmp_path / "tuned" / "somewhere" / f"{FWD}.yaml"
    bad.parent.mkdir(parents=True)
    bad.write_text("schema: 1\nproblem: [")
    ran = home.run("list", "--tuned", str(tmp_path / "tuned"), code=1)
    assert f"error: {bad}, line 2" in ran.stderr
    assert "hint: restore it" in ran.stderr


def test_a_spec_with_several_sizes_becomes_one_package(home: Home) -> None:
    (home.work / "spec.yaml").write_text(
        f"problems:\n  - problem: {FWD}\n    workloads:\n"
        "      - {workload: b1-h2-s64, weight: 2}\n      - b1-h2-s192\n"
    )
    home.run("tune", "--spec", "spec.yaml", "--gpu", "none", "--effort", "quick", "--trials", "2")
    kernels = home.json("emit", "-o", "several", "--problem", FWD)["kernels"]
    assert {"b1-h2-s64", "b1-h2-s192"} <= {k["workload"] for k in kernels}


def test_ctrl_c_keeps_what_was_found(home: Home) -> None:
    slug = "fwd-fp32-d24-dense"
    process = home.start("tune", slug, *SIZES, "--trials", "500")
    assert process.stderr is not None
    for line in process.stderr:
        if "trial" in line:
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "interrupted: stopped after" in said
    assert "the best so far is stored" in said
    assert "Traceback" not in said
    assert any(item["entry"]["problem"] == slug for item in home.json("list")["entries"])


def test_ctrl_c_before_the_first_result(home: Home) -> None:
    process = home.start("tune", "fwd-fp32-d40-dense", *SIZES)
    assert process.stderr is not None
    assert "at most" in process.stderr.readline()  # said before the first kernel is built
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said


def test_verify_and_measure_answer_in_json(home: Home) -> None:
    verified = home.json("verify", FWD, "--gpu", "none")
    assert verified["ok"]
    assert verified["outcome"]["cases"] >= 5
    measured = home.json("measure", FWD, *SIZES, "--seconds", "0.05")
    assert measured["outcome"]["samples"] > 0


def test_the_first_page_is_true(home: Home) -> None:
    """The README's commands, with a small budget, and its Python."""
    page = (ROOT / "README.md").read_text()
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    (python,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    verbs = []
    for line in shell.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["fagen"]:
            budget = ["--trials", "1", "--effort", "quick"] if words[1] == "tune" else []
            home.run(*words[1:], *budget)
            verbs.append(words[1])
    assert verbs == ["doctor", "tune", "emit"]
    env = {k: v for k, v in home.env.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", python], cwd=home.work, env=env, check=True, timeout=600)
