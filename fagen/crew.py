"""One worker per device of this host: the same command, once for each, on one storage.

What the workers print is passed on line by line, marked with the device. A worker that dies leaves
its work to the others.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

from fagen.devices import HOST, Device, GpuProbe, gpus
from fagen.errors import SetupError

ALL = "all"


def names(gpu: str | None, find: Callable[[], GpuProbe] = gpus) -> tuple[str, ...]:
    """What ``--gpu`` lists: ``all``, or several between commas. Empty for a single one."""
    if gpu == ALL:
        found: Sequence[Device] = find().gpus
        if not found:
            raise SetupError("--gpu all was asked for, and there is no GPU here",
                             f"--gpu {HOST} uses the host CPU; fagen devices shows what there is")
        return tuple(device.uuid for device in found)
    return tuple(gpu.split(",")) if gpu and "," in gpu else ()


def labels(devices: Sequence[str]) -> tuple[str, ...]:
    """Short and different."""
    return tuple(
        f"{n}:{re.sub('^(GPU|MIG)-', '', device)[:8]}" for n, device in enumerate(devices)
    )


def run(
    commands: Mapping[str, Sequence[str]],
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> dict[str, int]:
    """Run all of them to their end; exit codes by label. Ctrl-C reaches each of them once."""
    workers: dict[str, subprocess.Popen[str]] = {}
    readers: list[threading.Thread] = []
    try:
        for label, command in commands.items():
            workers[label] = _start(command)
            readers.append(_reader(label, workers[label], say))
        return {label: worker.wait() for label, worker in workers.items()}
    except KeyboardInterrupt:
        for worker in workers.values():
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signal.SIGINT)
        for worker in workers.values():
            worker.wait()
        raise
    finally:
        for reader in readers:
            reader.join()


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    """In a session of its own, so that Ctrl-C of a terminal does not reach it twice."""
    return subprocess.Popen(
        [sys.executable, "-m", "fagen", *command], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        start_new_session=True, env=os.environ,
    )


def _reader(
    label: str, worker: subprocess.Popen[str], say: Callable[[str], None]
) -> threading.Thread:
    """Passes on what a worker prints, until it ends."""

    def pass_on() -> None:
        for line in worker.stderr or ():
            say(f"[{label}] {line.rstrip()}")

    thread = threading.Thread(target=pass_on)
    thread.start()
    return thread
