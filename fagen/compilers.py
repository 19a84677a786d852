"""The compilers of this machine: where they are, what they call themselves, how they are called."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fagen.errors import SetupError
from fagen.model import Candidate

if TYPE_CHECKING:
    from fagen.families.base import Family

# What turns an instruction set on; the name of the set is the one the kernel reports.
_ISA_FLAGS = {"avx512_bf16": "-mavx512bf16"}

# -fno-math-errno and -fno-trapping-math keep IEEE results (NaN, inf and rounding stay).
HOST_FLAGS = (
    "-std=c++20", "-O3", "-c", "-fPIC", "-fvisibility=hidden", "-fno-math-errno",
    "-fno-trapping-math", "-Wall", "-Wextra", "-Werror=return-type", "-x", "c++",
)
NVCC_FLAGS = ("-std=c++20", "-O3", "-Xptxas", "-v", "--diag-suppress", "177")


@dataclass(frozen=True)
class Compiler:
    """A command, and the identity that goes into the cache key."""

    command: str
    identity: str


def find_cxx() -> str:
    """The host C++ compiler: $CXX, else g++. The kernels use GNU vector shuffles."""
    for name in (os.environ.get("CXX"), "g++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise SetupError(
        "no C++ compiler: neither $CXX nor g++ is on the PATH",
        "install one, for example: apt-get install g++",
    )


def find_nvcc() -> str:
    """nvcc: $FAGEN_NVCC, the PATH, the usual toolkit folder, or the wheels of ``fagen[cuda]``."""
    chosen = os.environ.get("FAGEN_NVCC")
    if chosen:
        if shutil.which(chosen):
            return chosen
        raise SetupError(f"FAGEN_NVCC={chosen} cannot be executed", "unset or correct it")
    site = Path(sysconfig.get_paths()["purelib"])
    places = [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    places += map(str, sorted(site.glob("nvidia/*/bin/nvcc"), reverse=True))
    for path in places:
        if path and os.access(path, os.X_OK):
            return path
    raise SetupError("no nvcc: CUDA kernels cannot be compiled", "pip install 'fagen[cuda]'")


@functools.lru_cache(maxsize=8)
def _version(command: str) -> str:
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
    lines = [line.strip() for line in shown.stdout.splitlines() if line.strip()]
    if shown.returncode or not lines:
        raise SetupError(f"{command} --version failed: {shown.stderr.strip() or 'no output'}")
    release = re.search(r"release [\d.]+, (V[\d.]+)", shown.stdout)
    return f"nvcc {release[1]}" if release else lines[0]


def cxx() -> Compiler:
    command = find_cxx()
    return Compiler(command, _version(command))


def nvcc() -> Compiler:
    command = find_nvcc()
    return Compiler(command, _version(command))


def compiler_of(family: Family) -> Compiler:
    """The one that builds its kernels."""
    return cxx() if family.toolchain == "host" else nvcc()


def host_flags(candidate: Candidate) -> tuple[str, ...]:
    """The target's instruction sets, one flag each: never -march=native, so a build repeats."""
    isa = (_ISA_FLAGS.get(name, f"-m{name}") for name in candidate.target.isa)
    return (*HOST_FLAGS, *isa)


def compile_with_pycuda(text: str, arch: str) -> tuple[bytes, str] | None:
    """The cubin and ptxas' report through PyCUDA, or None where PyCUDA cannot be used.

    PyCUDA needs a driver library to import fully; without one the same nvcc call is made directly.
    """
    import warnings

    try:
        import pycuda.compiler
        import pycuda.driver

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            # Its own cache is off: its writes are not atomic, and ours already holds the result.
            image = pycuda.compiler.compile(
                text, nvcc=find_nvcc(), options=list(NVCC_FLAGS), arch=arch, no_extern_c=True,
                cache_dir=False,
            )
    except ImportError:  # compile imports the driver once more, and threads may race here
        return None
    return bytes(image), "\n".join(str(w.message) for w in said)


def pycuda_reason() -> str:
    """Why PyCUDA is not used, empty when it is."""
    probe = [sys.executable, "-c", "import pycuda.compiler, pycuda.driver"]
    tried = subprocess.run(probe, capture_output=True, text=True, timeout=60)
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else ""
