"""What was learned: ``<root>/<target label>/<problem>.yaml``, made to be reviewed and committed.

One file holds one problem on one target, one entry per workload, sorted. Of two machines with the
same label and different facts the second gets a folder ``<label>-<digest of its facts>``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fagen import yamlfile
from fagen.entryfile import facts, read_file, to_text
from fagen.errors import FagenError, StoreError
from fagen.families.base import Family, parse_config
from fagen.model import Candidate, Entry, Problem
from fagen.target import Target
from fagen.workload import Workload

if TYPE_CHECKING:
    from fagen.render import Renderer


class Store:
    """Reads every root; writes to one of them. Of entries for the same, that of the first root
    wins, unless it is stale and another one is not."""

    def __init__(
        self, read: Sequence[Path], write: Path,
        is_stale: Callable[[Entry], bool] = lambda entry: False,
    ) -> None:
        self.write, self._is_stale = write, is_stale
        self.read = (write, *(root for root in read if root != write))

    def entries(self) -> tuple[Entry, ...]:
        """All entries, one per problem, target and workload, sorted."""
        return tuple(entry for _, entry in self.held())

    def held(self) -> tuple[tuple[Path, Entry], ...]:
        """The entries, each with the root that it is from."""
        found: dict[tuple[str, str, str], tuple[Path, Entry]] = {}
        for root in self.read:
            for path in sorted(root.glob("*/*.yaml")):
                for entry in read_file(path):
                    _, had = found.setdefault(_key(entry), (root, entry))
                    if had is not entry and self._is_stale(had) and not self._is_stale(entry):
                        found[_key(entry)] = root, entry
        return tuple(found[key] for key in sorted(found))

    def find(self, problem: Problem, target: Target, workload: Workload) -> Entry | None:
        """The best entry that can run on the target: the same hardware before its like, then the
        nearest workload."""
        usable = [
            e for e in self.entries() if e.problem == problem and e.target.serves(target)
        ]
        return min(
            usable,
            key=lambda e: (unlike(e.target, target), distance(e.workload, workload), _key(e)),
            default=None,
        )

    def put(self, *entries: Entry) -> Path:
        """Add or replace entries, each by its workload. Other entries of the file stay."""
        path = self.path_for(entries[0])
        with _locked(path.parent):
            kept = {_key(e): e for e in (read_file(path) if path.exists() else ())}
            for entry in entries:
                if self.path_for(entry) != path:
                    raise ValueError("entries of one put share their problem and target")
                kept[_key(entry)] = entry
            yamlfile.write(path, to_text([kept[key] for key in sorted(kept)]))
        return path

    def path_for(self, entry: Entry) -> Path:
        """Where the entry is, or will be, in the folder that is written to."""
        name = entry.target.name
        for folder in (name, f"{name}-{_digest(entry.target)}"):
            path = self.write / folder / f"{entry.problem}.yaml"
            there = next(iter(sorted(path.parent.glob("*.yaml"))), None)
            held = read_file(path if path.exists() else there) if there else ()
            if not held or held[0].target.facts() == entry.target.facts():
                return path
        raise StoreError(
            f"{path.parent} holds entries of different hardware",
            "its files were moved or edited by hand; move them out of the folder",
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time. The lock is on the folder itself, so that no file is left behind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StoreError(f"{folder} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# --- nearness ----------------------------------------------------------------------------------


def unlike(had: Target, wanted: Target) -> tuple[float, ...]:
    """How far hardware that can run the same code is from the wanted one; 0s for equal facts."""
    if had.facts() == wanted.facts():
        return (0.0,)
    if had.kind == "cpu":  # the more of its instructions are used, the better
        return (1.0, len(wanted.isa) - len(had.isa), _octaves(had.l2_bytes, wanted.l2_bytes))
    return (1.0, _octaves(had.sm_count, wanted.sm_count), _octaves(had.l2_bytes, wanted.l2_bytes))


def distance(a: Workload, b: Workload) -> float:
    """Octaves between two workloads: lengths count fully, the number of independent heads half,
    the sharing of keys a quarter. Zero means the same sizes."""
    heads = _octaves(a.batch * a.heads, b.batch * b.heads)
    group = _octaves(a.heads // a.kv_heads, b.heads // b.kv_heads)
    longest = _octaves(a.seqlen_q, b.seqlen_q) + _octaves(a.seqlen_kv, b.seqlen_kv)
    mean = (_octaves(a.rows_q / a.batch, b.rows_q / b.batch)
            + _octaves(a.rows_kv / a.batch, b.rows_kv / b.batch))
    lengths = (longest + mean) / 2  # one and the same where sequences are not packed
    return lengths + heads / 2 + group / 4


def _octaves(a: float, b: float) -> float:
    return abs(math.log2(a / b)) if a > 0 and b > 0 else float(a != b)


def _key(entry: Entry) -> tuple[str, str, str]:
    return str(entry.problem), f"{entry.target.name} {_digest(entry.target)}", str(entry.workload)


def _digest(target: Target) -> str:
    text = json.dumps(facts(target), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# --- an entry as a kernel ------------------------------------------------------------------------


def candidate(entry: Entry, families: Sequence[Family]) -> Candidate:
    """The kernel that an entry names."""
    family = next((f for f in families if f.name == entry.family), None)
    if family is None:
        raise StoreError(
            f"the entry for {entry.problem} on {entry.target.name} names the family "
            f"{entry.family!r}; there are: {', '.join(f.name for f in families)}",
            f"fagen tune {entry.problem}",
        )
    config = parse_config(family.kernel(entry.problem.op).config, entry.config)
    return Candidate(entry.problem, entry.target, family, config)


def staleness(entry: Entry, renderer: Renderer, families: Sequence[Family]) -> str:
    """Why the entry no longer describes what would be built today; empty while it does."""
    try:
        kernel = candidate(entry, families)
        broken = kernel.family.broken_rules(kernel)
        digest = renderer.render(kernel).digest
    except FagenError as error:
        return error.message
    if broken:
        return f"the rule no longer holds: {broken[0].says}"
    if digest != entry.provenance.get("source"):
        return "the source changed since it was tuned"
    return ""
