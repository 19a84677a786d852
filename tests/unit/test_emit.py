"""What is written: the files, the manifest, the same bytes each time, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fagen import paths
from fagen.cli import app
from fagen.devices import host
from fagen.emit import Shipped, emit
from fagen.errors import FagenError, StoreError, UsageError
from fagen.families import families_for
from fagen.link import find_cc
from fagen.model import Entry, Measurement, Problem
from fagen.render import Renderer
from fagen.store import Store
from fagen.workload import Workload
from tests.unit import toykernel

MEASURED = Measurement(10.0, 9.0, 11.0, 5, 0.25, "lse", tflops=1.5)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def shipped(slug: str, workload: str = "b1-h2-s64") -> Shipped:
    part = toykernel.part(slug, paths.cache())
    candidate = part.candidate
    entry = Entry(candidate.problem, candidate.target, Workload.parse(workload), "toy",
                  {"answer": 0}, MEASURED, provenance={"date": "2026-01-01"})
    return Shipped(part, entry)


@pytest.fixture(scope="module")
def kernels() -> list[Shipped]:
    return [shipped("fwd-fp32-d8-dense"), shipped("fwd-fp32-d8-causal"),
            shipped("fwd-fp32-d8-dense", "b1-h2-s4096")]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_twice_the_same_bytes_in_any_order(kernels: list[Shipped], tmp_path: Path) -> None:
    one = emit(kernels, tmp_path / "a" / "pack")
    two = emit(kernels[::-1], tmp_path / "b" / "elsewhere", "pack")
    assert contents(one) == contents(two)
    everything = b"".join(contents(one).values())
    assert str(tmp_path).encode() not in everything
    assert str(paths.cache()).encode() not in everything


def test_the_manifest_says_what_is_inside(kernels: list[Shipped], tmp_path: Path) -> None:
    folder = emit(kernels, tmp_path / "pack")
    manifest = json.loads((folder / "manifest.json").read_text())
    library = (folder / manifest["library"]).read_bytes()
    assert manifest["library"] == "libpack.so"
    assert manifest["sha256"] == hashlib.sha256(library).hexdigest()
    assert [(k["problem"], k["workload"]) for k in manifest["kernels"]] == [
        ("fwd-fp32-d8-causal", "b1-h2-s64"), ("fwd-fp32-d8-dense", "b1-h2-s4096"),
        ("fwd-fp32-d8-dense", "b1-h2-s64"),
    ]
    kernel = manifest["kernels"][0]
    built = next(s.part for s in kernels if str(s.entry.problem) == kernel["problem"])
    assert kernel["binary"]["sha256"] == built.binary.sha256
    assert kernel["source"] == built.source.digest
    assert kernel["speed"] == {"median_us": 10.0, "tflops": 1.5}
    assert kernel["error"] == {"of_bound": 0.25, "bound_by": "lse"}
    assert kernel["provenance"] == {"date": "2026-01-01"}
    assert {"py.typed", "__init__.py", "include/fagen.h", "include/params.h"} <= set(
        contents(folder))


def test_the_header_stands_alone(kernels: list[Shipped], tmp_path: Path) -> None:
    """In C and in C++, from the package's own folder."""
    folder = emit(kernels, tmp_path / "pack")
    for language, standard in (("c", "c11"), ("c++", "c++17")):
        subprocess.run(
            [find_cc(), "-x", language, f"-std={standard}", "-Wall", "-Wextra", "-Werror",
             "-fsyntax-only", "-I", str(folder / "include"), "-"],
            input='#include "fagen.h"\n', text=True, check=True,
        )


