"""The runner of evidence: order, limits, what is remembered; and the steps for an H200."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import evidence
from fagen.suites import SUITES

ROOT = Path(__file__).parents[2]
TOY = """
- step: good
  proves: a command that ends well
  minutes: 1
  run: ["{python} -c \\"open('{here}/made', 'w').write('x')\\"", "{python} -c pass"]
- step: bad
  proves: a command that does not, after which no other one runs
  minutes: 1
  run: ["{python} -c \\"raise SystemExit(3)\\"", "{python} -c \\"open('{here}/never', 'w')\\""]
- step: hangs
  proves: what takes too long is killed, and what it started too
  minutes: 0.02
  run: ["{python} -c \\"import subprocess; subprocess.run(['sleep', '1000'])\\""]
- step: reads
  proves: what other steps made is there
  minutes: 1
  run: ["{python} -c \\"assert open('{out}/good/made').read() == 'x'\\""]
- step: needy
  proves: what is not here is not tried
  minutes: 1
  needs: [fa3]
  run: ["{python} -c pass"]
"""


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    path = tmp_path / "steps.yaml"
    path.write_text(TOY)
    return path


def run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "bench/evidence.py", str(tmp_path / "out"), "--steps",
         str(tmp_path / "steps.yaml"), *words],
        cwd=ROOT, capture_output=True, text=True, timeout=600)


def record(tmp_path: Path, step: str) -> Any:
    return json.loads((tmp_path / "out" / "records" / f"{step}.json").read_text())


def test_steps_run_in_order_and_are_remembered(steps: Path, tmp_path: Path) -> None:
    ran = run(tmp_path)
    assert ran.returncode == 1
    lines = ran.stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["[1/5]", "good", "passed"], ["[2/5]", "bad", "failed"], ["[3/5]", "hangs", "too"],
        ["[4/5]", "reads", "passed"], ["[5/5]", "needy", "not"]]
    assert lines[4].endswith("not here: fa3")
    kept = record(tmp_path, "bad")
    assert (kept["exit_code"], kept["proves"][:9]) == (3, "a command")
    assert len(kept["commands"]) == 2
    assert set(kept["machine"]) >= {"gpus", "compiler", "torch", "commit", "python"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", kept["date"])
    assert not (tmp_path / "out" / "bad" / "never").exists()
    # What has come to an end is not done again, unless it is named.
    again = run(tmp_path)
    assert (again.returncode, again.stdout.split()[1:4]) == (0, ["needy", "not", "here:"])
    assert len(again.stdout.splitlines()) == 1
    named = run(tmp_path, "--only", "good", "--only", "bad", "--skip", "bad")
    assert named.stdout.split()[:3] == ["[1/1]", "good", "passed"]


def test_what_does_not_fit_waits_and_what_was_cut_short_runs_again(
    steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps.write_text(TOY.replace("minutes: 1\n", "minutes: 100\n"))
    ran = run(tmp_path, "--minutes", "40", "--only", "good", "--only", "hangs")
    assert re.search(r"waits: may take 100 minutes, (40|3\d)\.\d left", ran.stdout)
    assert record(tmp_path, "hangs")["status"] == "too late"
    steps.write_text(TOY.replace("minutes: 0.02", "minutes: 5"))
    (tmp_path / "out" / "records" / "hangs.json").unlink()
    monkeypatch.setattr(evidence, "LEAST_SECONDS", -1e9)  # however slow this machine is
    monkeypatch.setattr(sys, "argv", [
        "evidence.py", str(tmp_path / "out"), "--steps", str(steps), "--minutes", "0.02",
        "--squeeze", "--skip", "good", "--skip", "reads", "--skip", "bad"])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert evidence.main() == 0
    assert "cut short" in capsys.readouterr().out
    listed = run(tmp_path, "--list").stdout
    assert re.search(r"hangs +5 min +cut short", listed)
    assert re.search(r"reads +1 min +to do", listed)
    steps.write_text(TOY)
    assert re.search(r"hangs +too late", run(tmp_path).stdout)


def test_being_stopped_kills_what_runs(steps: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    steps.write_text(
        "- step: long\n  proves: x\n  minutes: 5\n"
        f"  run: [\"{{python}} -c \\\"import os, time; "
        f"open('{pid}', 'w').write(str(os.getpid())); time.sleep(1000)\\\"\"]\n")
    process = subprocess.Popen(
        [sys.executable, "bench/evidence.py", str(tmp_path / "out"), "--steps", str(steps)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == 130
    assert "interrupted" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (tmp_path / "out" / "records" / "long.json").exists()


def test_tests_are_counted(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(
        '<testsuites><testsuite><testcase classname="a" name="b"/>'
        '<testcase classname="a" name="c"><failure/></testcase>'
        '<testcase classname="a" name="d"><skipped/></testcase></testsuite></testsuites>')
    assert evidence._tests(tmp_path) == {
        "tests": {"passed": 1, "failed": 1, "skipped": 1}, "failures": ["a::c"]}


def test_tests_that_were_all_skipped_prove_nothing(steps: Path, tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text('<testsuite><testcase name="a"><skipped/></testcase></testsuite>')
    steps.write_text(json.dumps([{"step": "idle", "proves": "x", "minutes": 1,
                                  "run": [f"cp {junit} {{here}}/junit.xml"]}]))
    for _ in range(2):  # nor is it remembered as done
        ran = run(tmp_path)
        assert ran.returncode == 1
        assert re.search(r"idle +all skipped .* 1 skipped", ran.stdout)


@pytest.mark.parametrize(("text", "says"), [
    (TOY + TOY, "two steps have one name"),
    (TOY.replace("[fa3]", "[luck]"), "needs luck, which nobody knows"),
])
def test_a_list_that_is_wrong(steps: Path, tmp_path: Path, text: str, says: str) -> None:
    steps.write_text(text)
    assert says in run(tmp_path).stderr


def test_an_unknown_step(steps: Path, tmp_path: Path) -> None:
    assert "no step is called nope" in run(tmp_path, "--only", "nope").stderr


# --- the steps for an H200 -----------------------------------------------------------------------


STEPS = evidence.read(evidence.STEPS)
WORDS = {"python": sys.executable, "here": "/here", "out": "/out", "fa3": "/fa3.so", "jobs": "16"}


def commands(step: evidence.Step) -> list[list[str]]:
    return [shlex.split(command.format_map(WORDS)) for command in step.run]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_is_short_and_names_what_is_there(step: evidence.Step) -> None:
    assert 0 < step.minutes <= 8
    assert step.run
    for words in commands(step):
        assert words[0] == sys.executable
        files = [word for word in words if word.startswith(("bench/", "tests/"))]
        assert all((ROOT / file).is_file() for file in files)
        if "--suite" in words:
            assert words[words.index("--suite") + 1] in SUITES
        if "bench/suite_package.py" in words:
            chosen = words[words.index("bench/suite_package.py") + 2:]
            timed = {w[w.index("--suite") + 1] for s in STEPS for w in commands(s)
                     if "--suite" in w}
            assert timed == set(chosen)
        if "/fa3.so" in words:
            assert "fa3" in step.needs


COLLECT = """
import json, sys, pytest

class Seen:
    def pytest_collection_finish(self, session):
        print("chosen", json.dumps([item.nodeid for item in session.items]))

for words in json.load(sys.stdin):
    pytest.main(["--collect-only", "-qq", *words], plugins=[Seen()])
"""


def test_every_gpu_test_is_in_one_step() -> None:
    """pytest itself says which tests the steps choose, in a process of its own."""
    calls = [["tests/gpu", "-p", "no:cacheprovider", "-o", "addopts="]]
    for words in (w for step in STEPS for w in commands(step) if "pytest" in w):
        rest = words[words.index("pytest") + 1:]
        cut = rest.index("--junitxml")
        calls.append(rest[:cut] + rest[cut + 2:])
    ran = subprocess.run([sys.executable, "-c", COLLECT], cwd=ROOT, input=json.dumps(calls),
                         capture_output=True, text=True, timeout=600, check=True)
    whole, *chosen = (json.loads(line.removeprefix("chosen "))
                      for line in ran.stdout.splitlines() if line.startswith("chosen "))
    assert len(chosen) == len(calls) - 1
    assert all(chosen)
    assert sorted(name for names in chosen for name in names) == sorted(whole)
