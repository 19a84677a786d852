"""The ctypes mirror of fagen_params against what the C compiler makes of the header."""

from __future__ import annotations

import ctypes
import subprocess

from fagen import paths
from fagen.build import find_cxx
from fagen.library import Params, View


def test_params_has_the_size_and_offsets_of_the_header(tmp_path):
    fields = [name for name, _ in Params._fields_]
    offsets = "".join(f'printf("%zu\\n", offsetof(struct fagen_params, {f}));' for f in fields)
    (tmp_path / "sizes.c").write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include \"params.h\"\n"
        "int main(void) {"
        'printf("%zu\\n%zu\\n", sizeof(struct fagen_params), sizeof(struct fagen_view));'
        f"{offsets} return 0; }}"
    )
    command = [find_cxx(), "-x", "c", f"-I{paths.templates() / 'device'}", "sizes.c", "-o", "sizes"]
    subprocess.run(command, cwd=tmp_path, check=True)
    said = subprocess.run([tmp_path / "sizes"], capture_output=True, text=True, check=True).stdout
    assert [int(n) for n in said.split()] == [
        ctypes.sizeof(Params), ctypes.sizeof(View), *(getattr(Params, f).offset for f in fields)
    ]
