"""The shared library beside this file: checked against the manifest, then called through ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from .errors import KernelError, PackageError

_HERE = Path(__file__).resolve().parent
# struct fagen_params: eight views of four numbers, lse, dlse, four work pointers, sizes, scale; of
# packed sequences the addresses of their offsets and the totals; then struct fagen_mask: eight
# pointers, and for how many batches and heads.
_PARAMS = struct.Struct("<38q5if2q2i8q2i")
_NO_VIEW = (0, 0, 0, 0)
NO_MASK = (0,) * 10
# The same with the strides of each view, and the sizes with the scale, packed ahead.
_STRIDES, _SIZES = struct.Struct("<3q"), struct.Struct("<5if")
_REST = f"{_PARAMS.size - 8 * 32 - 6 * 8 - _SIZES.size}x"
FORWARD = struct.Struct(f"<{4 * 'q24s'}128xq8x32x24s{_REST}")
BACKWARD = struct.Struct(f"<{8 * 'q24s'}qq32x24s{_REST}")


@functools.cache
def manifest() -> dict[str, Any]:
    """What this package holds and where it came from."""
    try:
        found: dict[str, Any] = json.loads((_HERE / "manifest.json").read_text())
        return found
    except (OSError, ValueError) as error:
        raise PackageError(f"{_HERE / 'manifest.json'} cannot be read: {error}") from error


def kernels() -> list[dict[str, Any]]:
    """Every kernel inside: problem, hardware, sizes it was tuned for, speed, error, origin."""
    return [dict(kernel) for kernel in manifest()["kernels"]]


@functools.cache
def library() -> Any:
    """The C interface of include/fagen.h. Loading it does not touch a GPU."""
    path = _HERE / manifest()["library"]
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}") from error
    expected = manifest()["sha256"]
    if found != expected:
        raise PackageError(
            f"{path} is not the library this package was made with: its SHA-256 is {found}, the "
            f"manifest says {expected}. Install the package again."
        )
    try:
        loaded = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        raise PackageError(f"{path} cannot be loaded: {error}") from error
    loaded.fagen_select.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
    loaded.fagen_workspace_bytes.argtypes = (ctypes.c_int, ctypes.c_char_p)
    loaded.fagen_workspace_bytes.restype = ctypes.c_int64
    loaded.fagen_run.argtypes = (
        ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int,
    )
    loaded.fagen_last_error.restype = ctypes.c_char_p
    return loaded


def last_error() -> str:
    return str(library().fagen_last_error().decode())


def pack(
    views: tuple[int, ...], lse: int, dlse: int, sizes: tuple[int, int, int, int, int],
    scale: float, packing: tuple[int, int, int, int] = (0, 0, 0, 0),
    mask: tuple[int, ...] = NO_MASK,
) -> bytes:
    """``struct fagen_params``; views in the order of the struct, the last may be missing."""
    missing = _NO_VIEW * (8 - len(views) // 4)
    return _PARAMS.pack(
        *views, *missing, lse, dlse, 0, 0, 0, 0, *sizes, scale, *packing, *mask
    )


def pack_strides(strides: tuple[int, ...]) -> bytes:
    return _STRIDES.pack(*strides[:3])


def pack_sizes(sizes: tuple[int, int, int, int, int], scale: float) -> bytes:
    return _SIZES.pack(*sizes, scale)


def run(index: int, packed: bytes, workspace: int, stream: int, threads: int) -> None:
    if library().fagen_run(index, packed, workspace, stream, threads):
        raise KernelError(last_error())
