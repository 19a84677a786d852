"""Every option of every verb that needs no device: good input, bad input, text and JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fagen.cli import VERBS, app, main
from fagen.errors import RunError

V3 = ("--target", "x86-64-v3")
SLUG = "fwd-fp32-d16-causal"


class Ran:
    """One command: exit code, stdout, stderr."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def fagen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Any:
    monkeypatch.setenv("FAGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FAGEN_DATA_DIR", str(tmp_path / "data"))

    def run(*words: str) -> Ran:
        capsys.readouterr()
        code = main(list(words))
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


# --- the program itself ------------------------------------------------------------------------


def test_every_verb_of_the_design_is_there(fagen: Any) -> None:
    names = ["doctor", "devices", "space", "render", "build", "verify", "measure", "tune", "list",
             "explain", "emit", "bench", "draw", "report", "export",
             "capture", "check", "refresh"]
    assert [verb.__name__.strip("_") for verb in VERBS] == names
    assert {command.name for command in app.registered_commands} == set(names)


@pytest.mark.parametrize("verb", [verb.__name__.strip("_") for verb in VERBS])
def test_every_verb_has_help_and_json(fagen: Any, verb: str) -> None:
    ran = fagen(verb, "--help")
    assert ran.code == 0
    assert "--json" in ran.out
    assert ran.err == ""


@pytest.mark.parametrize(("words", "says", "hint"), [
    (["nope"], "no such command 'nope'", "fagen --help"),
    (["space"], "missing argument 'PROBLEM'", "fagen space --help"),
    (["space", SLUG, "--nope"], "no such option: --nope", "fagen space --help"),
    (["space", SLUG, "extra"], "unexpected extra argument", "fagen space --help"),
    (["measure", SLUG, "--batch", "many"], "'--batch'", "fagen measure --help"),
])
def test_a_wrong_command_line_is_an_error_with_a_hint(
    fagen: Any, words: list[str], says: str, hint: str
) -> None:
    ran = fagen(*words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert says in ran.err
    assert f"hint: {hint}" in ran.err


def test_without_a_verb_help_is_shown(fagen: Any) -> None:
    ran = fagen()
    assert "Commands:" in ran.out + ran.err


def test_python_m_fagen_is_the_same_program() -> None:
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-m", "fagen", "space", "fwd-fp32-d65"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(root)}, timeout=600,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: head_dim 65 is not served")


def test_a_closed_pipe_is_no_error() -> None:
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        f"set -o pipefail; {sys.executable} -m fagen space {SLUG} --target x86-64-v3 --list"
        " | head -1",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert ran.stdout == "fwd-fp32-d16-causal on x86-64-v3\n"
    assert ran.stderr == ""


# --- options that several verbs share ----------------------------------------------------------


@pytest.mark.parametrize(("slug", "says"), [
    ("", "cannot read the problem ''"),
    ("fwd", "cannot read the problem 'fwd'"),
    ("fwd-fp32-d64-", "cannot read"),
    ("FWD-fp32-d64", "cannot read"),
    ("fwd-fp32-d64; rm -rf /", "cannot read"),
    ("fwd-fp32-d64-../../etc", "cannot read"),
    ("mid-fp32-d64", "unknown op 'mid'"),
    ("fwd-fp8-d64", "unknown dtype 'fp8'"),
    ("fwd-fp32-d0", "head_dim 0 is not served"),
    ("fwd-fp32-d65", "head_dim 65 is not served"),
    ("fwd-fp32-d264", "head_dim 264 is not served"),
    ("fwd-fp32-d64x7", "head_dim_v 7 is not served"),
    ("fwd-fp32-d64-spiral", "unknown pattern 'spiral'"),
    ("fwd-fp32-d64-window", "unknown pattern 'window'"),
    ("fwd-fp32-d64+fast", "unknown feature 'fast'"),
    ("fwd-fp32-d64+deterministic", "the forward is always deterministic"),
])
@pytest.mark.parametrize("verb", ["space", "render"])
def test_a_bad_problem_is_refused(fagen: Any, verb: str, slug: str, says: str) -> None:
    ran = fagen(verb, slug, *V3)
    assert (ran.code, ran.out) == (2, "")
    assert f"error: {says}" in ran.err


