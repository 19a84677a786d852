"""Where things are: templates and shipped tuning (read-only), cache and data (writable)."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from fagen.errors import SetupError

_PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    """A folder of the checkout, or its copy inside the installed wheel."""
    for place in (_PACKAGE.parent / name, _PACKAGE / "_shipped" / name):
        if place.is_dir():
            return place
    raise SetupError(
        f"the folder {name}/ is neither in the checkout nor in the installed package",
        "reinstall fagen: pip install --force-reinstall fagen",
    )


def templates() -> Path:
    return _shipped("templates")


def tuned() -> Path:
    """What was learned and shipped with fagen."""
    return _shipped("tuned")


def runtime() -> Path:
    """The files that are copied into every emitted package."""
    return _PACKAGE / "runtime"


def _user(variable: str, kind: str) -> Path:
    given = os.environ.get(variable)
    if given:
        return Path(given).expanduser().resolve()
    import platformdirs

    return Path(getattr(platformdirs, f"user_{kind}_dir")("fagen"))


def cache() -> Path:
    """Compiled kernels. Safe to delete at any time."""
    return _user("FAGEN_CACHE_DIR", "cache")


def locks() -> Path:
    """Who measures on which device. By host, as hosts may share the cache."""
    return cache() / "locks" / (platform.node() or "host")


def data() -> Path:
    """Searches in progress and their journals. Worth keeping."""
    return _user("FAGEN_DATA_DIR", "data")
