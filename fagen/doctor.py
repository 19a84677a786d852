"""What fagen needs, what this machine has, and what to do about the difference."""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fagen import compilers, devices, link, paths
from fagen.errors import FagenError

NEEDED, OPTIONAL = "needed", "optional"
_LIBRARIES = ("torch", "numpy", "jinja2", "optuna", "PyYAML", "platformdirs", "rich", "typer")


@dataclass(frozen=True)
class Check:
    """One fact. ``found`` says what is there, or why it is not."""

    name: str
    ok: bool
    found: str
    hint: str = ""
    need: str = NEEDED

    @property
    def verdict(self) -> str:
        return "ok" if self.ok else "missing" if self.need == NEEDED else "absent"


def checks() -> tuple[Check, ...]:
    return tuple(_checks())


def _checks() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("Python", sys.version_info >= (3, 11), version, "fagen needs Python 3.11 or newer")
    for name in _LIBRARIES:
        yield _library(name, NEEDED, "pip install fagen")
    host = devices.host()
    isa = ", ".join(host.target.isa) or "none of the instruction sets that fagen knows"
    yield Check(
        "host CPU", "avx2" in host.target.isa, f"{host.says}, {host.target.cores} cores, {isa}",
        "the cpu family needs AVX2, FMA and F16C (x86-64-v3)", OPTIONAL,
    )
    yield _tool("C++ compiler", compilers.cxx, NEEDED)
    yield _tool("C compiler", link.find_cc, NEEDED)
    yield from _gpu_checks()
    for name, place, variable in (
        ("templates", paths.templates, ""),
        ("cache folder", paths.cache, "FAGEN_CACHE_DIR"),
        ("data folder", paths.data, "FAGEN_DATA_DIR"),
    ):
        yield _folder(name, place, variable)


def _gpu_checks() -> Iterator[Check]:
    probe = devices.gpus()
    names = ", ".join(f"{gpu.name} {gpu.says} ({gpu.driver})" for gpu in probe.gpus)
    hint = "reinstall or restart the NVIDIA driver" if probe.trouble else (
        "without an NVIDIA GPU fagen tunes for the host CPU")
    yield Check("GPU", bool(probe.gpus), names or probe.trouble or "none", hint, OPTIONAL)
    need = NEEDED if probe.gpus else OPTIONAL
    yield _tool("nvcc", compilers.nvcc, need)
    hint = "pip install 'fagen[cuda]'; without it nvcc is called directly"
    yield _library("pycuda", OPTIONAL, hint)


def _library(name: str, need: str, hint: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name), need=need)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed", hint, need)


def _tool(name: str, find: Callable[[], compilers.Compiler | str], need: str) -> Check:
    try:
        tool = find()
    except FagenError as error:
        return Check(name, False, error.message, error.hint or "", need)
    found = tool if isinstance(tool, str) else f"{tool.command} ({tool.identity})"
    return Check(name, True, found, need=need)


def _folder(name: str, place: Callable[[], Path], variable: str) -> Check:
    """Present, and for folders with a variable: can files be made in it?"""
    try:
        path = place()
    except FagenError as error:
        return Check(name, False, error.message, error.hint or "")
    if not variable:
        return Check(name, True, str(path))
    there = next(p for p in (path, *path.parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()  # has no name, leaves nothing
    except OSError as error:
        why = error.strerror or "not writable"
        return Check(name, False, f"{path}: {why}", f"choose another with {variable}=FOLDER")
    return Check(name, True, str(path))
