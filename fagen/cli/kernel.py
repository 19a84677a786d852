"""Verbs about one kernel, one per stage of the pipeline: space, render, build, verify, measure."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fagen.cli import options as opt
from fagen.cli import session
from fagen.cli.output import pairs, plain, print_json, size, table
from fagen.errors import UsageError

if TYPE_CHECKING:
    from fagen.families.base import Space
    from fagen.model import Candidate

Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it to this file.")
]


def space(
    problem: opt.Slug,
    pattern_file: opt.PatternFile = None,
    target: opt.TargetName = None,
    gpu: opt.Gpu = None,
    family: opt.FamilyName = None,
    list_: Annotated[bool, typer.Option("--list", help="List the legal configs.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Show the search space: knobs, rules and how many points each rule removes."""
    from fagen.families.base import Space
    from fagen.model import Problem

    parsed, wanted = Problem.parse(problem), opt.target(target, gpu)
    spaces = [Space(parsed, wanted, f) for f in opt.families(parsed, wanted, family)]
    length = opt.DEFAULT_WORKLOAD.seqlen_q
    kept = parsed.pattern.share(length, length)
    if as_json:
        print_json(
            problem=parsed, target=wanted, kept=kept,
            families=[_space_facts(s, list_) for s in spaces],
        )
        return
    print(f"{parsed} on {wanted.name}")
    print(f"{parsed.pattern} keeps {kept:.2%} of {length} x {length} scores")
    for one in spaces:
        _print_space(one, list_)


def _space_facts(one: Space, with_list: bool) -> dict[str, object]:
    legal, removed = one.census()
    facts = {
        "family": one.family.name, "points": one.size, "legal": legal,
        "default": one.family.default(one.problem, one.target).config,
        "knobs": one.knobs(), "removed_by_rule": removed,
    }
    return facts | ({"configs": [c.config for c in one.legal()]} if with_list else {})


def _print_space(one: Space, with_list: bool) -> None:
    from dataclasses import fields

    legal, removed = one.census()
    default = one.family.default(one.problem, one.target).config
    print(f"\nfamily {one.family.name}: {one.family.says}")
    print(f"{one.size} points, {legal} legal\n")
    print(table(("knob", "default", "choices", "what it is"), (
        (f.name, getattr(default, f.name), " ".join(map(str, f.metadata["choices"])),
         f.metadata["says"])
        for f in fields(one.kernel.config)
    )))
    if removed:
        print("\n" + table(("removed", "rule"), ((n, says) for says, n in removed.items())))
    if with_list:
        print()
        for chosen in one.legal():
            print(one.family.show(chosen.config))


def render(
    problem: opt.Slug,
    pattern_file: opt.PatternFile = None,
    target: opt.TargetName = None,
    gpu: opt.Gpu = None,
    family: opt.FamilyName = None,
    set_: opt.Set = None,
    output: Output = None,
    as_json: opt.Json = False,
) -> None:
    """Print the source of one kernel."""
    from fagen.render import symbol

    chosen = opt.candidate(problem, opt.target(target, gpu), family, set_)
    source = session.renderer().render(chosen)
    if output is not None:
        _write(output, source.text)
    if as_json:
        print_json(**_identity(chosen), symbol=symbol(chosen), source=source, output=output)
    elif output is None:
        print(source.text, end="")
    else:
        print(output)


