"""The verb that watches a program: capture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from fagen.cli import options as opt
from fagen.cli.output import print_json, table
from fagen.errors import RunError, UsageError

SPEC = (".yaml", ".yml")


def capture(
    program: Annotated[
        list[str],
        typer.Argument(
            metavar="-- PROGRAM [ARGS]...", show_default=False,
            help="A Python file, or -m and a module, and what it is given.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE",
                     help="A .yaml is a spec; counts are added to a .jsonl."),
    ] = Path("captured.yaml"),
    as_json: opt.Json = False,
) -> None:
    """Run a torch program and write down its attention: problems, sizes, number of calls.

    fagen tune --from FILE tunes exactly those.
    """
    from fagen import yamlfile
    from fagen.spec import from_capture, to_yaml, unserved

    if output.suffix not in (*SPEC, ".jsonl"):
        raise UsageError(f"-o {output}: neither .yaml nor .jsonl", "for example -o captured.yaml")
    with TemporaryDirectory() as scratch:
        counts = Path(scratch) / "counts.jsonl" if output.suffix in SPEC else output.absolute()
        code = subprocess.run(
            [sys.executable, "-m", "fagen.capture", str(counts), *program],
            stdout=sys.stderr.fileno() if as_json else None,
        ).returncode
        if not counts.exists():
            raise RunError(f"the program ended with {code} before it was watched")
        jobs, left_out = from_capture(counts), unserved(counts)
        if output.suffix in SPEC:
            yamlfile.write(output, to_yaml(jobs))
    if as_json:
        print_json(capture=output, exit_code=code, unserved=left_out, problems=[
            {"problem": j.problem, "workloads": [
                {"workload": w, "calls": round(w.weight)} for w in j.workloads
            ]} for j in jobs
        ])
    else:
        print(table(("problem", "workload", "calls"), (
            (j.problem, w, f"{w.weight:g}") for j in jobs for w in j.workloads
        )))
        for line in left_out:
            print(f"not served: {line}")
        print(output)
    if code:
        raise RunError(f"the program ended with {code}; {output} holds what it did until then")
