"""Options of the whole suite.

``--complete`` (what ``make test`` passes) fails a run in which a set of tests that this machine can
run did not run. GPU detection asks for the device file; no CUDA library is loaded here.
"""

from __future__ import annotations

import argparse
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fagen.build import Builder
from fagen.compilers import find_nvcc
from fagen.errors import SetupError

TESTS = Path(__file__).parent
GPUS = len(list(Path("/dev").glob("nvidia[0-9]*")))
HAS_GPU = bool(GPUS) or Path("/dev/dxg").exists()
NEEDS_TWO = "fewer than two NVIDIA GPUs on this machine"
# The least number of tests that must have run, by folder; a GPU folder counts only with a GPU.
EXPECTED = {"unit": 400, "emulated": 250, "compile": 150, "conformance": 50, "faults": 30}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fagen")
    group.addoption("--complete", action="store_true", help="fail when a set did not run")
    group.addoption("--update-snapshots", action="store_true", help="rewrite tests/snapshots")
    group.addoption("--update-docs", action="store_true", help="rewrite docs/cli.md")
    group.addoption("--part", metavar="N/M", type=part, default=(1, 1),
                    help="every M-th test from the N-th on, so that runs of limited time add up")


def part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 2/5")
    return int(number), int(count)


def pytest_configure(config: pytest.Config) -> None:
    # How long an example takes is no fault of the code: the machine may have other work.
    settings.register_profile("patient", deadline=None,
                              suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background of a script:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # children would inherit that
    config.pluginmanager.register(Completeness(config), "completeness")


@pytest.fixture(autouse=True, scope="session")
def patient_compilers() -> Iterator[None]:
    """What is enough for a user is not on a machine that does several times as much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Builder.build.__kwdefaults__, "timeout", 900.0)
        yield


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, count = config.getoption("--part")
    if count > 1:
        chosen = items[number - 1::count]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    for item in items:
        if not HAS_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))


def has_nvcc() -> bool:
    try:
        find_nvcc()
    except SetupError:
        return False
    return True


def may_skip(reason: str, has_gpu: bool, has_nvcc: bool) -> bool:
    """Is the reason one that this machine explains?"""
    if NEEDS_TWO in reason:
        return GPUS < 2
    reason = reason.lower()
    if "nvidia gpu" in reason:
        return not has_gpu
    if "nvcc" in reason:
        return not has_nvcc
    return not ("postgresql" in reason or "browser" in reason)  # .ci/run installs them


class Completeness:
    """Counts what ran and what was skipped, by folder under tests/."""

    def __init__(self, config: pytest.Config) -> None:
        # Under xdist the workers report to the first process, which counts.
        self.active = config.getoption("--complete") and not hasattr(config, "workerinput")
        self.chosen = [Path(a.split("::")[0]).name for a in config.args]
        self.ran: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.has_nvcc = has_nvcc()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.outcome != "skipped":
            self.ran[report.nodeid.split("/")[1]] += 1
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2]
            if not may_skip(reason, HAS_GPU, self.has_nvcc):
                self.wrong.append(f"{report.nodeid} was skipped: {reason}")

    def too_few(self) -> list[str]:
        expected = EXPECTED | ({"gpu": 1} if HAS_GPU or self.chosen == ["gpu"] else {})
        if self.chosen != ["tests"]:
            expected = {name: expected[name] for name in self.chosen if name in expected}
        return [
            f"tests/{name}: {self.ran[name]} tests ran, at least {least} were expected"
            for name, least in expected.items() if self.ran[name] < least
        ]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.active:
            self.wrong += self.too_few()
            if self.wrong and not session.exitstatus:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.active:
            terminalreporter.section("what ran")
            for name, count in sorted(self.ran.items()):
                terminalreporter.write_line(f"tests/{name}: {count}")
            if not HAS_GPU:
                terminalreporter.write_line("tests/gpu: skipped, no NVIDIA GPU on this machine")
            for line in self.wrong:
                terminalreporter.write_line(f"incomplete: {line}", red=True)
