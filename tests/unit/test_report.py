"""The report of past searches, in a browser too, and their export for other tools."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from fagen import charts, paths
from fagen.budget import Budget
from fagen.charts import Mark
from fagen.cli import main
from fagen.errors import StoreError
from fagen.export import export, invalidity
from fagen.families import families_for, family_named
from fagen.history import Search, searches
from fagen.model import Failure, Problem
from fagen.report import Page
from fagen.search import tune
from fagen.store import Store
from fagen.target import Target
from fagen.workload import Workload
from tests.unit.synthetic import FAMILY, PROBLEM, SLOWER, TARGET, WORKLOAD, FakePool

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)
OTHER = Problem.parse("bwd-bf16-d128-causal")
SHORT = Workload(1, 8, 8, 512, 512, 2.0)
KINDS = {1: "WrongResult", 4: "WorkerTimeout"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two problems that were tuned, with failures; the one with two families and two sizes."""
    folder = tmp_path_factory.mktemp("searched")
    store, journals = Store([], folder / "tuned"), folder / "journals"
    pool = FakePool(fails=lambda c: KINDS.get(c.config.stages, ""))
    budget = Budget(trials=40, heats=1, rounds=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        tune(PROBLEM, [WORKLOAD, SHORT], TARGET, [FAMILY, SLOWER], pool, store, journals, budget)
        tune(OTHER, [WORKLOAD], TARGET, [FAMILY], FakePool(), store, journals, budget)
    return folder


@pytest.fixture
def found(folder: Path) -> tuple[Search, ...]:
    return searches(folder / "journals")


@pytest.fixture
def page(folder: Path, found: tuple[Search, ...]) -> str:
    entries = Store([], folder / "tuned").entries()
    ceilings = {("synthetic", "bf16"): 700.0}
    return Page(found, entries, [FAMILY, SLOWER], ceilings).html()


# --- history -----------------------------------------------------------------------------------


def test_a_journal_says_what_was_searched(found: tuple[Search, ...]) -> None:
    other, search = found
    assert (search.problem, search.target, search.workloads) == (PROBLEM, TARGET, (WORKLOAD, SHORT))
    assert (other.problem, other.workloads) == (OTHER, (WORKLOAD,))
    assert [w.weight for w in search.workloads] == [1.0, 2.0]
    assert len(search.told) == 40
    assert [t.at for t in search.told] == sorted(t.at for t in search.told)
    assert {lane.family for lane in search.lanes} == {"synthetic", "slower"}
    best = search.best()
    assert best is not None
    assert best.trial.score == min(t.trial.score for t in search.told if t.trial.score)
    assert all(t.trial.seconds["run"] >= 0 for t in search.told)


def test_problems_are_chosen(folder: Path) -> None:
    assert [s.problem for s in searches(folder / "journals", [OTHER])] == [OTHER]
    assert searches(folder / "nowhere") == ()


def test_knobs_that_decide_stand_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    pool = FakePool(times=lambda c, w: 100.0 * c.config.unroll + c.config.stages)
    tune(PROBLEM, [WORKLOAD], TARGET, [FAMILY], pool, Store([], tmp_path), tmp_path / "j",
         Budget(trials=60, heats=1))
    ((lane,),) = (s.lanes for s in searches(tmp_path / "j"))
    assert max(lane.importance, key=lane.importance.__getitem__) == "unroll"
    assert lane.importance["unroll"] > 0.8
    assert 0 <= sum(lane.importance.values()) - lane.importance["unroll"] < 0.5


def test_a_journal_that_does_not_say_what_it_is_about_is_left_out(tmp_path: Path) -> None:
    from fagen.journal import Journal

    with Journal(tmp_path / "a.journal") as held:
        held.study("f", {"a": [1, 2]}, 0)
    assert searches(tmp_path) == ()


def test_optuna_opens_the_same_file(folder: Path) -> None:
    """So its dashboard does: it reads any storage that Optuna does."""
    path = next((folder / "journals").glob("bwd*.journal"))
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.load_study(study_name="synthetic", storage=storage)
    assert len(study.trials) >= 40
    assert study.best_value > 0
    assert set(study.best_params) == set(vars(FAMILY.default(OTHER, TARGET).config))


# --- the page ----------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Every tag with its attributes, and a complaint when one is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(page: str) -> None:
    tags = Tags(page)
    assert not tags.open
    assert "script" not in {tag for tag, _ in tags.seen}
    refers = [value for _, a in tags.seen for name, value in a.items() if name in ("src", "href")]
    assert refers == ["data:,"]
    assert not re.search(r"url\(|@import|https?:", page)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower().split()


def test_the_page_shows_what_was_asked_of_it(page: str) -> None:
    labels = [a["aria-label"] for tag, a in Tags(page).seen if tag == "svg"]
    assert labels.count("roofline") == 1
    assert labels.count("us over minutes") + labels.count("us over candidates tried") == 2
    assert labels.count("time by stage") == 2
    assert labels.count("failures by reason") == 1
    assert "importance of the knobs of synthetic" in labels
    assert {f"us by {name}" for name in vars(FAMILY.default(PROBLEM, TARGET).config)} < set(labels)
    assert f"final lap of {PROBLEM}" in labels
    assert "WrongResult" in page
    assert re.search(r"<code>fagen verify fwd-bf16-d128-causal@synthetic", page)
    assert re.search(r"\d+% of the matrix product", page)
    assert "matrix product: 700 TFLOP/s" in page
    assert "memory: 4,800 GB/s" in page


def test_text_from_outside_is_escaped() -> None:
    drawn = charts.progress([Mark(1, 2, "<b>&"), Mark(2, 1, "'")], "<x>", "y")
    assert "<b>" not in drawn
    assert "&lt;b&gt;&amp;" in drawn


@pytest.mark.parametrize("marks", [[Mark(1, 5)], [Mark(1, 5), Mark(1, 5)],
                                   [Mark(0, 1e-3), Mark(1e6, 1e9)]])
def test_charts_of_few_or_far_points_are_drawn_inside(marks: list[Mark]) -> None:
    for drawn in (charts.progress(marks, "x", "y"), charts.slices("k", [0, 1], marks[:1], "y")):
        ys = [float(y) for y in re.findall(r'c[xy]="([-\d.]+)"', drawn)]
        assert all(0 <= y <= charts.WIDTH for y in ys)


@pytest.mark.parametrize(("flops", "bandwidth"), [(0, 0), (0, 4800), (700, 0), (700, 4800)])
def test_the_roofline_is_drawn_with_the_ceilings_that_are_known(
    flops: float, bandwidth: float
) -> None:
    drawn = charts.roofline([Mark(100.0, 300.0), Mark(2000.0, 600.0)], flops, bandwidth)
    assert drawn.count('class="ceiling"') == bool(flops) + bool(bandwidth)
    places = [float(p) for p in re.findall(r'[xy][12]="([-\d.]+)"', drawn)]
    assert all(-1 <= p <= charts.WIDTH for p in places)


def browse(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER
    return subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={path.parent / 'profile'}",
         *options, path.as_uri()],
        capture_output=True, text=True, timeout=600, check=True,
    )


