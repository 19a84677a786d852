"""An emitted package, imported for the tests of one module and forgotten after them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def imported(folder: Path) -> Iterator[Any]:
    sys.path.insert(0, str(folder.parent))
    try:
        yield importlib.import_module(folder.name)
    finally:
        sys.path.remove(str(folder.parent))
        for name in [n for n in sys.modules if n.split(".")[0] == folder.name]:
            del sys.modules[name]