def test_an_older_package_is_replaced_and_nothing_else(
    kernels: list[Shipped], tmp_path: Path
) -> None:
    folder = emit(kernels[:1], tmp_path / "pack")
    (folder / "left over").write_text("x")
    emit(kernels, folder)
    assert not (folder / "left over").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["pack"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a package that fagen wrote"):
        emit(kernels, mine)
    assert (mine / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["my-package", "class", "../x", "", "x" * 65, "a b", "a;b"])
def test_a_name_must_be_importable(kernels: list[Shipped], tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be imported"):
        emit(kernels, tmp_path / "pack" if name else Path("/"), name)


def test_what_cannot_be_emitted(kernels: list[Shipped], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no kernel"):
        emit([], tmp_path / "pack")
    with pytest.raises(UsageError, match="given twice"):
        emit([kernels[0], kernels[0]], tmp_path / "pack")
    with pytest.raises(FagenError, match="cannot be written"):
        emit(kernels, Path("/proc/nowhere/pack"))
    gone = replace(kernels[0].part, binary=replace(kernels[0].part.binary, path="/nonexistent"))
    with pytest.raises(FagenError):
        emit([replace(kernels[0], part=gone)], tmp_path / "pack")
    assert not list(tmp_path.iterdir())


def stored(slug: str, root: Path, tuned_today: bool) -> Entry:
    """The default of a host kernel as an entry in a folder of what was learned."""
    problem, target = Problem.parse(slug), host().target
    candidate = families_for(problem, target)[0].default(problem, target)
    source = Renderer(paths.templates()).render(candidate).digest if tuned_today else "0" * 64
    entry = Entry(problem, target, Workload(1, 2, 2, 64, 64), candidate.family.name,
                  asdict(candidate.config), MEASURED, provenance={"source": source})
    Store([], root).put(entry)
    return entry


def fagen_emit(*words: str) -> Result:
    return CliRunner().invoke(app, ["emit", *words, "--json"])


def test_the_verb(tmp_path: Path) -> None:
    """From an entry in a folder of what was learned to a package and its wheel, twice the same."""
    slug, tuned = "fwd-fp32-d16-dense", tmp_path / "tuned"
    stored(slug, tuned, tuned_today=True)

    def run(folder: str) -> dict[str, Any]:
        done = fagen_emit("-o", str(tmp_path / folder / "pack"), "--wheel", "--tuned", str(tuned),
                          "--problem", slug)
        assert done.exit_code == 0, done.output
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    one, two = run("one"), run("two")
    assert contents(Path(one["package"])) == contents(Path(two["package"]))
    assert Path(one["wheel"]).read_bytes() == Path(two["wheel"]).read_bytes()
    assert [k["problem"] for k in one["kernels"]] == [slug]
    assert one["left_out"] == []


def test_what_was_shipped_and_is_stale_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no fault of the user, who tuned something else; unless it was asked for by name."""
    shipped, mine = tmp_path / "shipped", tmp_path / "mine"
    monkeypatch.setattr(paths, "tuned", lambda: shipped)
    stored("fwd-fp32-d16-causal", shipped, tuned_today=False)
    stored("fwd-fp32-d16-dense", mine, tuned_today=True)
    words = ("-o", str(tmp_path / "pack"), "--tuned", str(mine))
    done = fagen_emit(*words)
    assert done.exit_code == 0, done.output
    assert [k["problem"] for k in json.loads(done.stdout)["kernels"]] == ["fwd-fp32-d16-dense"]
    assert [k["problem"] for k in json.loads(done.stdout)["left_out"]] == ["fwd-fp32-d16-causal"]
    assert "1 stale entries that were shipped with fagen (fwd-fp32-d16-causal on" in done.stderr
    asked = fagen_emit(*words, "--problem", "fwd-fp32-d16-causal")
    assert isinstance(asked.exception, StoreError)
    assert "--allow-stale" in str(asked.exception.hint)
    # A folder that is written to is the user's own, the shipped one too.
    own = fagen_emit("-o", str(tmp_path / "pack"), "--tuned", str(shipped))
    assert isinstance(own.exception, StoreError)
    done = fagen_emit(*words, "--allow-stale")
    assert len(json.loads(done.stdout)["kernels"]) == 2
