"""Entries that are stale by their text only are told from those whose machine code changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fagen.build import Builder, Cache
from fagen.builds import Builds
from fagen.cli import main
from fagen.model import Candidate, Entry, Measurement, Source
from fagen.refresh import Finding, refresh
from fagen.store import Store, staleness
from fagen.workload import Workload
from tests.unit import toykernel
from tests.unit.toykernel import TARGET, TOY

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
SLUG, BACKWARD = "fwd-fp32-d8-dense", "bwd-fp32-d8-dense"


class Renderer:
    """The toy's texts with something before them."""

    def __init__(self, before: str = "") -> None:
        self.before = before

    def render(self, candidate: Candidate) -> Source:
        made = toykernel.source(candidate)
        return Source(self.before + made.text, f"{self.before}{made.digest}", made.language)


OLD, RENAMED, CHANGED, BROKEN = map(Renderer, (
    "", "static const int nobody_asks_for_this = 1;\n", "int everybody_sees_this = 1;\n", "?",
))


def entry(cache: Path, slug: str = SLUG, workload: str = "b1-h2-s64", **changes: Any) -> Entry:
    """What was measured, with the text of then."""
    candidate = toykernel.candidate(slug)
    source = OLD.render(candidate)
    binary = Builder(Cache(cache)).build(candidate, source)
    made = Entry(
        candidate.problem, TARGET, Workload.parse(workload), "toy", {"answer": 0},
        Measurement(1.0, 1.0, 1.0, 1, 0.0, "o"), {"sha256": binary.sha256},
        provenance={"source": source.digest, "compiler": binary.compiler},
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def looked_at(tmp_path: Path, renderer: Any, *entries: Entry) -> tuple[Finding, ...]:
    store = Store([], tmp_path / "tuned")
    for one in entries:
        store.put(one)
    builds = Builds(Builder(Cache(tmp_path / "cache")), renderer, 2, tmp_path, 60.0)
    told: list[tuple[int, int]] = []
    try:
        found = refresh(store, [TOY], builds, lambda done, total, f: told.append((done, total)))
    finally:
        builds.close()
    assert told == [(i + 1, len(found)) for i in range(len(found))]
    return found


def text(tmp_path: Path) -> list[str]:
    return (tmp_path / "tuned" / TARGET.name / f"{SLUG}.yaml").read_text().splitlines()


def test_the_same_machine_code_is_fresh_again(tmp_path: Path, cache: Path) -> None:
    given = [entry(cache, workload=sizes) for sizes in ("b1-h2-s64", "b1-h2-s128")]
    Store([], tmp_path / "tuned").put(*given)
    before = text(tmp_path)
    assert looked_at(tmp_path, OLD) == ()  # nothing is stale yet
    assert [f.verdict for f in looked_at(tmp_path, RENAMED)] == ["refreshed", "refreshed"]
    changed = [line for line in text(tmp_path) if line not in before]
    assert [line.split(":")[0].strip() for line in changed] == ["source", "source"]
    for now in Store([], tmp_path / "tuned").entries():
        assert staleness(now, RENAMED, [TOY]) == ""  # type: ignore[arg-type]
    assert looked_at(tmp_path, RENAMED) == ()


@pytest.mark.parametrize(("renderer", "changes", "verdict", "says"), [
    (CHANGED, {}, "stale", "the machine code changed"),
    (RENAMED, {"config": {"answer": 7}}, "stale", "the machine code changed"),
    (BROKEN, {}, "stale", "it does not build: "),
    (RENAMED, {"config": {"question": 7}}, "stale", "unknown knob 'question'"),
    (RENAMED, {"family": "abacus"}, "stale", "names the family 'abacus'"),
    (RENAMED, {"provenance": {"source": "1", "compiler": "g++ 1.0"}}, "not comparable",
     "built by g++ 1.0; here is g++"),
    (RENAMED, {"provenance": {"source": "1"}}, "not comparable", "built by an unknown compiler"),
])
def test_anything_else_stays_as_it_is(
    tmp_path: Path, cache: Path, renderer: Renderer, changes: dict[str, Any], verdict: str,
    says: str,
) -> None:
    (found,) = looked_at(tmp_path, renderer, given := entry(cache, **changes))
    assert found.verdict == verdict
    assert says in found.says
    assert [e.provenance for e in Store([], tmp_path / "tuned").entries()] == [given.provenance]


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def tuned(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAGEN_CACHE_DIR", str(cache))
    monkeypatch.setenv("FAGEN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("fagen.families.FAMILIES", (TOY,))
    monkeypatch.setattr("fagen.cli.session.renderer", lambda: RENAMED)
    store = Store([], tmp_path / "tuned")
    store.put(entry(cache))
    store.put(entry(cache, BACKWARD, provenance={"source": "1", "compiler": "g++ 1.0"}))
    return tmp_path / "tuned"


def test_the_command_says_what_it_did(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refresh"]) == 0
    said = capsys.readouterr()
    assert f"{SLUG} b1-h2-s64 on anywhere: refreshed" in said.err
    assert "1/2" in said.err
    assert "1 not comparable, 1 refreshed" in said.out
    assert main(["refresh", str(tuned), "--json", "-q", "--jobs", "1"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    told = json.loads(said.out)
    assert told["counts"] == {"not comparable": 1}
    assert [(e["problem"], e["verdict"]) for e in told["entries"]] == [
        (BACKWARD, "not comparable")
    ]
    shutil.rmtree(tuned)
    assert main(["refresh", "-q"]) == 0
    assert capsys.readouterr().out == "no entry is stale\n"


def test_bad_options_are_refused(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refresh", "--jobs", "0"]) == 2
    assert "--jobs 0 is not positive" in capsys.readouterr().err
    assert main(["refresh", str(tuned / "nowhere")]) == 1
    assert "is not a folder" in capsys.readouterr().err
