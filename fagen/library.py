"""A linked kernel library, seen through ctypes: the same entry points that ship.

This is the one Python mirror of ``fagen_params`` inside fagen; a test compares it with the header.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from fagen.errors import RunError

TENSORS = ("q", "k", "v", "o", "dout", "dq", "dk", "dv")


class View(ctypes.Structure):
    """A tensor [batch, head, row, dim] seen through strides, counted in elements."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
    )


class Blocks(ctypes.Structure):
    """``struct fagen_blocks``."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("cells", "holes", "bitmaps"))


class Mask(ctypes.Structure):
    """``struct fagen_mask``."""

    _fields_ = (
        ("by_query", Blocks),
        ("by_key", Blocks),
        ("queries", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("batches", ctypes.c_int32),
        ("heads", ctypes.c_int32),
    )


class Params(ctypes.Structure):
    """``struct fagen_params``."""

    _fields_ = (
        *((name, View) for name in TENSORS),
        ("lse", ctypes.c_void_p),
        ("dlse", ctypes.c_void_p),
        ("work", ctypes.c_void_p * 4),
        ("batch", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("seqlen_q", ctypes.c_int32),
        ("seqlen_kv", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("cu_q", ctypes.c_void_p),
        ("cu_kv", ctypes.c_void_p),
        ("total_q", ctypes.c_int32),
        ("total_kv", ctypes.c_int32),
        ("mask", Mask),
    )


@dataclass(frozen=True)
class Library:
    """One loaded shared library. Its symbols stay local, so that many can be loaded at once."""

    path: Path
    handle: ctypes.CDLL

    @classmethod
    def load(cls, path: str | Path) -> Library:
        handle = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
        params = ctypes.POINTER(Params)
        handle.fagen_count.restype = ctypes.c_int
        handle.fagen_workspace_bytes.argtypes = (ctypes.c_int, params)
        handle.fagen_workspace_bytes.restype = ctypes.c_int64
        handle.fagen_run.argtypes = (
            ctypes.c_int, params, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int,
        )
        handle.fagen_run.restype = ctypes.c_int
        handle.fagen_last_error.restype = ctypes.c_char_p
        return cls(Path(path), handle)

    def workspace_bytes(self, params: Params, index: int = 0) -> int:
        size = int(self.handle.fagen_workspace_bytes(index, ctypes.byref(params)))
        if size < 0:
            raise RunError(f"the launcher cannot size the workspace: {self.last_error()}")
        return size

    def run(
        self, params: Params, workspace: int, stream: int, threads: int, index: int = 0
    ) -> None:
        code = self.handle.fagen_run(index, ctypes.byref(params), workspace, stream, threads)
        if code:
            raise RunError(f"the launcher answered {code}: {self.last_error()}")

    def last_error(self) -> str:
        text = self.handle.fagen_last_error()
        return text.decode(errors="replace") if text else "no message"
