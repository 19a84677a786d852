"""Stale entries whose machine code is the one that was measured: only the source's text changed.

An entry holds the hash of its binary and the compiler that made it. Where the same compiler makes
the same bytes of today's source, what was measured is what would be built, and the entry gets the
digest of that source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fagen import compilers
from fagen.builds import Builds
from fagen.errors import FagenError
from fagen.families.base import Family
from fagen.model import Candidate, Entry, Failure
from fagen.store import Store, candidate, staleness

REFRESHED, STALE, APART = "refreshed", "stale", "not comparable"


@dataclass(frozen=True)
class Finding:
    """An entry that was stale, as it is now, and what was found."""

    entry: Entry
    verdict: str
    says: str


def refresh(
    store: Store, families: Sequence[Family], builds: Builds,
    say: Callable[[int, int, Finding], None] = lambda done, total, finding: None,
) -> tuple[Finding, ...]:
    """Build the kernel of every stale entry, and write each entry that is as it was."""
    stale = [(entry, _kernel(entry, reason, families)) for entry in store.entries()
             if (reason := staleness(entry, builds.renderer, families))]
    for _, kernel in stale:
        if isinstance(kernel, Candidate):
            builds.add(kernel)
    found: list[Finding] = []
    for entry, kernel in stale:
        finding = _compared(entry, kernel, builds) if isinstance(kernel, Candidate) else kernel
        if finding.verdict == REFRESHED:
            store.put(finding.entry)
        found.append(finding)
        say(len(found), len(stale), finding)
    return tuple(found)


def _kernel(entry: Entry, reason: str, families: Sequence[Family]) -> Candidate | Finding:
    """What the entry names, or why there is no use in building it."""
    try:
        kernel = candidate(entry, families)
    except FagenError:
        return Finding(entry, STALE, reason)
    if kernel.family.broken_rules(kernel):
        return Finding(entry, STALE, reason)
    was = entry.provenance.get("compiler") or "an unknown compiler"
    try:
        now = compilers.compiler_of(kernel.family).identity
    except FagenError as missing:
        return Finding(entry, APART, missing.message)
    return kernel if now == was else Finding(entry, APART, f"built by {was}; here is {now}")


def _compared(entry: Entry, kernel: Candidate, builds: Builds) -> Finding:
    built = builds.get(kernel)
    if isinstance(built, Failure):
        return Finding(entry, STALE, f"it does not build: {built.reason}")
    if built.binary.sha256 != entry.binary.get("sha256"):
        return Finding(entry, STALE, "the machine code changed")
    today = {"source": builds.renderer.render(kernel).digest}
    return Finding(replace(entry, provenance=entry.provenance | today), REFRESHED,
                   "the same machine code")
