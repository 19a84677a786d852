"""Build children: candidates are rendered, compiled and linked ahead of need, a few at a time.

Each build is a forked child in a session of its own, so that Ctrl-C does not reach it, a compiler
that hangs is killed with everything it started, and all of it can be stopped while a timing runs on
the same cores.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from fagen.errors import BuildError, FagenError, RenderError, SetupError
from fagen.link import Part, link
from fagen.model import Binary, Candidate, Failure
from fagen.render import Renderer, symbol

if TYPE_CHECKING:
    from fagen.build import Builder

_SLACK = 30.0  # on top of the compiler's own limit: rendering, linking, a busy machine
_TICK = 0.02
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Built:
    """A candidate's own shared library."""

    binary: Binary
    library: Path


@dataclass
class _Running:
    process: multiprocessing.context.ForkProcess
    answer: Connection
    deadline: float


class Builds:
    """A queue of candidates, at most ``jobs`` of them in the making."""

    def __init__(
        self, builder: Builder, renderer: Renderer, jobs: int, folder: Path, seconds: float,
        allow_spills: bool = False,
    ) -> None:
        self.allow_spills = allow_spills
        self.builder, self.renderer, self.folder = builder, renderer, folder
        self.jobs, self.seconds = max(1, jobs), seconds
        self._waiting: deque[Candidate] = deque()
        self._running: dict[Candidate, _Running] = {}
        self._done: dict[Candidate, Built | Failure | FagenError] = {}
        self._paused = False

    def add(self, candidate: Candidate, first: bool = False) -> None:
        if candidate in self._done or candidate in self._running:
            return
        if candidate in self._waiting:
            if not first:
                return
            self._waiting.remove(candidate)
        (self._waiting.appendleft if first else self._waiting.append)(candidate)
        self.pump()

    def get(self, candidate: Candidate) -> Built | Failure:
        """Wait for it. Raises only what no other candidate would escape either."""
        self.add(candidate, first=True)
        while candidate not in self._done:
            self.pump()
            time.sleep(_TICK)
        result = self._done[candidate]
        if isinstance(result, FagenError):
            del self._done[candidate]
            raise result
        return result

    def pump(self) -> None:
        """Collect what is done, kill what is late, start what waits."""
        for candidate, running in list(self._running.items()):
            if running.answer.poll():
                self._finish(candidate, self._read(running))
            elif not self._paused and time.monotonic() > running.deadline:
                self._finish(candidate, BuildError(
                    f"the build did not finish within {self.seconds + _SLACK:g} s and was killed"
                ))
        while not self._paused and self._waiting and len(self._running) < self.jobs:
            candidate = self._waiting.popleft()
            with _no_ctrl_c():
                self._running[candidate] = self._start(candidate)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is compiled inside: a timing on the CPU wants every core."""
        start, self._paused = time.monotonic(), True
        for running in self._running.values():
            signal_tree(running.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            self._paused = False
            for running in self._running.values():
                running.deadline += time.monotonic() - start
                signal_tree(running.process.pid, signal.SIGCONT)

    def close(self) -> None:
        self._waiting.clear()
        for candidate in list(self._running):
            self._finish(candidate, BuildError("not needed any more"))

    # --- one build -------------------------------------------------------------------------------

    def _start(self, candidate: Candidate) -> _Running:
        ours, theirs = _FORK.Pipe(duplex=False)
        process = _FORK.Process(target=self._child, args=(candidate, theirs), daemon=False)
        process.start()
        theirs.close()
        return _Running(process, ours, time.monotonic() + self.seconds + _SLACK)

    def _child(self, candidate: Candidate, answer: Connection) -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _let_go(answer.fileno())
        with contextlib.suppress(BrokenPipeError):  # the parent is gone
            try:
                answer.send(self._build(candidate))
            except FagenError as error:
                answer.send((type(error), error.message, error.hint))
        os._exit(0)

    def _build(self, candidate: Candidate) -> Built:
        source = self.renderer.render(candidate)
        binary = self.builder.build(
            candidate, source, allow_spills=self.allow_spills, timeout=self.seconds
        )
        library = self.folder / f"{symbol(candidate)}.so"
        return Built(binary, link([Part(candidate, source, binary)], library))

    def _read(self, running: _Running) -> Built | FagenError:
        try:
            message = running.answer.recv()
        except EOFError:
            running.process.join(60.0)  # its end of the pipe is closed: it dies
            return BuildError(f"the build process died ({running.process.exitcode})")
        if isinstance(message, Built):
            return message
        kind, text, hint = message
        made: FagenError = kind(text, hint)
        return made

    def _finish(self, candidate: Candidate, result: Built | FagenError) -> None:
        running = self._running.pop(candidate)
        if running.process.is_alive():
            signal_tree(running.process.pid, signal.SIGKILL)
        running.process.join()
        running.answer.close()
        self._done[candidate] = _settled(result)


@contextlib.contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """It would reach a child that has not left the terminal's group yet: children are born so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _let_go(kept: int) -> None:
    """Give up what the parent has open: its locks, and the pipe whose end tells its worker that it
    is gone. The descriptors stay taken, so that no object of the parent can close a new file."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
                os.fstat(int(name))
                os.dup2(nothing, int(name), inheritable=False)


def _settled(result: Built | FagenError) -> Built | Failure | FagenError:
    """A missing compiler is everybody's problem; anything else is this candidate's."""
    if isinstance(result, Built | SetupError):
        return result
    stage = "render" if isinstance(result, RenderError) else "build"
    return Failure(stage, type(result).__name__, result.message)


def signal_tree(pid: int | None, number: signal.Signals) -> None:
    """Signal a process and all it started. Stopping each before looking for its children leaves
    none the time to start another."""
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if number != signal.SIGCONT:
            os.kill(pid, signal.SIGSTOP)
        for child in _children(pid):
            signal_tree(child, number)
        if number != signal.SIGSTOP:
            os.kill(pid, number)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
