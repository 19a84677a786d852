"""A full disk is nobody's kernel's fault: it ends a command, and says what to do."""

from __future__ import annotations

import errno
from pathlib import Path

from fagen.errors import BuildError, FagenError, SetupError

_FULL = (errno.ENOSPC, errno.EDQUOT)
IN_A_LOG = "No space left on device"  # what compilers print


def is_full(error: OSError) -> bool:
    return error.errno in _FULL


def full(stage: str, path: Path | str) -> SetupError:
    return SetupError(
        f"the disk is full: {stage} cannot write to {path}",
        f"free some space there (df -h '{path}'), or choose other folders with FAGEN_CACHE_DIR, "
        "FAGEN_DATA_DIR and TMPDIR; everything in the cache may be deleted",
    )


def not_written(stage: str, path: Path | str, error: OSError) -> FagenError:
    """In words, for whatever reason."""
    if is_full(error):
        return full(stage, path)
    return BuildError(
        f"{stage} cannot write to {path}: {error.strerror or error}",
        "choose another folder with FAGEN_CACHE_DIR",
    )
