"""Which entries go into a package: those asked for that still describe what is built today.

Entries that were shipped with fagen may be stale through no fault of the user: they are left out.
The user's own, and what was asked for by name, are never left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fagen.errors import StoreError
from fagen.model import Entry, Problem
from fagen.target import Target


@dataclass(frozen=True)
class Known:
    """An entry, and whether it came with fagen rather than from the user's own tuning."""

    entry: Entry
    shipped: bool = False


def chosen(
    known: Iterable[Known], problems: Sequence[Problem], targets: Sequence[str],
    here: Sequence[Target],
) -> tuple[Known, ...]:
    """By problem and by target; without a target, what some device of this machine can run."""
    known = tuple(known)
    found = tuple(
        k for k in known
        if (not problems or k.entry.problem in problems)
        and (k.entry.target.name in targets
             or (not targets and any(k.entry.target.serves(t) for t in here)))
    )
    missing = sorted(map(str, set(problems) - {k.entry.problem for k in found}))
    if missing or not found:
        where = ", ".join(targets) or "this machine"
        raise StoreError(
            f"nothing was learned about {', '.join(missing) or 'any problem'} for {where}"
            f" ({len(known)} entries in all)",
            f"fagen tune {' '.join(missing) or 'PROBLEM'}; fagen list shows what there is",
        )
    return found


def without_stale(
    given: Sequence[Known], staleness: Callable[[Entry], str], problems: Sequence[Problem] = (),
    targets: Sequence[str] = (),
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """What is fresh, and what was shipped and is stale. Refused are stale entries of the user's
    own, and a problem or a target asked for by name of which nothing fresh would be left."""
    stale = {id(k): reason for k in given if (reason := staleness(k.entry))}
    fresh = tuple(k.entry for k in given if id(k) not in stale)
    problems_left, targets_left = {e.problem for e in fresh}, {e.target.name for e in fresh}

    def needed(k: Known) -> bool:
        entry = k.entry
        return (not k.shipped or not fresh
                or (entry.problem in problems and entry.problem not in problems_left)
                or (entry.target.name in targets and entry.target.name not in targets_left))

    refused = [k for k in given if id(k) in stale and needed(k)]
    if refused:
        entry, reason = refused[0].entry, stale[id(refused[0])]
        slugs = " ".join(dict.fromkeys(str(k.entry.problem) for k in refused))
        raise StoreError(
            f"{len(stale)} of {len(given)} entries are stale; {entry.problem} {entry.workload} on "
            f"{entry.target.name}: {reason}",
            f"fagen refresh where only the text changed, else fagen tune {slugs}, or --allow-stale",
        )
    return fresh, tuple(k.entry for k in given if id(k) in stale)


def told(left_out: Sequence[Entry]) -> str:
    """One line about what is not in the package."""
    problems = sorted({str(entry.problem) for entry in left_out})
    names = sorted({entry.target.name for entry in left_out})
    shown = ", ".join(problems[:3]) + (f" and {len(problems) - 3} more" if problems[3:] else "")
    return (f"left out: {len(left_out)} stale entries that were shipped with fagen ({shown} on "
            f"{', '.join(names)}); --allow-stale includes them, fagen tune renews them")
