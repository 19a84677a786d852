"""The verb that searches: tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fagen import paths
from fagen.cli import options as opt
from fagen.cli import session
from fagen.cli.output import print_json, table, thrown_away
from fagen.errors import RunError, UsageError

if TYPE_CHECKING:
    from fagen.model import Entry
    from fagen.spec import Job
    from fagen.store import Store
    from fagen.target import Target
    from fagen.workload import Workload

Problems = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PROBLEM]...", help="What to tune, unless a file says it.",
                   show_default=False),
]
Spec = Annotated[
    Path | None, typer.Option("--spec", metavar="FILE", help="YAML file of problems and sizes.")
]
HfConfig = Annotated[
    Path | None,
    typer.Option("--hf-config", metavar="FILE", help="config.json of a Hugging Face model."),
]
From = Annotated[
    Path | None,
    typer.Option("--from", metavar="FILE", help="What fagen capture saw (.jsonl, or its spec)."),
]
Suite = Annotated[
    str | None, typer.Option("--suite", metavar="NAME", help="The cells of a benchmark's suite.")
]
Ops = Annotated[
    list[str] | None,
    typer.Option(
        "--op", metavar="OP", help="With --hf-config or --suite: fwd or bwd. Default: both."
    ),
]
Trials = Annotated[
    int | None, typer.Option("--trials", metavar="N", help="Distinct configs, at most.")
]
Minutes = Annotated[
    float | None, typer.Option("--minutes", metavar="M", help="Per problem, at most.")
]
Effort = Annotated[str, typer.Option("--effort", metavar="LEVEL", help="quick, normal or full.")]
Patience = Annotated[
    int | None, typer.Option("--patience", metavar="N", help="Stop after N trials without gain.")
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Forget an earlier run. Default: go on from it.")
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", metavar="N", help="Builds at a time. Default: all cores.")
]
StorageUrl = Annotated[
    str | None,
    typer.Option("--storage", metavar="URL",
                 help="Share the search: postgresql://user@host/database."),
]


def tune(
    problems: Problems = None,
    spec: Spec = None,
    hf_config: HfConfig = None,
    captured: From = None,
    suite: Suite = None,
    op: Ops = None,
    pattern_file: opt.PatternFile = None,
    target: opt.TargetName = None,
    gpu: opt.Gpus = None,
    family: opt.FamilyName = None,
    workload: opt.WorkloadSlug = None,
    batch: opt.Batch = None,
    heads: opt.Heads = None,
    kv_heads: opt.KvHeads = None,
    seqlen: opt.Seqlen = None,
    seqlen_kv: opt.SeqlenKv = None,
    trials: Trials = None,
    minutes: Minutes = None,
    effort: Effort = "normal",
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Default: 0.")] = None,
    patience: Patience = None,
    fresh: Fresh = False,
    storage: StorageUrl = None,
    jobs: Jobs = None,
    tuned: Annotated[
        Path | None,
        typer.Option("--tuned", metavar="DIR", help="Where entries go. Default: the data folder."),
    ] = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Search for the fastest verified kernel and store it.

    A run that was stopped goes on where it was. Ctrl-C stores the best found so far. With --storage
    any number of these commands, on any hosts with the same device, work on one search; --gpu all
    runs one for every GPU here.
    """
    from fagen import crew
    from fagen.budget import Budget
    from fagen.cli.crew import tune_on_all
    from fagen.shared import Turns

    opt.positive("--jobs", jobs)
    sizes = opt.workload(workload, batch, heads, kv_heads, seqlen, seqlen_kv)
    todo = _jobs(problems or [], spec, hf_config, captured, suite, op, sizes)
    budget = Budget.of(effort, trials=trials, minutes=minutes, seed=seed, patience=patience)
    store = session.store(tuned)
    if devices := crew.names(gpu):
        if fresh:
            raise UsageError("--fresh does not go with several devices",
                             "begin anew with one of them, then start them all")
        given = {"--target": target, "--family": family, "--trials": trials, "--minutes": minutes,
                 "--effort": effort, "--seed": seed, "--patience": patience, "--tuned": tuned}
        targets = tune_on_all(todo, devices, storage, jobs, quiet, given)
        found = [e for wanted in targets for job in todo for e in _stored(store, job, wanted)]
        return _show(found, store, as_json)
    device, wanted = opt.device_and_target(target, gpu)
    chosen = [opt.families(job.problem, wanted, family) for job in todo]

    from fagen.progress import Reporter
    from fagen.search import study_name
    from fagen.search import tune as search

    journals = paths.data() / "journals"
    shared = session.storage(storage) if storage is not None else None
    names = [study_name(job.problem, job.workloads, wanted) for job in todo]
    turns = range(len(todo)) if shared is None else Turns(shared, names)
    failed: dict[str, RunError] = {}
    with session.pool(device, jobs) as pool, Reporter(quiet) as report:
        for turn in turns:
            try:
                search(
                    todo[turn].problem, todo[turn].workloads, wanted, chosen[turn], pool, store,
                    journals, budget, report, fresh=fresh, driver=device.driver, storage=shared,
                )
            except RunError as error:  # nothing works for this one: the others may
                failed[str(todo[turn].problem)] = error
    good = [job for job in todo if str(job.problem) not in failed]
    if good:
        _show([entry for job in good for entry in _stored(store, job, wanted)], store, as_json)
    if failed:
        raise _failed(failed, len(todo))


