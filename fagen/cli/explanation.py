"""The facts of ``fagen.explain`` as text."""

from __future__ import annotations

from typing import Any

from fagen.cli.output import pairs, size, table, thrown_away


def text(facts: dict[str, Any]) -> str:
    parts = [_head(facts), _knobs(facts), _measured(facts)]
    if facts["runners_up"]:
        parts.append(_runners_up(facts["runners_up"]))
    parts.append(_space(facts))
    return "\n\n".join(parts)


def _head(facts: dict[str, Any]) -> str:
    title = f"{facts['problem']} {facts['workload']} on {facts['target']}: {facts['family']}"
    return title + (f"\nstale: {facts['stale']}" if facts["stale"] else "")


def _knobs(facts: dict[str, Any]) -> str:
    return table(
        ("knob", "value", "default", "what it is"),
        ((k["name"], k["value"], k["default"], k["says"]) for k in facts["knobs"]),
    )


def _measured(facts: dict[str, Any]) -> str:
    result, memory = facts["result"], facts["memory"]
    search = facts["provenance"].get("search", {})
    rows = {
        "time": f"{result.median_us:.1f} us, quartiles {result.low_us:.1f} to {result.high_us:.1f}",
        "kept": f"{facts['kept']:.2%} of the scores",
        "speed": f"{result.tflops:.3f} TFLOP/s" + _share(facts["ceiling"]),
        "memory": f"{size(memory['moved_bytes'])} by the family's model ({memory['gb_s']:.3g} GB/s)"
        f", at least {size(memory['least_bytes'])}; {memory['flops_per_byte']:.0f} flop per byte",
        "footprint": _footprint(memory),
        "error": f"{result.error:.2g} of what is allowed, in {result.bound_by}",
    }
    if "default_slower" in search:
        gain = search["default_slower"]
        sure = "" if search.get("beats_default") else ", within noise"
        rows["default"] = f"{gain:.1%} slower{sure}" if gain else "this is the default"
    if search:
        kind = "all of them" if search.get("exhaustive") else "not all"
        rows["searched"] = f"{search.get('tried')} configs ({kind})" + _failures(search)
        rows["thrown away"] = thrown_away(search)
    rows["source"] = facts["provenance"].get("source", "-")
    return pairs(rows)


def _share(ceiling: dict[str, Any]) -> str:
    if not ceiling["tflops"]:
        return ""
    return (f", {ceiling['share']:.0%} of the {ceiling['tflops']:.3f} that a large matrix product "
            "reaches here")


def _footprint(memory: dict[str, Any]) -> str:
    used = memory["footprint_bytes"]
    if not used:
        return "not stated"
    if memory["shared_bytes"]:
        return f"{size(used)} of {size(memory['shared_bytes'])} shared memory per block"
    return (f"{size(used)} per thread: {used / memory['l1_bytes']:.1f} times L1, "
            f"{used / memory['l2_bytes']:.0%} of L2")


def _failures(search: dict[str, Any]) -> str:
    failures = search.get("failures") or {}
    shown = ", ".join(f"{count} at {stage}" for stage, count in failures.items())
    return f"; failed: {shown}" if shown else ""


def _runners_up(runners: list[dict[str, Any]]) -> str:
    return table(
        ("runner-up", "slower", "interval", "", "differs in"),
        ((place, f"{r['slower']:+.1%}", f"{r['low']:+.1%} to {r['high']:+.1%}",
          " ".join(word for word in ("tie", "default") if r.get(word)), _differs(r))
         for place, r in enumerate(runners, start=2)),
    )


def _differs(runner: dict[str, Any]) -> str:
    shown = ",".join(f"{k}={str(v).lower()}" for k, v in runner["differs"].items())
    return f"{runner['family']}({shown})"


def _space(facts: dict[str, Any]) -> str:
    space = facts["space"]
    rules = table(
        ("removed", "rule"), ((n, rule) for rule, n in space["removed_by_rule"].items())
    )
    return f"{space['points']} points, {space['legal']} legal\n{rules}"
