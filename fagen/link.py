"""Parts -> one shared library: host kernels and cubins, the table of them, and the launcher.

Everything is compiled in a folder of its own under fixed names and stripped, so the same parts give
the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fagen import compilers, paths
from fagen.diskspace import IN_A_LOG, full, not_written
from fagen.errors import BuildError, SetupError
from fagen.kerneltable import Part, on_host, table, unique

__all__ = ["Part", "find_cc", "link", "table"]

HEADERS = ("fagen.h", "fagen_plan.h")  # of the runtime folder
SHARED_HEADERS = ("params.h", "host.h")  # of templates/device: kernels see them too
RUNTIME = ("launcher.c", "isa.c", "cuda.c", "threads.c", "openmp.c")
_COMPILE = (
    "-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-c",
)
_LINK = (
    "-shared", "-Wl,--build-id=none", "-Wl,--no-undefined", "-Wl,--strip-all", "-Wl,--as-needed",
)
_LIBRARIES = ("-lm", "-ldl", "-lpthread")
_SECONDS = 120.0


def find_cc() -> str:
    """The host C compiler: $CC, else gcc, cc or clang."""
    for name in (os.environ.get("CC"), "gcc", "cc", "clang"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise SetupError(
        "no C compiler: neither $CC nor gcc nor cc nor clang is on the PATH",
        "install one, for example: apt-get install gcc",
    )


def link(parts: Sequence[Part], output: Path) -> Path:
    """Write the shared library ``output`` with the parts in the order given."""
    compiler = find_cc()
    runtime = _runtime_objects(compiler)
    output = output.resolve()
    try:
        with tempfile.TemporaryDirectory(prefix="fagen-link-") as folder:
            here = Path(folder)
            (here / "table.c").write_text(table(parts))
            objects = _lay_out(parts, here)
            _run([compiler, *_COMPILE, *_includes(), "table.c"], here)
            _run(
                [compilers.find_cxx(), *_LINK, f"-Wl,-soname,{output.name}", "-o", "library",
                 "table.o", *objects, *(str(runtime / f"{Path(c).stem}.o") for c in RUNTIME),
                 *_LIBRARIES],
                here,
            )
            output.parent.mkdir(parents=True, exist_ok=True)
            _move(here / "library", output)
    except OSError as error:
        raise not_written("linking", output, error) from error
    return output


def _lay_out(parts: Sequence[Part], folder: Path) -> list[str]:
    """Put the images where the table expects them; answer the host objects to link."""
    objects = []
    for i, part in enumerate(unique(parts)):
        name = f"kernel{i}.o" if on_host(part) else f"image{i}.cubin"
        shutil.copyfile(part.binary.path, folder / name)
        objects += [name] if on_host(part) else []
    return objects


def _move(made: Path, output: Path) -> None:
    """Appear whole: a library in use keeps its old bytes."""
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.copyfile(made, fresh)
    fresh.chmod(0o755)
    os.replace(fresh, output)


def _includes() -> list[str]:
    return [f"-I{paths.runtime()}", f"-I{paths.templates() / 'device'}"]


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} did not finish within {_SECONDS:g} s") from None
    if done.returncode and IN_A_LOG in done.stderr:
        raise full("linking", folder)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line]
        raise BuildError("; ".join(said[:3]) or done.stderr.strip()[-500:] or "linking failed")


@functools.lru_cache(maxsize=8)
def _identity(compiler: str) -> str:
    shown = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60)
    return shown.stdout.partition("\n")[0]


def _runtime_objects(compiler: str) -> Path:
    """The launcher's objects, compiled once per compiler and text."""
    texts = [*(paths.runtime() / name for name in (*HEADERS, "launcher.h", *RUNTIME)),
             *(paths.templates() / "device" / name for name in SHARED_HEADERS)]
    key = hashlib.sha256("\0".join((_identity(compiler), *_COMPILE)).encode())
    for text in texts:
        key.update(text.read_bytes())
    place = paths.cache() / "runtime" / key.hexdigest()
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as fresh:
            made = Path(fresh) / "objects"
            made.mkdir()
            sources = [str(paths.runtime() / name) for name in RUNTIME]
            _run([compiler, *_COMPILE, *_includes(), *sources], made)
            try:
                os.rename(made, place)
            except OSError:
                if not place.is_dir():  # another process was first: its objects are as good
                    raise
    except OSError as error:
        raise not_written("storing the launcher", place.parent, error) from error
    return place
