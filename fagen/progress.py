"""What a search is doing, on stderr: a bar on a terminal, plain lines elsewhere.

rich decides what a terminal is and heeds NO_COLOR and TERM=dumb.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from fagen.search import Event

_LINE_SECONDS = 5.0  # at most one plain line in this time, but for news


class Reporter:
    """A listener for ``fagen.search.tune``; a context, because a bar has to be taken down."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}  {task.fields[news]}"),
            TimeElapsedColumn(), console=self.console, disable=quiet or not self.is_terminal,
        )
        self._task: TaskID | None = None
        self._last_line = -_LINE_SECONDS
        self._best_us = 0.0

    @property
    def is_terminal(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        if self.quiet:
            return
        if event.kind == "start":
            self._start(event)
        elif self._task is not None:
            self._bar.update(self._task, completed=event.done, total=event.total, news=news(event))
        if event.kind == "again":
            self.say(f"{event.elapsed_s:6.1f} s  {event.says}")
        elif not self.is_terminal:
            self._plain(event)

    def _start(self, event: Event) -> None:
        self._best_us, self._last_line = 0.0, -_LINE_SECONDS
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(str(event.problem), total=event.total, news="")
        self.say(f"{event.problem}: {scope(event)}")

    def _plain(self, event: Event) -> None:
        """A line for news; otherwise one every few seconds."""
        better = 0 < event.best_us < (self._best_us or float("inf"))
        self._best_us = event.best_us or self._best_us
        if event.kind == "start" or (event.kind == "trial" and not better and not self._due()):
            return
        self._last_line = time.monotonic()
        done = f"{event.kind} {event.done}/{event.total}"
        self.say(f"{event.elapsed_s:6.1f} s  {done}  {news(event)}")

    def _due(self) -> bool:
        return time.monotonic() - self._last_line >= _LINE_SECONDS

    def say(self, text: str) -> None:
        """A line for people, above the bar if there is one."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True, markup=False)


def scope(event: Event) -> str:
    kind = "every legal config" if event.exhaustive else f"at most {event.total} configs"
    resumed = f", {event.resumed} known from an earlier run" if event.resumed else ""
    return kind + resumed


def news(event: Event) -> str:
    text = f"best {event.best_us:.1f} us" if event.best_us else "nothing timed yet"
    shown = event.candidate if event.kind == "done" else event.best
    if shown is not None:
        text += f" {shown.family.name}({shown.family.show(shown.config)})"
    text += f", {event.failures} failed" if event.failures else ""
    if event.kind == "done" and event.waited:
        text += f", the device waited for builds {event.waited:.0%} of the time"
    if event.kind in ("heat", "done") and event.thrown_away:
        text += f", {event.thrown_away} timings thrown away"
    if event.unbeaten:
        text += f"; not faster beyond noise than {' and '.join(event.unbeaten)}"
    if event.disturbed:
        text += f", {event.disturbed} rounds thrown away: something else used the device"
    return text
