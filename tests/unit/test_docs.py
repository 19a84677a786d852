"""The documents say what is so: links lead somewhere, commands exist, the reference is current."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
import typer

import fagen
from fagen.cli import VERBS, app, main

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
REFERENCE = ROOT / "docs" / "cli.md"
NAMES = [verb.__name__.strip("_") for verb in VERBS]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The fagen commands of a page's shell blocks."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fagen ")]


def reference(capsys: pytest.CaptureFixture[str]) -> str:
    text = ["# Commands", "", "Written by `make docs` from `--help`.", ""]
    for words in ([], *([name] for name in NAMES)):
        capsys.readouterr()
        assert main([*words, "--help"]) == 0
        shown = capsys.readouterr().out.rstrip()
        title = " ".join(["fagen", *words])
        text += [f"## {title}", "", "```text", *(line.rstrip() for line in shown.splitlines()),
                 "```", ""]
    return "\n".join(text)


def test_the_reference_is_current(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "96")
    today = reference(capsys)
    if request.config.getoption("--update-docs"):
        REFERENCE.write_text(today)
    # Line breaks are Typer's, and its versions differ in them.
    assert REFERENCE.read_text().split() == today.split(), "run: make docs"


def test_every_option_says_what_it_does() -> None:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for option in command.params:
            assert getattr(option, "help", None), f"{name}: {option.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_in_documents_exist(page: Path) -> None:
    group = typer.main.get_command(app)
    for words in commands(page):
        assert words[0] in NAMES, words
        command = group.commands[words[0]]  # type: ignore[attr-defined]
        known = {flag for option in command.params for flag in (*option.opts,
                                                               *option.secondary_opts)}
        ours = list(itertools.takewhile(lambda word: word != "--", words))
        flags = {word.partition("=")[0] for word in ours if word.startswith("-")}
        assert flags <= known, f"{words}: {flags - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_targets_in_documents_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", page.read_text())) <= targets


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == fagen.__version__


def test_the_project_has_the_same_version() -> None:
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(),
                            re.MULTILINE)
    assert version == fagen.__version__
