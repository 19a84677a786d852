"""`fagen bench`: a suite's cells, every contender interleaved in one process, one result file.

The parent keeps the deadline and the results; the child (``python -m fagen.benchrun``) does the
timing, one JSON line per cell. A cell that hangs or crashes is recorded and the child restarted.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fagen.errors import RunError, UsageError
from fagen.suites import Cell

OURS = "fagen"
CELL_SECONDS = 180.0  # the first FlexAttention cell compiles for tens of seconds
END_SECONDS = 60.0  # for a process to end that has said everything
METHOD = (
    "median of interleaved timings in one process; CUDA events and L2 flushed before every launch "
    "on a GPU, wall clock on a CPU; random inputs"
)


@dataclass(frozen=True)
class BenchOptions:
    """What the child must know."""

    device: str = "cpu"
    package: str | None = None
    fa3: str | None = None
    only: tuple[str, ...] = ()  # contenders; empty means all
    rounds: int = 20
    seconds: float = 0.6  # per contender and cell, at most
    threads: int = 0  # CPU threads; 0 leaves torch's choice


def run_suite(
    cells: Sequence[Cell],
    options: BenchOptions,
    on_cell: Callable[[dict[str, Any]], None] = lambda cell: None,
    deadline: float = CELL_SECONDS,
    save: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Time the cells; the result is the content of a file under bench/results, which ``save`` gets
    after every cell, so that a run which is cut short has told what it knew."""
    done: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}

    def result() -> dict[str, Any]:
        return {
            **machine,
            "date": datetime.date.today().isoformat(),
            "command": " ".join(["fagen", *sys.argv[1:]]),
            "method": METHOD,
            "cells": done,
        }

    while len(done) < len(cells):
        todo = cells[len(done):]
        for message in _child(todo, options, deadline):
            if "machine" in message:
                machine = message["machine"]
            else:
                record = {**todo[0].facts(), **message}
                todo = todo[1:]
                done.append(record)
                on_cell(record)
                save(result())
    return result()


def _child(
    cells: Sequence[Cell], options: BenchOptions, deadline: float
) -> Iterator[dict[str, Any]]:
    """Messages of one child. A death or a timeout becomes the failed cell's message."""
    request = json.dumps({"cells": [c.facts() for c in cells], "options": options.__dict__})
    answers, child_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "fagen.benchrun", str(child_end)],
        stdin=subprocess.PIPE, stdout=sys.stderr, pass_fds=(child_end,), start_new_session=True,
    )
    os.close(child_end)
    assert process.stdin is not None
    started, finished = False, 0
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin:  # a child that died at once
            process.stdin.write(request.encode())
        for line in _lines(answers, deadline):
            message = json.loads(line)
            started = True
            if "unknown" in message:
                raise UsageError(f"no contender is called {', '.join(message['unknown'])} here",
                                 f"one of: {', '.join(message['contenders'])}; fagen needs "
                                 "--package, FlashAttention-3 --fa3")
            finished += "us" in message
            yield message
        code = _ended(process)
        if not started:
            raise RunError(f"the benchmark process did not start ({_how(code)}); see its log above")
        if finished < len(cells):
            yield _failed(f"the benchmark process died ({_how(code)})")
    except TimeoutError:
        if finished < len(cells):
            yield _failed(f"no answer within {deadline:g} s; the benchmark process was killed")
    finally:
        os.close(answers)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a child that has nothing to say any more."""
    try:
        return process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _failed(why: str) -> dict[str, Any]:
    return {"us": {}, "unserved": {"*": why}}


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _lines(fd: int, deadline: float) -> Iterator[str]:
    """Lines from a pipe, each within the deadline."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            if not selector.select(deadline):
                raise TimeoutError
            chunk = os.read(fd, 65536)
            if not chunk:
                return
            *whole, pending = (pending + chunk).split(b"\n")
            yield from (line.decode() for line in whole)


# --- reading a result -----------------------------------------------------------------------


def ratio(record: dict[str, Any], peers: Sequence[str] = ()) -> float | None:
    """Time of the best of the peers (all others when none is named) over ours."""
    ours = record["us"].get(OURS)
    others = [us for name, us in record["us"].items()
              if name != OURS and (not peers or name in peers)]
    return min(others) / ours if ours and others else None


def geometric_mean(values: Sequence[float]) -> float:
    if not values:
        raise RunError("no cell has both ours and a peer, so there is nothing to compare")
    return math.exp(sum(map(math.log, values)) / len(values))


def markdown(result: dict[str, Any]) -> str:
    """A table of times and ratios, with the geometric mean per mode and dtype."""
    names = list(dict.fromkeys(name for cell in result["cells"] for name in cell["us"]))
    head = ["cell", *(f"{name} us" for name in names), "TFLOP/s", "best peer / ours"]
    rows = [head, ["---"] * len(head)]
    groups: dict[str, list[float]] = {}
    for record in result["cells"]:
        cell = cell_of(record)
        times = [f"{record['us'][n]:.1f}" if n in record["us"] else "-" for n in names]
        ours, against = record["us"].get(OURS), ratio(record)
        speed = f"{cell.flops / ours * 1e-6:.1f}" if ours else "-"
        rows.append([str(cell), *times, speed, f"{against:.2f}" if against else "-"])
        if against:
            groups.setdefault(f"{cell.mode} {cell.dtype}", []).append(against)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for name, values in groups.items():
        lines.append(
            f"\n{name}: geometric mean {geometric_mean(values):.3f}, worst {min(values):.3f} "
            f"over {len(values)} cells"
        )
    return "\n".join(lines) + "\n"


def cell_of(record: dict[str, Any]) -> Cell:
    return Cell(**{name: record[name] for name in Cell.__dataclass_fields__ if name in record})


def write(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