# Runs in a copy of the page: the boxes of what the browser drew, and what it could not load.
PROBE = """<pre id="probe"></pre><script>
addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("svg")].map(svg => {
    const marks = [...svg.querySelectorAll("circle, rect, path")];
    return [svg.getAttribute("aria-label"), svg.getBoundingClientRect().width,
            marks.filter(m => m.getBoundingClientRect().height > 0).length, marks.length];
  });
  const fetched = performance.getEntriesByType("resource").map(r => r.name);
  document.getElementById("probe").textContent = JSON.stringify({boxes, fetched});
});
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
def test_a_browser_draws_every_chart_and_misses_nothing(page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page)
    shot = browse(path, "--window-size=1100,2000", f"--screenshot={tmp_path / 'shot.png'}")
    assert "CONSOLE" not in shot.stderr
    assert (tmp_path / "shot.png").stat().st_size > 20_000
    path.write_text(page.replace("</body>", PROBE))
    dom = browse(path, "--dump-dom")
    assert "CONSOLE" not in dom.stderr
    (told,) = re.findall(r'<pre id="probe">(.*?)</pre>', dom.stdout)
    probe = json.loads(told)
    assert probe["fetched"] == []
    assert len(probe["boxes"]) == page.count("<svg")
    for label, width, drawn, marks in probe["boxes"]:
        assert width > 200, label
        assert drawn == marks > 0, label


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
def test_the_browser_would_complain(tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text("<script>nope()</script><img src='missing.png'>")
    assert "CONSOLE" in browse(path, "--dump-dom").stderr


# --- export ------------------------------------------------------------------------------------

WORDS = {"timeout", "compile", "runtime", "correctness", "constraints", "correct"}


def check_t4(document: dict) -> None:
    """The required fields of the T4 results schema 1.0.0, their types and its words."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", document["schema_version"])
    for result in document["results"]:
        assert {"configuration", "times", "invalidity", "correctness"} <= set(result)
        assert set(result) <= {"timestamp", "configuration", "objectives", "times", "invalidity",
                               "correctness", "measurements"}
        assert isinstance(result["configuration"], dict)
        assert isinstance(result["objectives"], list)
        assert isinstance(result["timestamp"], str)
        times = result["times"]
        assert set(times) <= {"compilation_time", "runtimes", "framework", "search_algorithm",
                              "validation"}
        assert isinstance(times["runtimes"], list)
        assert all(type(v) in (int, float) for k, v in times.items() if k != "runtimes")
        assert result["invalidity"] in WORDS
        assert type(result["correctness"]) in (int, float)
        for measurement in result["measurements"]:
            assert set(measurement) <= {"name", "value", "unit"}
            assert isinstance(measurement["name"], str)
            assert isinstance(measurement["unit"], str)
            assert type(measurement["value"]) in (int, float, str, list)