def _failed(failed: dict[str, RunError], count: int) -> RunError:
    first, *others = failed.values()
    if count == 1:
        return first
    says = "; ".join(error.message for error in (first, *others))
    return RunError(f"{len(failed)} of {count} problems have no kernel: {says}", first.hint)


def _show(found: list[Entry], store: Store, as_json: bool) -> None:
    if as_json:
        print_json(entries=found, written=sorted({store.path_for(entry) for entry in found}))
        return
    header = ("problem", "workload", "us", "TFLOP/s", "thrown away", "family", "config")
    print(table(header, map(_row, found)))
    for path in sorted({store.path_for(entry) for entry in found}):
        print(path)


def _stored(store: Store, job: Job, wanted: Target) -> list[Entry]:
    """The entries of a job, in its order."""
    here = {
        str(e.workload): e for e in store.entries()
        if e.problem == job.problem and e.target.facts() == wanted.facts()
    }
    return [here[str(workload)] for workload in job.workloads]


def _row(entry: Entry) -> tuple[object, ...]:
    config = ",".join(f"{k}={str(v).lower()}" for k, v in entry.config.items())
    result = entry.measurement
    return (entry.problem, entry.workload, f"{result.median_us:.1f}", f"{result.tflops:.3f}",
            thrown_away(entry.provenance.get("search", {})), entry.family, config)


def _jobs(
    problems: list[str], spec: Path | None, hf_config: Path | None, captured: Path | None,
    suite: str | None, ops: list[str] | None, sizes: Workload | None,
) -> tuple[Job, ...]:
    """What to tune, from exactly one of: arguments, a spec, a model config, a capture, a suite."""
    from fagen.model import Problem
    from fagen.spec import Job, from_capture, from_hf, from_suite, from_yaml

    others = [other is not None for other in (spec, hf_config, captured, suite)]
    given = [bool(problems), *others]
    if sum(given) != 1:
        raise UsageError(
            "nothing to tune was given" if not any(given) else
            "PROBLEM, --spec, --hf-config, --from and --suite exclude one another",
            "fagen tune fwd-fp32-d64-causal, or --spec FILE, or --hf-config FILE",
        )
    wanted = _ops(ops, allowed=hf_config is not None or suite is not None)
    if hf_config is not None:
        size = sizes or opt.DEFAULT_WORKLOAD
        path = opt.readable(hf_config, "--hf-config")
        return from_hf(path, size.batch, size.seqlen_q, wanted)
    if sizes is not None and (captured or suite):
        raise UsageError(f"--{'from' if captured else 'suite'} and sizes were both given",
                         f"a {'capture' if captured else 'suite'} holds its own sizes")
    if suite is not None:
        return from_suite(suite, wanted)
    if captured is not None:
        opt.readable(captured, "--from")
        if captured.suffix == ".jsonl":
            return from_capture(captured)
        return from_yaml(captured, opt.DEFAULT_WORKLOAD)
    if spec is not None:
        return from_yaml(opt.readable(spec, "--spec"), sizes or opt.DEFAULT_WORKLOAD)
    slugs = dict.fromkeys(problems)
    return tuple(Job(Problem.parse(slug), (sizes or opt.DEFAULT_WORKLOAD,)) for slug in slugs)


def _ops(ops: list[str] | None, allowed: bool) -> tuple[str, ...]:
    from fagen.model import OPS

    if ops and not allowed:
        raise UsageError("--op goes with --hf-config and --suite only",
                         "the problem's name starts with its op")
    for name in ops or ():
        if name not in OPS:
            raise UsageError(f"unknown op {name!r}", f"one of: {', '.join(OPS)}")
    return tuple(ops or OPS)
