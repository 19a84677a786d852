"""Built kernels and what is known of them -> a package: Python and C, no compiler needed to run it.

The files of ``runtime/package`` are copied as they are; only the library and the manifest differ
from package to package. The same kernels give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import keyword
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fagen
from fagen import link as linker
from fagen import paths
from fagen.errors import FagenError, UsageError
from fagen.kerneltable import Part, mean_sizes
from fagen.model import Entry
from fagen.patterns import UNBOUNDED, Band

SCHEMA = 1
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Shipped:
    """A built kernel and the entry that says how good it is."""

    part: Part
    entry: Entry

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The order in a package, so that it does not depend on the order of asking."""
        entry = self.entry
        return str(entry.problem), entry.target.name, str(entry.workload), str(self.part.candidate)


def emit(kernels: Sequence[Shipped], output: Path, name: str | None = None) -> Path:
    """Write the package into the folder ``output``; it imports as ``name``, by default the
    folder's."""
    name = destination(output, name)
    if not kernels:
        raise UsageError("there is no kernel to emit", "fagen tune PROBLEM makes one")
    shipped = sorted(kernels, key=lambda s: s.key)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{name}-") as folder:
            made = Path(folder) / name
            _write(shipped, made, name)
            _swap(made, output)
    except OSError as error:
        raise FagenError(f"{output} cannot be written: {error.strerror or error}") from error
    return output


def destination(output: Path, name: str | None = None) -> str:
    """The package's import name, if it is one and may be written there: asked before the kernels
    are built, which can take minutes."""
    name = name or output.name
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot be imported", "a Python name of at most 64 letters")
    _may_replace(output)
    return name


def _may_replace(output: Path) -> None:
    """Only what fagen wrote is ever removed."""
    if not output.exists() and not output.is_symlink():
        return
    folder = output.is_dir() and not output.is_symlink()
    if folder and (not any(output.iterdir()) or _is_package(output)):
        return
    raise UsageError(
        f"{output} exists and is not a package that fagen wrote", "choose another folder with -o"
    )


def _is_package(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "manifest.json").read_text())["made_by"] == "fagen")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _swap(made: Path, output: Path) -> None:
    """A reader sees the old package or the new one, and a failure leaves the old."""
    old = made.with_name(made.name + ".old")
    if output.exists():
        os.rename(output, old)
    try:
        os.rename(made, output)
    except OSError:
        if old.exists():
            os.rename(old, output)
        raise


def _write(shipped: Sequence[Shipped], folder: Path, name: str) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(paths.runtime() / "package", folder, ignore=ignore)
    (folder / "py.typed").write_text("")
    include = folder / "include"
    include.mkdir()
    for header in linker.HEADERS:
        shutil.copyfile(paths.runtime() / header, include / header)
    for header in linker.SHARED_HEADERS:
        shutil.copyfile(paths.templates() / "device" / header, include / header)
    for file, text in _for_linkers(name).items():
        (folder / file).write_text(text)
    parts = [dataclasses.replace(s.part, workload=s.entry.workload) for s in shipped]
    library = linker.link(parts, folder / f"lib{name}.so")
    text = json.dumps(manifest(shipped, library), indent=1, sort_keys=True, allow_nan=False)
    (folder / "manifest.json").write_text(text + "\n")


def _for_linkers(name: str) -> dict[str, str]:
    """What pkg-config and CMake read; both find everything beside their own file."""
    about = f"Attention kernels made by fagen {fagen.__version__}"
    return {
        f"{name}.pc": (
            f"prefix=${{pcfiledir}}\n\nName: {name}\nDescription: {about}\n"
            f"Version: {fagen.__version__}\n"
            f"Libs: -L${{prefix}} -l{name} -Wl,-rpath,${{prefix}}\n"
            "Cflags: -I${prefix}/include\n"
        ),
        f"{name}-config.cmake": (
            f"# {about}: find_package({name} REQUIRED), then link with {name}::{name}.\n"
            f"if(NOT TARGET {name}::{name})\n"
            f"  add_library({name}::{name} SHARED IMPORTED)\n"
            f"  set_target_properties({name}::{name} PROPERTIES\n"
            f"    IMPORTED_LOCATION \"${{CMAKE_CURRENT_LIST_DIR}}/lib{name}.so\"\n"
            f"    IMPORTED_SONAME lib{name}.so\n"
            '    INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}/include")\n'
            "endif()\n"
        ),
    }


def manifest(shipped: Sequence[Shipped], library: Path) -> dict[str, Any]:
    """What is inside and where it came from. Kernels stand in the order of the library's table."""
    return {
        "schema": SCHEMA,
        "made_by": "fagen",
        "fagen": fagen.__version__,
        "templates": _digest_of(paths.templates()),
        "compilers": sorted({s.part.binary.compiler for s in shipped}),
        "library": library.name,
        "sha256": _sha256(library.read_bytes()),
        "kernels": [_kernel(s) for s in shipped],
    }


def _kernel(s: Shipped) -> dict[str, Any]:
    entry, binary, measured = s.entry, s.part.binary, s.entry.measurement
    return {
        "problem": str(entry.problem),
        "family": entry.family,
        "config": entry.config,
        "target": dataclasses.asdict(entry.target),
        "workload": str(entry.workload),
        "options": _options(entry),
        "speed": {"median_us": measured.median_us, "tflops": measured.tflops},
        "error": {"of_bound": measured.error, "bound_by": measured.bound_by},
        "source": s.part.source.digest,
        "binary": {"sha256": binary.sha256, "arch": binary.arch, "compiler": binary.compiler},
        "provenance": entry.provenance,
    }


def _options(entry: Entry) -> dict[str, Any]:
    """What the slugs say, spelled out for programs."""
    problem, w = entry.problem, entry.workload
    band = isinstance(problem.pattern, Band)
    return {
        "op": problem.op,
        "dtype": problem.dtype,
        "head_dim": problem.head_dim,
        "head_dim_v": problem.head_dim_v,
        "pattern": "" if band else str(problem.pattern),  # empty for a band, which these say:
        "left": problem.pattern.left if band else UNBOUNDED,
        "right": problem.pattern.right if band else UNBOUNDED,
        "top_left": band and problem.pattern.top_left,
        "deterministic": "deterministic" in problem.features,
        "varlen": "varlen" in problem.features,
        "sizes": mean_sizes(w),
    }


def _digest_of(folder: Path) -> str:
    """One digest over all files and their names."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
