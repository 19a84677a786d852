"""One HTML page about what was searched and learned: everything it needs is inside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import fagen
from fagen import charts
from fagen.charts import Mark
from fagen.families.base import Family
from fagen.history import Lane, Search, Told
from fagen.model import Entry, Failure
from fagen.store import candidate

_SLOWEST = 3.0  # points beyond this factor of the best are left out of charts, and counted
_REASON = 220  # characters of a compiler's complaint that are shown

# (target, dtype) -> TFLOP/s of a large matrix product, where it could be measured.
Ceilings = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Page:
    """What a report is made of."""

    searches: Sequence[Search]
    entries: Sequence[Entry]
    families: Sequence[Family]
    ceilings: Ceilings

    def html(self) -> str:
        body = [self._learned(), *map(self._search, self.searches)]
        if not self.searches:
            body.append("<p>No journal tells of these problems: they were tuned elsewhere, or by "
                        "another version of fagen.</p>")
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width">\n<link rel="icon" href="data:,">\n'
            f"<title>fagen report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<h1>fagen report</h1>\n<p>fagen {fagen.__version__}</p>\n"
            + "\n".join(body) + "\n</body>\n</html>\n"
        )

    # --- what was learned ----------------------------------------------------------------------

    def _learned(self) -> str:
        if not self.entries:
            return "<p>Nothing was learned yet.</p>"
        header = ("problem", "target", "workload", "us", "TFLOP/s", "of the matrix product",
                  "default slower by", "ties", "family", "date")
        rows = [self._entry(e) for e in self.entries]
        roofs = "".join(
            f"<h3>{escape(name)} {escape(dtype)}</h3>{self._roofline(name, dtype)}"
            for name, dtype in sorted({(e.target.name, e.problem.dtype) for e in self.entries})
        )
        return f"<h2>Learned</h2>{table(header, rows)}<h2>Roofline</h2>{roofs}"

    def _entry(self, e: Entry) -> tuple[Any, ...]:
        ceiling = self.ceilings.get((e.target.name, e.problem.dtype))
        slower = e.provenance.get("search", {}).get("default_slower")
        return (
            e.problem, e.target.name, e.workload, f"{e.measurement.median_us:,.1f}",
            f"{e.measurement.tflops:.3f}",
            f"{e.measurement.tflops / ceiling:.0%}" if ceiling else "-",
            "-" if slower is None else f"{slower:.1%}",
            sum(bool(r.get("tie")) for r in e.runners_up), e.family, e.provenance.get("date", "-"),
        )

    def _roofline(self, target: str, dtype: str) -> str:
        chosen = [e for e in self.entries if (e.target.name, e.problem.dtype) == (target, dtype)]
        flops = self.ceilings.get((target, dtype), 0.0)
        bandwidth = chosen[0].target.memory_gb_s
        marks = []
        for e in chosen:
            kernel = candidate(e, self.families)
            moved = kernel.family.kernel(e.problem.op).bytes_moved(kernel, e.workload)
            share = f", {e.measurement.tflops / flops:.0%} of the matrix product" if flops else ""
            marks.append(Mark(
                e.workload.flops(e.problem) / moved, e.measurement.tflops,
                f"{e.problem} {e.workload}: {e.measurement.tflops:.3f} TFLOP/s{share}",
                "point bwd" if e.problem.op == "bwd" else "point",
            ))
        known = [f"matrix product: {flops:.3g} TFLOP/s, measured" if flops else
                 "matrix product: not measured here",
                 f"memory: {bandwidth:,.0f} GB/s" if bandwidth else "memory: bandwidth not known"]
        return f"{charts.roofline(marks, flops, bandwidth)}<p>{'; '.join(known)}.</p>"

    # --- one search ----------------------------------------------------------------------------

    def _search(self, s: Search) -> str:
        failed = [t for t in s.told if t.trial.failure]
        best = s.best()
        says = f"{len(s.told)} candidates tried, {len(failed)} failed"
        if best and best.trial.score is not None:
            says += f"; the best took {best.trial.score:,.1f} us"
            says += " over all sizes, by weight" if len(s.workloads) > 1 else ""
        sizes = ", ".join(f"{w} (weight {w.weight:g})" for w in s.workloads)
        parts = [f"<h2>{escape(str(s.problem))} on {escape(s.target.name)}</h2>",
                 f"<p>{escape(sizes)}. {says}.</p>"]
        if best:
            parts += ["<h3>Best over time</h3>", _progress(s, best), self._standings(s)]
            parts += [_knobs(lane, s, best) for lane in s.lanes]
        parts += ["<h3>Time by stage</h3>", _stages(s), "<h3>Failures</h3>", _failures(failed)]
        return "<section>" + "".join(parts) + "</section>"

    def _standings(self, s: Search) -> str:
        """Of the final lap, as the entries keep it. 0% is the winner."""
        sizes: dict[str, list[str]] = {}  # chart -> its workloads
        for e in self.entries:
            same = e.problem == s.problem and e.target.facts() == s.target.facts()
            if same and e.runners_up and str(e.workload) in map(str, s.workloads):
                rows = [(f"winner: {e.family}", 0.0, 0.0, 0.0, "winner")]
                rows += [(_differs(r, e), 100 * r["low"], 100 * r["slower"], 100 * r["high"],
                          "tie" if r["tie"] else "lost") for r in e.runners_up]
                chart = charts.intervals(rows, f"final lap of {s.problem}")
                sizes.setdefault(chart, []).append(str(e.workload))
        if not sizes:
            return ""
        return ("<h3>Final lap</h3><p>Slower than the winner, with 95% intervals; filled marks are "
                "ties, the default is named. Only knobs that differ are shown.</p>"
                + "".join(f"<h4>{escape(', '.join(names))}</h4>{chart}"
                          for chart, names in sizes.items()))


def _differs(runner: dict[str, Any], entry: Entry) -> str:
    knobs = [f"{k}={str(v).lower()}" for k, v in runner["config"].items()
             if entry.config.get(k) != v or runner["family"] != entry.family]
    shown = " ".join(knobs)
    shown = shown if len(shown) <= 38 else shown[:37] + "\N{HORIZONTAL ELLIPSIS}"
    return ("default: " if runner.get("default") else "") + (shown or runner["family"])


def _says(told: Told) -> str:
    knobs = ",".join(f"{k}={str(v).lower()}" for k, v in told.config.items())
    return f"{told.trial.score:,.1f} us: {told.family}({knobs})"


def _shown(s: Search, best: Told) -> list[Told]:
    assert best.trial.score is not None
    limit = best.trial.score * _SLOWEST
    complete = (t for t in s.told if len(t.trial.measurements) == len(s.workloads))
    return [t for t in complete if t.trial.score is not None and t.trial.score <= limit]


def _progress(s: Search, best: Told) -> str:
    """Over the time that the search took; what lay between two runs of it does not count."""
    spent, at = 0.0, {}
    for number, t in enumerate(s.told, start=1):
        spent += t.trial.seconds.get("wait", 0.0) + t.trial.seconds.get("run", 0.0)
        at[id(t)] = (spent / 60, number)
    shown = _shown(s, best)
    timed = spent > 0
    marks = [Mark(at[id(t)][0 if timed else 1], t.trial.score or 0.0, _says(t)) for t in shown]
    chart = charts.progress(marks, "minutes" if timed else "candidates tried", "us")
    hidden = len(s.told) - len(shown)
    return chart + (f"<p>Not shown: {hidden} that failed, that were given up, or that took over "
                    f"{_SLOWEST:g} times as long as the best.</p>" if hidden else "")


def _knobs(lane: Lane, s: Search, best: Told) -> str:
    parts = []
    if lane.importance:
        rows = [(name, share, f"{share:.0%}") for name, share in
                sorted(lane.importance.items(), key=lambda item: -item[1])]
        parts += [f"<h3>Which knobs matter: {escape(lane.family)}</h3>",
                  "<p>The share of the spread of times that a knob explains by itself.</p>",
                  charts.bars(rows, f"importance of the knobs of {lane.family}")]
    shown = [t for t in _shown(s, best) if t.family == lane.family]
    drawn = []
    for knob, choices in lane.knobs.items():
        marks = [Mark(list(choices).index(t.config[knob]), t.trial.score or 0.0, _says(t))
                 for t in shown]
        if marks and len(choices) > 1:
            drawn.append(charts.slices(knob, choices, marks, "us"))
    if drawn:
        parts += [f"<h3>Knob by knob: {escape(lane.family)}</h3>",
                  f'<div class="grid">{"".join(drawn)}</div>']
    return "".join(parts)


def _stages(s: Search) -> str:
    total: dict[str, float] = defaultdict(float)
    for t in s.told:
        for stage, seconds in t.trial.seconds.items():
            total[stage] += seconds
    if not total:
        return "<p>This search did not note its times.</p>"
    device = total["wait"] + total["run"]
    rows = [
        ("verify and time", total["run"], _seconds(total["run"], device)),
        ("wait for builds", total["wait"], _seconds(total["wait"], device)),
        ("compile, in children", total["compile"], f"{total['compile']:.1f} s over all cores"),
    ]
    return charts.bars(rows, "time by stage")


def _seconds(seconds: float, of: float) -> str:
    return f"{seconds:.1f} s, {seconds / of:.0%} of the search" if of else f"{seconds:.1f} s"


def _failures(failed: Sequence[Told]) -> str:
    if not failed:
        return "<p>None.</p>"
    groups: dict[tuple[str, str], list[Failure]] = defaultdict(list)
    for t in failed:
        assert t.trial.failure
        groups[t.trial.failure.stage, t.trial.failure.kind].append(t.trial.failure)
    chart = charts.bars(
        [(f"{stage}: {kind}", float(len(g)), str(len(g))) for (stage, kind), g in groups.items()],
        "failures by reason",
    )
    rows = [(stage, kind, len(g), g[0].reason[:_REASON], Code(g[0].reproduce))
            for (stage, kind), g in groups.items()]
    return chart + table(("stage", "kind", "count", "the first one's reason", "see it again"), rows)


class Code(str):
    """Text that is shown as a command."""


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _cell(value: object) -> str:
    shown = escape(str(value))
    return f"<td><code>{shown}</code></td>" if isinstance(value, Code) else f"<td>{shown}</td>"


STYLE = """
:root { --ink: #1b1f24; --soft: #6b7280; --grid: #e3e6ea; --back: #fff; --blue: #2563a8;
  --orange: #c2570c; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3af; --grid: #30363d;
  --back: #14171a; --blue: #6cb0f5; --orange: #f0995a } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 1010px; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--grid) } h3 { margin: 1.6rem 0 .3rem }
h4 { margin: .6rem 0 0; font-weight: 500 }
p { color: var(--soft) } section { break-before: page }
table { border-collapse: collapse; font-size: 13px } .wide { overflow-x: auto }
th, td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--grid);
  vertical-align: top } th { font-weight: 600; white-space: nowrap }
code { font: 12px ui-monospace, monospace }
svg { max-width: 100%; height: auto; display: block } .grid { display: flex; flex-wrap: wrap }
text { font: 11px system-ui, sans-serif; fill: var(--soft) }
.title, .label { fill: var(--ink) } .grid line.grid, line.grid { stroke: var(--grid) }
line.axis { stroke: var(--soft) } .bar { fill: var(--blue) }
.point { fill: var(--blue); fill-opacity: .5 } .point.bwd { fill: var(--orange) }
path.best { fill: none; stroke: var(--orange); stroke-width: 2 }
line.best { stroke: var(--orange); stroke-width: 2.5 }
line.ceiling { stroke: var(--orange); stroke-width: 1.5; stroke-dasharray: 6 4 }
.range { stroke: var(--blue); stroke-width: 2 } .range.lost { stroke: var(--soft) }
.tie { fill: var(--blue) } .winner { fill: var(--orange) }
.lost { fill: var(--back); stroke: var(--soft); stroke-width: 1.5 }
"""
