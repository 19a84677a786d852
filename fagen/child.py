"""The parent's side of a worker: start it, ask it, and end it when it does not answer in time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from fagen.errors import SetupError, WorkerCrashed, WorkerTimeout

_TICK = 0.1  # seconds between looks at what else there is to do
_STAGES = {"start": "starting", "prepare": "preparing", "run": "running", "time": "timing"}
_DEATH_S = 30.0  # from the end of its answers to its own
_LAST_WORDS = 300  # characters of a dead worker's log that go into its failure


class Child:
    """One ``python -m fagen.worker``. Starts when first asked, and again after a death."""

    def __init__(
        self, device: str, threads: int, log: Path, limits: Mapping[str, float],
        meanwhile: Callable[[], None] = lambda: None, wrapper: Sequence[str] = (),
    ) -> None:
        self.device, self.threads, self.log = device, threads, log
        self.wrapper = wrapper  # a command that takes a command: a debugger, a sanitizer
        self.limits = limits  # seconds without a word, by what the worker says it is doing
        self.meanwhile = meanwhile
        self.facts: dict[str, Any] = {}
        self.starts = 0
        self.doing = ""  # what the worker said last that it does
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._log_start = 0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Ready when this returns."""
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        self.starts += 1
        self._unread = b""
        command = [*self.wrapper, sys.executable, "-m", "fagen.worker", "--device", self.device,
                   "--threads", str(self.threads)]
        with self._open_log() as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True, env=_environment(),
            )
        try:
            self.facts = self._answer("start", self.device)
        except (WorkerCrashed, WorkerTimeout) as error:
            raise SetupError(
                f"the worker for {self.device} does not start: {error.message}", "fagen doctor"
            ) from error

    def _open_log(self) -> IO[bytes]:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            return self.log.open("ab")
        except OSError as error:
            raise SetupError(
                f"{self.log} cannot be written: {error.strerror}",
                "free some space, or choose another folder with FAGEN_CACHE_DIR",
            ) from error

    def ask(self, do: str, arguments: dict[str, Any], extra: float = 0.0) -> dict[str, Any]:
        """The answer; WorkerCrashed or WorkerTimeout where there is none. ``extra`` seconds are
        what the request itself asks the worker to spend."""
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        request = json.dumps({"do": do, "with": arguments}) + "\n"
        try:
            self._process.stdin.write(request.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerCrashed(self._epitaph("between two requests")) from None
        answer = self._answer("run", do, extra)
        if answer.get("fatal"):
            self.end(grace=5.0)
        return answer

    def _answer(self, stage: str, what: str, extra: float = 0.0) -> dict[str, Any]:
        """Wait through the words about progress; each one starts a new deadline."""
        while True:
            self.doing = what
            words = f"while {_STAGES[stage]} {what}"
            line = self._line(self.limits[stage] + extra, words)
            try:
                message: dict[str, Any] = json.loads(line)
            except ValueError:
                self.end()
                raise WorkerCrashed(
                    f"something else wrote into the worker's answers {words}"
                ) from None
            if "doing" not in message:
                return message
            stage, what = message["doing"], message["what"]

    def _line(self, seconds: float, words: str) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0:
                self.end()
                raise WorkerTimeout(f"no answer within {seconds:g} s {words}; it was killed")
            if select.select([pipe], [], [], min(left, _TICK))[0]:
                read = os.read(pipe, 1 << 16)
                if not read:
                    raise WorkerCrashed(self._epitaph(words))
                self._unread += read
            self.meanwhile()
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _epitaph(self, words: str) -> str:
        process = self._process
        assert process is not None
        try:
            code = process.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            code = None
        self.end()
        how = (
            f"died of {signal.Signals(-code).name}" if code is not None and code < 0
            else f"exited with {code}"
        )
        return f"the worker {how} {words}{self._last_words()}"

    def _last_words(self) -> str:
        """What this worker, and no other before it, wrote to the log in the end."""
        with contextlib.suppress(OSError):
            text = self.log.read_bytes()[self._log_start :][-_LAST_WORDS:]
            if words := text.decode(errors="replace").split():
                return ": " + " ".join(words)
        return ""

    def end(self, grace: float = 0.0) -> None:
        """Gone when this returns, with all of its process group."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if grace:
                process.wait(grace)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    """Run the same fagen as the parent does, wherever it was imported from. torch's threads sleep
    between two parallel regions, so that none of them spins beside a kernel that is timed."""
    here = str(Path(__file__).resolve().parent.parent)
    others = os.environ.get("PYTHONPATH")
    paths = here + (os.pathsep + others if others else "")
    return {"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONPATH": paths}