@pytest.mark.parametrize(("words", "code", "says"), [
    (["--target", "h3000"], 2, "unknown target 'h3000'"),
    (["--target", "x86-64-v3", "--gpu", "0"], 2, "both given"),
    (["--gpu", "minus one"], 2, "cannot read --gpu 'minus one'"),
    (["--gpu", "9999"], 3, "--gpu 9999 was asked for"),
    (["--target", "x86-64-v3", "--family", "gpu"], 2, "unknown family 'gpu'"),
    (["--target", "h100", "--family", "cpu"], 2, "family cpu does not run on h100"),
])
def test_a_bad_target_or_family_is_refused(
    fagen: Any, words: list[str], code: int, says: str
) -> None:
    ran = fagen("space", SLUG, *words)
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.err


@pytest.mark.parametrize(("setting", "says"), [
    ("block_n", "cannot read --set 'block_n'"),
    ("=3", "cannot read --set '=3'"),
    ("block_n=", "cannot read --set 'block_n='"),
    ("blocks=3", "unknown knob 'blocks'"),
    ("block_n=33", "knob block_n='33' is not a choice"),
    ("block_n=-32", "knob block_n='-32' is not a choice"),
    ("stage_kv=maybe", "knob stage_kv='maybe' is not a choice"),
])
def test_a_bad_setting_is_refused(fagen: Any, setting: str, says: str) -> None:
    ran = fagen("render", SLUG, *V3, "--set", setting)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


def test_a_config_that_breaks_a_rule_is_refused_with_the_rule(fagen: Any) -> None:
    ran = fagen("render", SLUG, *V3, "--set", "q_vectors=4", "--set", "qk_rows=12")
    assert ran.code == 2
    assert "the micro-tiles fit in the vector registers" in ran.err
    assert f"hint: fagen space {SLUG} --family cpu --list" in ran.err


@pytest.mark.parametrize(("words", "says"), [
    (["--batch", "0"], "--batch 0 is not positive"),
    (["--batch", "-1"], "--batch -1 is not positive"),
    (["--heads", "0"], "--heads 0 is not positive"),
    (["--kv-heads", "0"], "--kv-heads 0 is not positive"),
    (["--seqlen", "-5"], "--seqlen -5 is not positive"),
    (["--seqlen-kv", "0"], "--seqlen-kv 0 is not positive"),
    (["--heads", "8", "--kv-heads", "3"], "heads 8 is not a multiple of kv_heads 3"),
    (["--seqlen", "9999999999"], "seqlen_q 9999999999 is not a positive 32-bit integer"),
    (["--workload", "b1"], "cannot read the workload 'b1'"),
    (["--workload", "b1-h1-s0"], "seqlen_q 0 is not a positive"),
    (["--workload", "b1-h1-s1", "--batch", "2"], "were both given"),
])
@pytest.mark.parametrize("verb", ["verify", "measure", "tune"])
def test_bad_sizes_are_refused_before_anything_runs(
    fagen: Any, verb: str, words: list[str], says: str
) -> None:
    ran = fagen(verb, SLUG, "--gpu", "none", *words)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


@pytest.mark.parametrize("verb", ["verify", "measure", "tune"])
def test_code_for_other_hardware_is_not_run(fagen: Any, verb: str) -> None:
    ran = fagen(verb, SLUG, "--gpu", "none", "--target", "h100")
    assert ran.code == 3
    assert "error: code for h100 does not run on" in ran.err


# --- doctor, devices ---------------------------------------------------------------------------


