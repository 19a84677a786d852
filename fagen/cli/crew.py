"""``fagen tune`` on several devices of this host."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fagen import paths
from fagen.cli import options as opt
from fagen.errors import RunError

if TYPE_CHECKING:
    from fagen.spec import Job
    from fagen.target import Target


def tune_on_all(
    todo: tuple[Job, ...], devices: tuple[str, ...], storage: str | None, jobs: int | None,
    quiet: bool, given: Mapping[str, object],
) -> list[Target]:
    """One worker per device; returns what the devices are, each kind once."""
    from fagen import crew
    from fagen.spec import to_yaml

    name = given["--target"]
    kinds = [opt.device_and_target(None if name is None else str(name), gpu)[1] for gpu in devices]
    data = paths.data()
    data.mkdir(parents=True, exist_ok=True)
    each = jobs or max(1, len(os.sched_getaffinity(0)) // len(devices))
    common = [word for option, value in given.items() if value is not None
              for word in (option, str(value))]
    common += ["--storage", storage or f"sqlite:///{data / 'studies.db'}", "--jobs", str(each)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as spec:
        spec.write(to_yaml(todo))
        spec.flush()
        codes = crew.run({
            label: ["tune", "--spec", spec.name, "--gpu", device, *common, *["-q"] * quiet]
            for label, device in zip(crew.labels(devices), devices, strict=True)
        })
    failed = {label: code for label, code in codes.items() if code}
    if len(failed) == len(codes):
        raise RunError("every worker failed; what each said is above",
                       f"fagen tune ... --gpu {devices[0]} runs one alone")
    for label, code in failed.items():
        sys.stderr.write(f"worker {label} ended with {code}; the others did its work\n")
    return list({str(sorted(kind.facts().items())): kind for kind in kinds}.values())
