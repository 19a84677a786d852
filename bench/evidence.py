"""Everything that a GPU has to prove, in one command that can be cut short and goes on next time.

    python bench/evidence.py OUT --minutes 9.5          what is not done yet, as far as time goes
    python bench/evidence.py OUT --list                 the steps, and what is known of each
    python bench/evidence.py OUT --only races --only soak

Steps are lists of commands in a YAML file (default: bench/evidence/h200.yaml), run in its order,
each within its own time limit. A step waits for the next run when less than half of its limit is
left of ``--minutes``, and one that the end of the budget cut short runs again. What passed, failed
or took too long is remembered in OUT/records and does not, unless it is named with ``--only``.
OUT/STEP holds the step's log and results, its record the machine, the date and the commands. It
needs no network.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
STEPS = ROOT / "bench" / "evidence" / "h200.yaml"
PASSED, FAILED, LATE, CUT = "passed", "failed", "too late", "cut short"
EMPTY = "all skipped"  # which proves nothing
LEAST_SECONDS = 5.0  # of budget, for a step to be worth starting
SHARE = 0.5  # of its limit that must be left for a step to start: limits are generous
GRACE = 10.0  # seconds, to come to an end when the time is over
NEEDS = ("fa3", "2 gpus", "compute-sanitizer")


@dataclass(frozen=True)
class Step:
    """One line of evidence: what it proves, the minutes it may take, what it needs, what runs."""

    name: str
    proves: str
    minutes: float
    run: tuple[str, ...]
    needs: tuple[str, ...] = ()


def read(path: Path) -> list[Step]:
    steps = [
        Step(row["step"], row["proves"], float(row["minutes"]), tuple(row["run"]),
             tuple(row.get("needs", ())))
        for row in yaml.safe_load(path.read_text())
    ]
    names = [step.name for step in steps]
    if len(set(names)) < len(names):
        raise SystemExit(f"{path}: two steps have one name")
    for step in steps:
        if unknown := set(step.needs) - set(NEEDS):
            raise SystemExit(f"{path}: {step.name} needs {', '.join(unknown)}, which nobody knows")
    return steps


class Folder:
    """Where everything goes."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def of(self, step: Step) -> Path:
        return self.root / step.name

    def record(self, step: Step) -> dict[str, Any]:
        path = self.root / "records" / f"{step.name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write(self, step: Step, record: dict[str, Any]) -> None:
        path = self.root / "records" / f"{step.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(record, indent=1) + "\n")
        fresh.rename(path)


# --- the machine ---------------------------------------------------------------------------------