def test_t4_is_what_the_schema_says(found: tuple[Search, ...]) -> None:
    document = json.loads(export(found, "t4"))
    check_t4(document)
    results = document["results"]
    assert len(results) == 80
    assert {r["invalidity"] for r in results} == {"correct", "timeout", "correctness"}
    for r in results:
        names = {m["name"] for m in r["measurements"]}
        assert ("score" in names) == (r["invalidity"] == "correct") == bool(r["correctness"])
        assert set(r["objectives"]) == {"score"}
    with pytest.raises(AssertionError):
        check_t4({**document, "results": [{**results[0], "invalidity": "slow"}]})


@pytest.mark.parametrize(("failure", "word"), [
    (None, "correct"),
    (Failure("rule", "UsageError", ""), "constraints"),
    (Failure("render", "RenderError", ""), "compile"),
    (Failure("build", "BuildError", "error: nope"), "compile"),
    (Failure("build", "BuildError", "the compiler did not finish within 120 s"), "timeout"),
    (Failure("verify", "WrongResult", ""), "correctness"),
    (Failure("measure", "WorkerTimeout", ""), "timeout"),
    (Failure("measure", "WorkerCrashed", ""), "runtime"),
])
def test_every_failure_has_one_of_the_six_words(failure: Failure | None, word: str) -> None:
    assert invalidity(failure) == word
    assert word in WORDS


def test_csv_has_a_row_per_candidate_and_workload(found: tuple[Search, ...]) -> None:
    rows = list(csv.DictReader(io.StringIO(export(found, "csv"))))
    tried = [(s, t) for s in found for t in s.told]
    assert len(rows) == sum(len(t.trial.measurements) or 1 for _, t in tried)
    assert {r["workload"] for r in rows} == {str(WORKLOAD), str(SHORT), ""}
    for row in rows:
        assert (row["median_us"] != "") == (row["invalidity"] == "correct")
        assert row["stages"] in "1234"
        assert None not in row.values()


# --- the verbs ---------------------------------------------------------------------------------


@pytest.fixture
def data(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with searches of a real family, on the CPU table of targets."""
    monkeypatch.setenv("FAGEN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(paths, "tuned", lambda: tmp_path / "shipped")  # nothing comes with fagen
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    problem, target = Problem.parse("fwd-fp32-d64-causal"), Target.known("x86-64-v3")
    assert families_for(problem, target) == (family_named("cpu"),)
    pool = FakePool(times=lambda c, w: 100.0 + c.config.block_n)
    tune(problem, [SHORT], target, [family_named("cpu")], pool, Store([], tmp_path / "tuned"),
         tmp_path / "journals", Budget(trials=20, heats=1))
    return tmp_path


def test_report_writes_the_page(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = data / "a" / "page.html"
    assert main(["report", "fwd-fp32-d64-causal", "--no-ceiling", "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "fwd-fp32-d64-causal on x86-64-v3" in out.read_text()
    assert main(["report", "--no-ceiling", "-o", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["searches"], shown["entries"]) == (1, 1)


def test_export_prints_or_writes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export"]) == 0
    check_t4(json.loads(capsys.readouterr().out))
    out = data / "all.csv"
    assert main(["export", "--format", "csv", "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"] == 20
    assert out.read_text().startswith("problem,target,workload,")


@pytest.mark.parametrize(("words", "code", "says"), [
    (["export", "--format", "xml"], 2, "unknown format 'xml'"),
    (["export", "--json"], 2, "--json says where"),
    (["export", "fwd-fp32-d32-dense"], 1, "no search of fwd-fp32-d32-dense"),
    (["report", "fwd-fp32-d32-dense"], 1, "no search of fwd-fp32-d32-dense"),
    (["report", "--no-ceiling", "-o", "/proc/none/x.html"], 1, "cannot be written"),
])
def test_what_cannot_be_done_is_said(
    data: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    assert main(words) == code
    assert says in capsys.readouterr().err


def test_a_damaged_journal_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.journal").write_text('{"other": 1}\n')
    with pytest.raises(StoreError, match="not one of this fagen"):
        searches(tmp_path)
