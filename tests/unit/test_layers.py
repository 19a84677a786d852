"""The cut of the code: imports point down, nothing goes in circles, a library has one home."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fagen"

# Top to bottom. A module imports from its own row and from rows below.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("doctor", "progress", "plots", "draw", "spec", "ceiling", "explain", "report",
     "charts", "export", "history",
     "capture", "recheck", "refresh", "crew"),
    ("bench", "benchrun", "contenders", "passes", "suites"),
    ("search", "exploration", "stopwatch", "explorer", "surrogate", "finale", "learned", "trial",
     "tried", "portfolio", "budget", "taint", "usual", "kin", "journal", "studies", "shared",
     "board", "members", "outbox", "storage", "ledger", "tunable", "emit", "wheel", "shipment"),
    ("pool", "station", "builds", "child", "lock", "scratch", "rivals", "winner"),
    ("worker", "workbench", "peers", "masks", "verify", "timing", "neighbours", "call", "inputs",
     "cases", "solver", "reference", "library", "pieces"),
    ("link", "kerneltable"),
    ("build", "render", "store", "proof"),
    ("compilers", "diskspace", "entryfile", "yamlfile", "devices"),
    ("families",),
    ("model", "target", "workload", "packing", "patterns", "paths", "errors"),
    ("runtime",),  # copied into emitted packages, so it imports nothing of fagen
    ("__init__",),
)

# A third-party library and the modules that may import it. torch and its like are for child
# processes only: the parent of a search never loads them.
HOMES: dict[str, set[str]] = {
    "typer": {"cli"},
    "rich": {"progress"},
    "jinja2": {"render"},
    "optuna": {"journal", "studies", "history", "board", "storage"},
    "yaml": {"yamlfile"},
    "platformdirs": {"paths"},
    "numpy": {"patterns", "surrogate", "proof"},
    "pycuda": {"compilers", "timing"},
    "matplotlib": {"plots", "draw"},
    "torch": {"worker", "workbench", "peers", "verify", "timing", "call", "inputs", "masks",
              "solver", "reference", "pieces", "benchrun", "contenders", "passes", "ceiling",
              "capture", "runtime"},
}
OPTIONAL_PEERS = {"flash_attn": {"contenders"}}

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The module's name in the table: packages count as one."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names, wherever in the file; not those for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level:
            continue  # within the package that is copied into every emitted library
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(child.orelse, type_ignores=[]))
        else:
            yield from imports(child)


def arrows(path: Path) -> set[str]:
    """The modules of fagen that a file imports, its own package left out."""
    names = (name.split(".") for name in imports(ast.parse(path.read_text())))
    return {parts[1] for parts in names if parts[0] == "fagen" and len(parts) > 1} - {
        name_of(path), "__version__"
    }


def third_party(path: Path) -> set[str]:
    roots = {name.partition(".")[0] for name in imports(ast.parse(path.read_text()))}
    return roots - set(sys.stdlib_module_names) - {"fagen"}


def test_every_module_has_a_row() -> None:
    rows = [name for row in LAYERS for name in row]
    assert len(rows) == len(set(rows))
    assert {name_of(path) for path in FILES} <= set(rows)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    row_of = {name: row for row, names in enumerate(LAYERS) for name in names}
    upward = {name for name in arrows(path) if row_of[name] < row_of[name_of(path)]}
    assert not upward, f"{path.name} imports from rows above it: {sorted(upward)}"


def test_nothing_goes_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        graph.setdefault(name_of(path), set()).update(arrows(path))
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_library_is_imported_in_its_home_only(path: Path) -> None:
    homes = HOMES | OPTIONAL_PEERS
    for library in third_party(path):
        assert library in homes, f"{path.name} imports {library}, which has no home"
        assert name_of(path) in homes[library], f"{path.name} imports {library}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_uses_one_library(path: Path) -> None:
    allowed = {"contenders"}  # it is a list of peers
    used = third_party(path) - {"numpy"}
    assert len(used) <= 1 or name_of(path) in allowed, f"{path.name} imports {sorted(used)}"


def test_the_check_sees_imports_inside_functions() -> None:
    tree = ast.parse(
        "if TYPE_CHECKING:\n import a\nelse:\n import b\ndef f():\n from c.d import e\n"
    )
    assert set(imports(tree)) == {"b", "c.d.e"}
