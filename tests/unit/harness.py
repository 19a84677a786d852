"""Host builds of small C++ texts over the templates, for tests that ask headers questions."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path

from fagen import paths
from fagen.compilers import find_cxx


def compiled(text: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "harness.cpp"), Path(folder, "harness.so")
        source.write_text(text)
        subprocess.run(
            [find_cxx(), "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
             "-Wno-unknown-pragmas",  # nvcc knows them
             f"-I{paths.templates()}", str(source), "-o", str(made)],
            check=True,
        )
        return ctypes.CDLL(str(made))
