"""Make a driver library that links and loads but has no GPU behind it.

    python tests/tools/stub_driver.py FOLDER     writes FOLDER/libcuda.so and libcuda.so.1

PyCUDA links against libcuda, which only a machine with a driver has. Every entry point that
cuda.h declares is defined here and answers CUDA_ERROR_STUB_LIBRARY, so that PyCUDA builds, imports
and compiles kernels; asking it for a device is an error, as on any machine without one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

STUB_LIBRARY = 34  # CUDA_ERROR_STUB_LIBRARY
HEADERS = ("cuda.h", "cudaProfiler.h")


def include_folder(nvcc: str) -> Path:
    """Where this nvcc keeps cuda.h. It is asked for its folder: the command may be a wrapper."""
    plan = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=True
    )
    top = re.search(r"\bTOP=(\S+)", plan.stderr)
    root = Path(top[1]) if top else Path(nvcc).resolve().parent.parent
    for folder in (root / "include", *root.glob("targets/*/include")):
        if (folder / "cuda.h").is_file():
            return folder
    raise SystemExit(f"no cuda.h beside {nvcc}")


def entry_points(include: Path) -> list[str]:
    """Names of all declared functions, after the preprocessor chose their versions."""
    text = "".join(f'#include "{name}"\n' for name in HEADERS if (include / name).is_file())
    shown = subprocess.run(
        ["gcc", "-E", "-P", f"-I{include}", "-x", "c", "-"],
        input=text, capture_output=True, text=True, check=True,
    )
    return sorted(set(re.findall(r"\bCUresult\s+(cu[A-Za-z0-9_]+)\s*\(", shown.stdout)))


def build(folder: Path, nvcc: str) -> Path:
    names = entry_points(include_folder(nvcc))
    if len(names) < 100:
        raise SystemExit(f"only {len(names)} entry points found in cuda.h")
    source = "".join(f"int {name}(void) {{ return {STUB_LIBRARY}; }}\n" for name in names)
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libcuda.so.1"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", library],
        input=source, text=True, check=True,
    )
    link = folder / "libcuda.so"
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)
    return library


if __name__ == "__main__":
    from fagen.compilers import find_nvcc

    print(build(Path(sys.argv[1]), find_nvcc()))
