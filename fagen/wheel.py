"""An emitted package -> a wheel that pip installs: one for every Python, bound to the platform.

The platform's tag names the oldest C library that has what the package's library asks of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sysconfig
import zipfile
from pathlib import Path

from fagen.errors import FagenError

_TIME = (1980, 1, 1, 0, 0, 0)  # the oldest that a zip file can say: the same bytes each time


def wheel(package: Path, folder: Path) -> Path:
    """Write the wheel of the package into the folder."""
    manifest = json.loads((package / "manifest.json").read_text())
    name = manifest["library"].removeprefix("lib").removesuffix(".so")
    # The version tells two packages of one fagen apart.
    version = f"{manifest['fagen']}+{manifest['sha256'][:12]}"
    tag = f"py3-none-{platform_of((package / manifest['library']).read_bytes())}"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        f"Summary: {len(manifest['kernels'])} attention kernels, tuned and emitted by fagen\n"
        "Requires-Python: >=3.10\nRequires-Dist: torch>=2.5\n"
    ).encode()
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: fagen {manifest['fagen']}\n"
        f"Root-Is-Purelib: false\nTag: {tag}\n"
    ).encode()
    record = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in sorted(files.items())]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    output = folder / f"{name}-{version}-{tag}.whl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _zip(files, output)
    except OSError as error:
        raise FagenError(f"{output} cannot be written: {error.strerror or error}") from error
    return output


def platform_of(library: bytes) -> str:
    """``manylinux_2_34_x86_64`` where glibc 2.34 is needed and nothing beyond it, else the machine.

    An ELF file names the versions of the symbols it imports: ``GLIBC_2.34``. Of the other libraries
    that such a platform has, the first versions are everywhere: what unwinds the stack is in them.
    """
    machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    needed = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)(?=[.\0])", library)]
    beyond = re.search(
        rb"\0(GLIBCXX_(?!3\.4\0)|CXXABI_(?!1\.3\0)|GCC_(?!3\.0\0)|GOMP_)\d", library)
    if not needed or beyond or not machine.startswith("linux_"):
        return machine
    return f"manylinux_2_{max(17, *needed)}_{machine.removeprefix('linux_')}"


def _zip(files: dict[str, bytes], output: Path) -> None:
    fresh = output.with_suffix(".partial")
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in sorted(files.items()):
            entry = zipfile.ZipInfo(path, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if path.endswith(".so") else 0o644) << 16
            archive.writestr(entry, data)
    fresh.replace(output)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
