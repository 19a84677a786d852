"""Progress goes to stderr: bars on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from fagen.families import family_named
from fagen.model import Problem
from fagen.progress import Reporter
from fagen.search import Event
from fagen.target import Target

PROBLEM = Problem.parse("fwd-fp32-d64-causal")
BEST = family_named("cpu").default(PROBLEM, Target.known("x86-64-v3"))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """It stands still."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("fagen.progress.time", clock)
    return clock


def event(kind: str, done: int, best_us: float = 0.0, **more: object) -> Event:
    return Event(kind, PROBLEM, done, 40, 1.5, best=BEST, best_us=best_us, **more)  # type: ignore[arg-type]


def shown(*events: Event, quiet: bool = False, terminal: bool = False) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200, _environ={"TERM": "xterm"})
    with Reporter(quiet, console) as reporter:
        for one in events:
            reporter(one)
    return text.getvalue()


STORY = (event("start", 0), event("trial", 1, 90.0), event("trial", 2, 90.0),
         event("trial", 3, 80.0, failures=1), event("done", 3, 80.0, failures=1))


def test_piped_output_is_plain_lines() -> None:
    lines = shown(*STORY).splitlines()
    assert lines[0] == "fwd-fp32-d64-causal: at most 40 configs"
    assert "trial 1/40  best 90.0 us cpu(q_vectors=2" in lines[1]
    assert "trial 3/40  best 80.0 us" in lines[2]  # the second trial brought nothing new
    assert lines[3].strip().startswith("1.5 s  done 3/40")
    assert lines[3].endswith(", 1 failed")
    assert "\x1b" not in "".join(lines)


def test_without_news_there_is_a_line_every_few_seconds(clock: SimpleNamespace) -> None:
    text = io.StringIO()
    with Reporter(False, Console(file=text, width=200)) as reporter:
        for one in STORY[:3]:
            reporter(one)
        clock.now += 60.0
        reporter(event("trial", 4, 90.0))
    assert [line.partition("trial ")[2][:1] for line in text.getvalue().splitlines()[1:]] == [
        "1", "4"]


def test_a_terminal_gets_a_bar() -> None:
    text = shown(*STORY, terminal=True)
    assert "3/40" in text
    assert "\x1b[" in text


def test_quiet_is_silent() -> None:
    assert shown(*STORY, quiet=True) == ""
    assert shown(*STORY, quiet=True, terminal=True).strip("\x1b[?25lh\n") == ""


def test_what_was_known_before_is_said() -> None:
    text = shown(event("start", 7, resumed=7, exhaustive=True))
    assert text == "fwd-fp32-d64-causal: every legal config, 7 known from an earlier run\n"


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert Reporter().console.no_color


def test_rounds_under_other_load_are_told() -> None:
    text = shown(event("start", 0), event("heat", 1, 80.0, disturbed=5))
    assert "5 rounds thrown away: something else used the device" in text


def test_what_is_timed_again_is_told_in_words() -> None:
    says = "the reference ran 18% slow: something else used the device; 3 candidates"
    text = shown(event("start", 0), event("again", 9, 80.0, says=says, thrown_away=3),
                 event("trial", 10, 79.0, thrown_away=3), event("done", 40, 79.0, thrown_away=3))
    lines = text.splitlines()
    assert lines[1] == f"   1.5 s  {says}"
    assert "thrown" not in lines[2]
    assert lines[3].endswith(", 3 timings thrown away")
    on_terminal = shown(event("start", 0), event("again", 9, 80.0, says=says), terminal=True)
    assert "something else used the device" in on_terminal
