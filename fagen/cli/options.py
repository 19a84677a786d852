"""The options that several verbs share, and what they become: model objects."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fagen.errors import SetupError, UsageError
from fagen.model import Candidate, Problem
from fagen.patterns import PATTERNS, user
from fagen.target import Target
from fagen.workload import Workload

if TYPE_CHECKING:
    from fagen.devices import Device
    from fagen.families.base import Family

DEFAULT_WORKLOAD = Workload(1, 8, 8, 2048, 2048)

Slug = Annotated[
    str,
    typer.Argument(
        metavar="PROBLEM",
        help="OP-DTYPE-dHEAD_DIM[-PATTERN][+FEATURE], for example fwd-bf16-d128-causal.",
        show_default=False,
    ),
]


def _use_pattern_file(path: Path | None) -> Path | None:
    """Child processes read the same file."""
    if path is not None:
        pattern = user.read(path)
        if any(re.fullmatch(row.regex, pattern.name, re.ASCII) for row in PATTERNS):
            raise UsageError(f"{path}: {pattern.name} is the name of a pattern that fagen has",
                             "another name after // fagen pattern:")
        others = [os.environ[user.VARIABLE]] if os.environ.get(user.VARIABLE) else []
        os.environ[user.VARIABLE] = os.pathsep.join([*others, pattern.file])
    return path


PatternFile = Annotated[
    Path | None,
    typer.Option(
        "--pattern-file", metavar="FILE", callback=_use_pattern_file,
        help="A pattern of your own: a header that names it, its type and its formula.",
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option("--target", metavar="NAME", help="A known target (see fagen devices) or 'host'."),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu", metavar="GPU",
        help="Index or UUID; 'none' for the host CPU. Default: the first GPU, else the host.",
    ),
]
Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpu", metavar="GPU",
        help="Index or UUID, several (0,2) or 'all'; 'none' for the host CPU. Default: the first "
        "GPU, else the host.",
    ),
]
FamilyName = Annotated[
    str | None,
    typer.Option("--family", metavar="NAME", help="Kernel family. Default: the preferred one."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KNOB=VALUE", help="Change a knob of the default. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")]
AllowSpills = Annotated[
    bool, typer.Option("--allow-spills", help="Accept kernels that spill registers.")
]

# Sizes. None means not given, so that --workload and sizes can be told apart.
Batch = Annotated[int | None, typer.Option("--batch", metavar="N", help="Default: 1.")]
Heads = Annotated[int | None, typer.Option("--heads", metavar="N", help="Query heads (8).")]
KvHeads = Annotated[
    int | None, typer.Option("--kv-heads", metavar="N", help="Key/value heads (as --heads).")
]
Seqlen = Annotated[int | None, typer.Option("--seqlen", metavar="N", help="Queries (2048).")]
SeqlenKv = Annotated[
    int | None, typer.Option("--seqlen-kv", metavar="N", help="Keys (as --seqlen).")
]
WorkloadSlug = Annotated[
    str | None,
    typer.Option(
        "--workload", metavar="SIZES",
        help="All sizes in one word: bBATCH-hHEADS[xKV_HEADS]-sSEQLEN[xSEQLEN_KV]"
             "[-tTOTAL[xTOTAL_KV]][-kKEPT]; -t: packed sequences, the longest of SEQLEN, TOTAL in "
             "all; -k: percent that a mask drawn for a pattern of the call keeps.",
    ),
]


def workload(
    slug: str | None, batch: int | None, heads: int | None, kv_heads: int | None,
    seqlen: int | None, seqlen_kv: int | None,
) -> Workload | None:
    """The sizes asked for; None where none was given."""
    sizes = (batch, heads, kv_heads, seqlen, seqlen_kv)
    if slug is not None:
        if any(size is not None for size in sizes):
            raise UsageError(
                f"--workload {slug} and single sizes were both given", "give one or the other"
            )
        return Workload.parse(slug)
    if all(size is None for size in sizes):
        return None
    base = DEFAULT_WORKLOAD
    heads = base.heads if heads is None else heads
    seqlen = base.seqlen_q if seqlen is None else seqlen
    for name, size in (("batch", batch), ("heads", heads), ("kv-heads", kv_heads),
                       ("seqlen", seqlen), ("seqlen-kv", seqlen_kv)):
        if size is not None and size < 1:
            raise UsageError(f"--{name} {size} is not positive", "sizes start at 1")
    return Workload(
        base.batch if batch is None else batch,
        heads,
        heads if kv_heads is None else kv_heads,
        seqlen,
        seqlen if seqlen_kv is None else seqlen_kv,
    )


def positive(option: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise UsageError(f"{option} {value:g} is not positive", f"leave out {option}, or raise it")


def target(name: str | None, gpu: str | None) -> Target:
    """What to generate for; it need not be in this machine."""
    from fagen import devices

    if name is None:
        return devices.pick(gpu).target
    if gpu is not None:
        raise UsageError(f"--target {name} and --gpu {gpu} were both given", "give one of them")
    return devices.host().target if name == "host" else Target.known(name)


def device_and_target(name: str | None, gpu: str | None) -> tuple[Device, Target]:
    """What to run on, and what to generate for: the device itself unless --target says less."""
    from fagen import devices

    if name is None:
        device = devices.pick(gpu)
        return device, device.target
    wanted = devices.host().target if name == "host" else Target.known(name)
    device = devices.pick(devices.HOST if wanted.kind == "cpu" and gpu is None else gpu)
    if not wanted.serves(device.target):
        raise SetupError(
            f"code for {wanted.name} does not run on {device.says}: {_misfit(wanted, device)}",
            "fagen build compiles for targets that are not here",
        )
    return device, wanted


def _misfit(wanted: Target, device: Device) -> str:
    has = device.target
    if wanted.kind != has.kind:
        return f"{wanted.kind} code, {has.kind} device"
    if wanted.kind == "cpu":
        return "it lacks " + ", ".join(sorted(set(wanted.isa) - set(has.isa)))
    versions = (f"{major}.{minor}" for major, minor in (wanted.capability, has.capability))
    return "compute capability {} against {}".format(*versions)


def families(problem: Problem, wanted: Target, name: str | None) -> tuple[Family, ...]:
    """The families to choose from, preferred first; never empty."""
    from fagen.families import FAMILIES, families_for, family_named

    if name is not None:
        family = family_named(name)
        if not family.runs_on(wanted):
            raise UsageError(
                f"family {name} does not run on {wanted.name}", f"{name}: {family.says}"
            )
        family.kernel(problem.op)
        return (family,)
    found = families_for(problem, wanted)
    if not found:
        raise UsageError(
            f"no family serves {problem} on {wanted.name}",
            "families: " + "; ".join(f"{f.name} ({f.says})" for f in FAMILIES),
        )
    return found


def candidate(
    slug: str, wanted: Target, family_name: str | None, knobs: list[str] | None
) -> Candidate:
    """The family's default for the problem with --set applied, checked against every rule."""
    from fagen.families.base import parse_config

    problem = Problem.parse(slug)
    family = families(problem, wanted, family_name)[0]
    chosen = family.default(problem, wanted)
    given = dict(map(_knob, knobs or ()))
    typed = parse_config(type(chosen.config), given)
    chosen = chosen.with_config(**{name: getattr(typed, name) for name in given})
    broken = family.broken_rules(chosen)
    if broken:
        raise UsageError(
            f"{chosen} breaks {len(broken)} rule(s): " + "; ".join(rule.says for rule in broken),
            f"fagen space {slug} --family {family.name} --list shows the legal configs",
        )
    return chosen


def _knob(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"cannot read --set {text!r}", "KNOB=VALUE, for example block_n=64")
    return name, value


def readable(path: Path, option: str) -> Path:
    if not path.is_file():
        raise UsageError(f"{option} {path}: there is no such file")
    return path