def said(*command: str) -> str:
    """A program's output; empty where there is no such program."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
        return ran.stdout.strip() if ran.returncode == 0 else ""
    return ""


def machine() -> dict[str, Any]:
    nvcc = said(os.environ.get("FAGEN_NVCC", "nvcc"), "--version")
    query = "--query-gpu=name,driver_version,clocks.max.sm,power.limit,memory.total"
    gpus = said("nvidia-smi", query, "--format=csv,noheader").splitlines()
    return {
        "gpus": gpus or sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*")),
        "compiler": next((line for line in nvcc.splitlines() if "release" in line), ""),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton", "pycuda")},
        "commit": said("git", "rev-parse", "HEAD"),
        "changed": bool(said("git", "status", "--porcelain", "--untracked-files=no")),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def missing(step: Step, facts: dict[str, Any], fa3: Path | None) -> str:
    """What the step needs and is not here."""
    has = {
        "fa3": fa3 is not None, "2 gpus": len(facts["gpus"]) >= 2,
        "compute-sanitizer": bool(said("compute-sanitizer", "--version")),
    }
    return ", ".join(need for need in step.needs if not has[need])


# --- one step ------------------------------------------------------------------------------------


def environment(out: Path) -> dict[str, str]:
    """Nothing of a user's own is read or written, but the build cache, where one was named."""
    given = dict(os.environ)
    given["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [given.get("PYTHONPATH")])])
    return {"FAGEN_CACHE_DIR": str(out / "cache"), "FAGEN_DATA_DIR": str(out / "data"),
            "PYTHONUNBUFFERED": "1", **given}


def perform(
    step: Step, folder: Folder, seconds: float, words: dict[str, str], facts: dict[str, Any]
) -> dict[str, Any]:
    """Run its commands until one fails or the time is over."""
    here = folder.of(step)
    here.mkdir(parents=True, exist_ok=True)
    words = {**words, "here": str(here), "out": str(folder.root), "python": sys.executable}
    commands = [command.format_map(words) for command in step.run]
    start = time.monotonic()
    code: int | None = 0
    with (here / "log.txt").open("w") as log:
        for command in commands:
            log.write(f"$ {command}\n")
            log.flush()
            left = seconds - (time.monotonic() - start)
            code = _run(shlex.split(command), log.fileno(), left, environment(folder.root))
            if code != 0:
                break
    if code is None:
        status = LATE if seconds >= 60 * step.minutes else CUT
    else:
        status = FAILED if code else PASSED
    tests = _tests(here)
    if status == PASSED and tests and not tests["tests"]["passed"]:
        status = EMPTY
    return {
        "step": step.name, "proves": step.proves, "status": status,
        "exit_code": code, "seconds": round(time.monotonic() - start, 1),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commands": commands, "machine": facts, **tests,
    }


def _run(command: Sequence[str], log: int, seconds: float, given: dict[str, str]) -> int | None:
    """The exit code; None where the command and all it started had to be killed."""
    try:
        process = subprocess.Popen(command, cwd=ROOT, env=given, stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, start_new_session=True)
    except OSError as error:
        os.write(log, f"{command[0]}: {error.strerror}\n".encode())
        return 127
    try:
        return process.wait(max(0.1, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)  # pytest then says what it knows
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # also what outlived a command that ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tests(here: Path) -> dict[str, Any]:
    """What the JUnit files of a step say."""
    found = {"passed": 0, "failed": 0, "skipped": 0}
    failures, reports = [], sorted(here.glob("*.xml"))
    for case in (c for path in reports for c in ElementTree.parse(path).iter("testcase")):
        kinds = {child.tag for child in case}
        verdict = ("failed" if kinds & {"failure", "error"} else
                   "skipped" if "skipped" in kinds else "passed")
        found[verdict] += 1
        failures += [f"{case.get('classname')}::{case.get('name')}"] * (verdict == "failed")
    return {"tests": found, "failures": failures} if reports else {}


# --- all of them ---------------------------------------------------------------------------------


def todo(
    steps: Sequence[Step], folder: Folder, only: Sequence[str], skip: Sequence[str]
) -> Iterator[Step]:
    """In order: what is named, or what has not come to an end yet."""
    if unknown := {*only, *skip} - {step.name for step in steps}:
        raise SystemExit(f"no step is called {', '.join(sorted(unknown))}; --list shows them all")
    for step in steps:
        ended = folder.record(step).get("status") in (PASSED, FAILED, LATE)
        if step.name not in skip and (step.name in only or not (only or ended)):
            yield step


def shown(record: dict[str, Any]) -> str:
    counts = record.get("tests", {})
    tests = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    return f"{record['status']:<11} {record['seconds']:7.1f} s" + (f"  {tests}" if tests else "")


def run(given: argparse.Namespace, steps: Sequence[Step], folder: Folder) -> int:
    ends = time.monotonic() + 60 * given.minutes
    facts, failed, width = machine(), 0, max(len(step.name) for step in steps)
    words = {"fa3": str(given.fa3 or ""), "jobs": str(os.cpu_count() or 1)}
    chosen = list(todo(steps, folder, given.only, given.skip))
    for number, step in enumerate(chosen, 1):
        left, name = ends - time.monotonic(), f"[{number}/{len(chosen)}] {step.name:<{width}}"
        if lacks := missing(step, facts, given.fa3):
            print(f"{name}  not here: {lacks}", flush=True)
            continue
        if left < LEAST_SECONDS or (left < SHARE * 60 * step.minutes and not given.squeeze):
            print(f"{name}  waits: may take {step.minutes:g} minutes, {left / 60:.1f} left",
                  flush=True)
            continue
        record = perform(step, folder, min(left, 60 * step.minutes), words, facts)
        folder.write(step, record)
        failed += record["status"] in (FAILED, LATE, EMPTY)
        print(f"{name}  {shown(record)}", flush=True)
    return int(failed > 0)


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder that everything goes to")
    parser.add_argument("--steps", type=Path, default=STEPS, metavar="FILE")
    parser.add_argument("--minutes", type=float, default=1e6, help="of this run")
    parser.add_argument("--only", action="append", default=[], metavar="STEP")
    parser.add_argument("--skip", action="append", default=[], metavar="STEP")
    parser.add_argument("--fa3", type=Path, metavar="FILE", help="a FlashAttention-3 library")
    parser.add_argument("--squeeze", action="store_true",
                        help="start a step although the time left may not do")
    parser.add_argument("--list", action="store_true", help="the steps and how they stand")
    given = parser.parse_args()
    steps, folder = read(given.steps), Folder(given.out)
    if given.list:
        for step in steps:
            record = folder.record(step)
            print(f"{step.name:<24} {step.minutes:4g} min  "
                  f"{shown(record) if record else 'to do':<40}  {step.proves}")
        return 0
    signal.signal(signal.SIGTERM, stop)
    try:
        return run(given, steps, folder)
    except KeyboardInterrupt:
        print("interrupted: what was running counts as not done", flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
