"""Verbs about what was learned: list, explain, emit."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fagen.cli import explanation, session
from fagen.cli import options as opt
from fagen.cli.output import print_json, table
from fagen.errors import StoreError

if TYPE_CHECKING:
    from fagen.build import Builder
    from fagen.emit import Shipped
    from fagen.model import Entry
    from fagen.render import Renderer

Tuned = Annotated[
    Path | None,
    typer.Option("--tuned", metavar="DIR", help="A folder of entries to look into first."),
]


def list_(
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME", help="Entries of this target only.")
    ] = None,
    tuned: Tuned = None,
    as_json: opt.Json = False,
) -> None:
    """List what was learned; say what is stale."""
    from fagen.families import FAMILIES
    from fagen.store import staleness

    renderer = session.renderer()
    entries = [
        e for e in session.store(tuned).entries() if target is None or e.target.name == target
    ]
    stale = [staleness(entry, renderer, FAMILIES) for entry in entries]
    if as_json:
        print_json(entries=[
            {"entry": entry, "stale": reason} for entry, reason in zip(entries, stale, strict=True)
        ])
        return
    if not entries:
        print("nothing was learned yet; fagen tune PROBLEM learns")
        return
    print(table(
        ("problem", "target", "workload", "family", "us", "TFLOP/s", "date", ""),
        ((e.problem, e.target.name, e.workload, e.family, f"{e.measurement.median_us:.1f}",
          f"{e.measurement.tflops:.3f}", e.provenance.get("date", "-"),
          f"stale: {reason}" if reason else "")
         for e, reason in zip(entries, stale, strict=True)),
    ))


def explain(
    problem: opt.Slug,
    target: opt.TargetName = None,
    gpu: opt.Gpu = None,
    workload: opt.WorkloadSlug = None,
    batch: opt.Batch = None,
    heads: opt.Heads = None,
    kv_heads: opt.KvHeads = None,
    seqlen: opt.Seqlen = None,
    seqlen_kv: opt.SeqlenKv = None,
    tuned: Tuned = None,
    ceiling: Annotated[
        bool,
        typer.Option("--ceiling/--no-ceiling", help="Time a large matrix product to compare with."),
    ] = True,
    as_json: opt.Json = False,
) -> None:
    """Say why the stored config won: tiles, footprint, share of peak, runners-up, rules."""
    from fagen import explain as explaining
    from fagen.families import FAMILIES
    from fagen.model import Problem

    parsed, wanted = Problem.parse(problem), opt.target(target, gpu)
    sizes = opt.workload(workload, batch, heads, kv_heads, seqlen, seqlen_kv)
    entry = explaining.entry_for(
        session.store(tuned), parsed, wanted, sizes or opt.DEFAULT_WORKLOAD, given=sizes is not None
    )
    facts = explaining.explain(
        entry, FAMILIES, session.renderer(), _ceiling(entry, gpu) if ceiling else None
    )
    if as_json:
        print_json(**facts)
    else:
        print(explanation.text(facts))


def _ceiling(entry: Entry, gpu: str | None) -> float | None:
    """TFLOP/s of a matrix product, if the entry's hardware is here."""
    from fagen import devices
    from fagen.ceiling import matmul_tflops

    device = devices.pick(devices.HOST if entry.target.kind == "cpu" else gpu)
    if device.target.facts() != entry.target.facts():
        return None
    return matmul_tflops(device.name, entry.problem.dtype, device.target.cores)


def emit(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The package's folder.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Import name. Default: DIR's.")
    ] = None,
    problem: Annotated[
        list[str] | None,
        typer.Option("--problem", metavar="PROBLEM", help="Only this one. Repeatable."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", metavar="NAME",
            help="Entries of this target, by its label. Repeatable. Default: what runs here.",
        ),
    ] = None,
    allow_stale: Annotated[
        bool, typer.Option("--allow-stale", help="Ship what changed since it was measured.")
    ] = False,
    as_wheel: Annotated[
        bool, typer.Option("--wheel", help="Also a wheel for pip, beside the folder.")
    ] = False,
    tuned: Tuned = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Build what was learned into a package: Python and C, with no need of fagen or a compiler."""
    from fagen.emit import destination
    from fagen.emit import emit as write
    from fagen.wheel import wheel

    destination(output, name)
    entries = _chosen(session.store(tuned).entries(), problem or [], target or [])
    renderer, builder = session.renderer(), session.builder()
    if not allow_stale:
        _refuse_stale(entries, renderer)
    shipped = []
    for entry in entries:
        if not quiet:
            sys.stderr.write(f"{entry.problem} {entry.workload} on {entry.target.name}\n")
        shipped.append(_build(entry, renderer, builder))
    package = write(shipped, output, name)
    made = wheel(package, package.parent) if as_wheel else None
    if as_json:
        print_json(package=package, wheel=made, name=name or output.name, kernels=[
            {"problem": e.problem, "target": e.target.name, "workload": e.workload}
            for e in entries
        ])
    else:
        print(package if made is None else f"{package}\n{made}")


def _chosen(
    entries: Iterable[Entry], problems: list[str], targets: list[str]
) -> tuple[Entry, ...]:
    """By problem and by target; without a target, what some device of this machine can run."""
    from fagen import devices
    from fagen.model import Problem

    wanted = {Problem.parse(slug) for slug in problems}
    here = () if targets else (devices.host(), *devices.gpus().gpus)
    entries = tuple(entries)
    chosen = tuple(
        e for e in entries
        if (not wanted or e.problem in wanted)
        and (e.target.name in targets or any(e.target.serves(d.target) for d in here))
    )
    missing = sorted(map(str, wanted - {e.problem for e in chosen}))
    if missing or not chosen:
        where = ", ".join(targets) or "this machine"
        raise StoreError(
            f"nothing was learned about {', '.join(missing) or 'any problem'} for {where}"
            f" ({len(entries)} entries in all)",
            f"fagen tune {' '.join(missing) or 'PROBLEM'}; fagen list shows what there is",
        )
    return chosen


def _refuse_stale(entries: Sequence[Entry], renderer: Renderer) -> None:
    from fagen.families import FAMILIES
    from fagen.store import staleness

    stale = [(e, reason) for e in entries if (reason := staleness(e, renderer, FAMILIES))]
    if stale:
        first, reason = stale[0]
        problems = " ".join(dict.fromkeys(str(entry.problem) for entry, _ in stale))
        raise StoreError(
            f"{len(stale)} of {len(entries)} entries are stale; {first.problem} "
            f"{first.workload} on {first.target.name}: {reason}",
            f"fagen tune {problems}, or pass --allow-stale",
        )


def _build(entry: Entry, renderer: Renderer, builder: Builder) -> Shipped:
    from fagen.emit import Shipped
    from fagen.families import FAMILIES
    from fagen.kerneltable import Part
    from fagen.store import candidate

    kernel = candidate(entry, FAMILIES)
    source = renderer.render(kernel)
    return Shipped(Part(kernel, source, builder.build(kernel, source, allow_spills=True)), entry)