def test_doctor_says_what_is_here(fagen: Any) -> None:
    ran = fagen("doctor")
    assert ran.code == 0
    assert "everything needed is here" in ran.out
    assert any(line.startswith("ok ") and "C++ compiler" in line for line in ran.out.splitlines())


def test_doctor_fails_without_a_compiler(fagen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    ran = fagen("doctor", "--json")
    assert ran.code == 3
    assert not ran.json["ok"]
    (compiler,) = (c for c in ran.json["checks"] if c["name"] == "C++ compiler")
    assert compiler["verdict"] == "missing"
    assert "install" in compiler["hint"]


def test_doctor_names_a_folder_that_cannot_be_written(
    fagen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAGEN_CACHE_DIR", "/proc/fagen")
    ran = fagen("doctor")
    assert ran.code == 3
    assert "missing: cache folder" in ran.out
    assert "FAGEN_CACHE_DIR=" in ran.out


def test_devices_lists_the_host_and_the_known_targets(fagen: Any) -> None:
    ran = fagen("devices", "--json")
    assert ran.code == 0
    assert ran.json["devices"][-1]["name"] == "cpu"
    assert ran.json["known_targets"]["h200"]["capability"] == [9, 0]
    text = fagen("devices").out
    assert "x86-64-v4-bf16" in text
    assert "cores" in text


# --- space, render, build ----------------------------------------------------------------------


def test_space_shows_what_each_rule_removes(fagen: Any) -> None:
    facts = fagen("space", SLUG, *V3, "--list", "--json").json
    (family,) = facts["families"]
    assert family["family"] == "cpu"
    assert 0 < family["legal"] < family["points"]
    assert len(family["configs"]) == family["legal"]
    assert max(family["removed_by_rule"].values()) > 0
    assert facts["kept"] == (2048 + 1) / (2 * 2048)
    blocks = fagen("space", "fwd-fp32-d64-blocks128", *V3).out
    assert re.search(r"blocks128 keeps (2|3)\d\.\d+% of 2048 x 2048 scores", blocks)
    text = fagen("space", SLUG, *V3, "--list").out
    for rule, removed in family["removed_by_rule"].items():
        assert any(line.split(None, 1) == [str(removed), rule] for line in text.splitlines())
    assert f"{family['points']} points, {family['legal']} legal" in text
    assert text.count("q_vectors=") == family["legal"]


def test_render_prints_the_source_and_nothing_else(fagen: Any) -> None:
    ran = fagen("render", SLUG, *V3, "--set", "block_n=64", "--set", "qk_rows=8",
                "--set", "q_vectors=1")
    assert ran.code == 0
    assert "constexpr int BLOCK_N = 64;" in ran.out
    assert "${" not in ran.out
    assert ran.err == ""


def test_render_to_a_file(fagen: Any, tmp_path: Path) -> None:
    path = tmp_path / "kernel.cpp"
    facts = fagen("render", SLUG, *V3, "-o", str(path), "--json").json
    assert path.read_text() == facts["source"]["text"]
    assert fagen("render", SLUG, *V3, "-o", str(path)).out == f"{path}\n"


@pytest.mark.parametrize("verb", ["render", "build"])
def test_a_file_that_cannot_be_written_is_an_error(fagen: Any, verb: str, tmp_path: Path) -> None:
    ran = fagen(verb, SLUG, *V3, "-o", str(tmp_path / "no" / "such" / "folder"))
    assert ran.code == 2
    assert "cannot write" in ran.err


def test_build_compiles_for_a_target_that_need_not_be_here(fagen: Any, tmp_path: Path) -> None:
    path = tmp_path / "kernel.o"
    facts = fagen("build", SLUG, *V3, "-o", str(path), "--json").json
    assert path.stat().st_size > 1000
    assert facts["binary"]["arch"] == "x86-64-v3"
    again = fagen("build", SLUG, *V3)
    assert "found in the cache" in again.out


def test_a_compile_error_is_an_error_and_not_a_traceback(
    fagen: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo broken 1.0 && exit\n"
                      "echo 'kernel.cpp:1: error: no good'; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    ran = fagen("build", SLUG, *V3)
    assert ran.code == 1
    assert ran.err.startswith("error: kernel.cpp:1: error: no good\nhint: ")


def test_a_missing_compiler_is_a_setup_error(fagen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    ran = fagen("build", SLUG, *V3)
    assert ran.code == 3
    assert "hint: install one" in ran.err


# --- tune, bench: what is refused before they start --------------------------------------------


@pytest.mark.parametrize(("words", "says"), [
    ([], "nothing to tune was given"),
    ([SLUG, "--spec", "x.yaml"], "exclude one another"),
    (["--spec", "missing.yaml"], "--spec missing.yaml: there is no such file"),
    (["--hf-config", "missing.json"], "--hf-config missing.json: there is no such file"),
    ([SLUG, "--op", "fwd"], "--op goes with --hf-config and --suite only"),
    (["--suite", "core", SLUG], "exclude one another"),
    (["--suite", "nope"], "unknown suite 'nope'"),
    (["--suite", "cpu-core", "--seqlen", "64"], "--suite and sizes were both given"),
    (["--suite", "cpu-core", "--op", "sideways"], "unknown op 'sideways'"),
    ([SLUG, "--trials", "0"], "trials 0 is less than 1"),
    ([SLUG, "--minutes", "0"], "minutes 0 is not positive"),
    ([SLUG, "--minutes", "-1"], "minutes -1 is not positive"),
    ([SLUG, "--minutes", "nan"], "minutes nan is not positive"),
    ([SLUG, "--patience", "-1"], "patience -1 is negative"),
    ([SLUG, "--effort", "huge"], "unknown effort 'huge'"),
    ([SLUG, "--jobs", "0"], "--jobs 0 is not positive"),
    ([SLUG, "--family", "none"], "unknown family 'none'"),
    (["fwd-fp32-d64-nope"], "unknown pattern 'nope'"),
])
def test_tune_refuses(fagen: Any, words: list[str], says: str) -> None:
    ran = fagen("tune", "--gpu", "none", *words)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


@pytest.mark.parametrize(("words", "says"), [
    (["--suite", "all"], "unknown suite 'all'"),
    (["--match", "d65"], "no cell of the suite core holds 'd65'"),
    (["--rounds", "0"], "--rounds 0 is not positive"),
    (["--seconds", "-1"], "--seconds -1 is not positive"),
    (["--threads", "-1"], "--threads -1 is negative"),
    (["--package", "/no/such"], "--package /no/such: there is no such file or folder"),
    (["--fa3", "/no/such"], "--fa3 /no/such: there is no such file or folder"),
])
def test_bench_refuses(fagen: Any, words: list[str], says: str) -> None:
    ran = fagen("bench", "--gpu", "none", *words)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


def test_emit_refuses_a_bad_place_before_it_builds(fagen: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("")
    for words, says in ((("-o", str(mine)), "is not a package"),
                        (("-o", str(tmp_path / "new"), "--name", "a b"), "cannot be imported")):
        ran = fagen("emit", *words)
        assert ran.code == 2
        assert says in ran.err
        assert " on " not in ran.err.splitlines()[0], "a kernel was being built already"


def test_a_problem_without_a_kernel_does_not_stop_the_others(
    fagen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def nothing_works(problem: Any, *more: Any, **options: Any) -> None:
        asked.append(str(problem))
        raise RunError(f"all candidates for {problem} failed", "look at the first")

    monkeypatch.setattr("fagen.search.tune", nothing_works)
    slugs = ["fwd-fp32-d16-dense", "fwd-fp32-d16-causal"]
    ran = fagen("tune", *slugs, "--gpu", "none", "-q")
    assert asked == slugs
    assert ran.code == 1
    assert "2 of 2 problems have no kernel" in ran.err
    assert all(slug in ran.err for slug in slugs)