def build(
    problem: opt.Slug,
    pattern_file: opt.PatternFile = None,
    target: opt.TargetName = None,
    gpu: opt.Gpu = None,
    family: opt.FamilyName = None,
    set_: opt.Set = None,
    allow_spills: opt.AllowSpills = False,
    output: Output = None,
    as_json: opt.Json = False,
) -> None:
    """Compile one kernel and show what the compiler made of it. The target need not be here."""
    chosen = opt.candidate(problem, opt.target(target, gpu), family, set_)
    source = session.renderer().render(chosen)
    binary = session.builder().build(chosen, source, allow_spills=allow_spills)
    if output is not None:
        try:
            shutil.copyfile(binary.path, output)
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}") from error
    if as_json:
        print_json(**_identity(chosen), source_digest=source.digest, binary=binary, output=output)
        return
    facts: dict[str, object] = {
        "kernel": str(chosen), "binary": output or binary.path,
        "size": size(Path(binary.path).stat().st_size), "sha256": binary.sha256,
        "compiler": binary.compiler, "arch": binary.arch or "-",
        "compiled in": f"{binary.seconds:.2f} s" + (", found in the cache" * binary.cached),
    }
    if chosen.family.toolchain == "nvcc":
        facts |= {"registers": binary.registers, "spills": size(binary.spill_bytes),
                  "static shared memory": size(binary.shared_bytes)}
    if binary.advice:
        facts["advice"] = "; ".join(binary.advice)
    print(pairs(facts))


def verify(
    problem: opt.Slug,
    pattern_file: opt.PatternFile = None,
    target: opt.TargetName = None,
    gpu: opt.Gpu = None,
    family: opt.FamilyName = None,
    set_: opt.Set = None,
    workload: opt.WorkloadSlug = None,
    batch: opt.Batch = None,
    heads: opt.Heads = None,
    kv_heads: opt.KvHeads = None,
    seqlen: opt.Seqlen = None,
    seqlen_kv: opt.SeqlenKv = None,
    as_json: opt.Json = False,
) -> None:
    """Run one kernel against the reference: by default on a set of awkward sizes.

    The header of a pattern of your own is first compared with its formula.
    """
    from fagen import paths
    from fagen.patterns.user import UserPattern
    from fagen.proof import prove

    device, wanted = opt.device_and_target(target, gpu)
    chosen = opt.candidate(problem, wanted, family, set_)
    sizes = opt.workload(workload, batch, heads, kv_heads, seqlen, seqlen_kv)
    where: dict[str, object] = {} if sizes is None else {"workload": sizes}
    if isinstance(chosen.problem.pattern, UserPattern):
        where["tiles_proved"] = prove(chosen.problem.pattern, paths.templates())
    with session.pool(device) as pool:
        outcome = pool.verify(chosen, None if sizes is None else [sizes])
    _print_outcome(chosen, where, outcome, as_json)


def measure(
    problem: opt.Slug,
    pattern_file: opt.PatternFile = None,
    target: opt.TargetName = None,
    gpu: opt.Gpu = None,
    family: opt.FamilyName = None,
    set_: opt.Set = None,
    workload: opt.WorkloadSlug = None,
    batch: opt.Batch = None,
    heads: opt.Heads = None,
    kv_heads: opt.KvHeads = None,
    seqlen: opt.Seqlen = None,
    seqlen_kv: opt.SeqlenKv = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", help="How long to time.")
    ] = 1.0,
    as_json: opt.Json = False,
) -> None:
    """Verify one kernel, then time it."""
    opt.positive("--seconds", seconds)
    device, wanted = opt.device_and_target(target, gpu)
    chosen = opt.candidate(problem, wanted, family, set_)
    sizes = opt.workload(workload, batch, heads, kv_heads, seqlen, seqlen_kv)
    sizes = sizes or opt.DEFAULT_WORKLOAD
    with session.pool(device) as pool:
        outcome = pool.measure(chosen, sizes, seconds)
    _print_outcome(chosen, {"workload": sizes}, outcome, as_json)


def _print_outcome(
    chosen: Candidate, where: dict[str, object], outcome: object, as_json: bool
) -> None:
    """A verdict, a measurement or a failure; the last one is exit code 1."""
    from fagen.model import Failure

    failed = isinstance(outcome, Failure)
    if as_json:
        print_json(**_identity(chosen), **where, ok=not failed, outcome=outcome)
    else:
        verdict = "failed" if failed else "verified"
        print(pairs({verdict: str(chosen)} | where | plain(outcome)))
    if failed:
        raise typer.Exit(1)


def _identity(chosen: Candidate) -> dict[str, object]:
    return {"problem": chosen.problem, "target": chosen.target, "family": chosen.family.name,
            "config": chosen.config}


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
