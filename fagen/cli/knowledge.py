"""Verbs about what was learned: list, explain, emit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fagen.cli import explanation, session
from fagen.cli import options as opt
from fagen.cli.output import print_json, table

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
    from fagen.shipment import told
    from fagen.wheel import wheel

    destination(output, name)
    renderer, builder = session.renderer(), session.builder()
    entries, left_out = _chosen(problem or [], target or [], tuned, renderer, allow_stale)
    if left_out:
        sys.stderr.write(f"{told(left_out)}\n")
    shipped = []
    for entry in entries:
        if not quiet:
            sys.stderr.write(f"{entry.problem} {entry.workload} on {entry.target.name}\n")
        shipped.append(_build(entry, renderer, builder))
    package = write(shipped, output, name)
    made = wheel(package, package.parent) if as_wheel else None
    if as_json:
        print_json(package=package, wheel=made, name=name or output.name, kernels=[
            _named(entry) for entry in entries
        ], left_out=[_named(entry) for entry in left_out])
    else:
        print(package if made is None else f"{package}\n{made}")


def _named(entry: Entry) -> dict[str, Any]:
    return {"problem": entry.problem, "target": entry.target.name, "workload": entry.workload}


def _chosen(
    slugs: list[str], targets: list[str], tuned: Path | None, renderer: Renderer, allow_stale: bool
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """What goes into the package, and what was asked for and is left out."""
    from fagen import devices, paths
    from fagen.families import FAMILIES
    from fagen.model import Problem
    from fagen.shipment import Known, chosen, without_stale
    from fagen.store import staleness

    problems = [Problem.parse(slug) for slug in slugs]
    here = () if targets else (devices.host(), *devices.gpus().gpus)
    store = session.store(tuned)
    known = (Known(entry, root == paths.tuned() != store.write) for root, entry in store.held())
    found = chosen(known, problems, targets, [device.target for device in here])
    if allow_stale:
        return tuple(k.entry for k in found), ()
    return without_stale(found, lambda e: staleness(e, renderer, FAMILIES), problems, targets)


def _build(entry: Entry, renderer: Renderer, builder: Builder) -> Shipped:
    from fagen.emit import Shipped
    from fagen.families import FAMILIES
    from fagen.kerneltable import Part
    from fagen.store import candidate

    kernel = candidate(entry, FAMILIES)
    source = renderer.render(kernel)
    return Shipped(Part(kernel, source, builder.build(kernel, source, allow_spills=True)), entry)
