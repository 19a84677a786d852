"""What the search needs of the place where outcomes are kept: one file, or a shared storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fagen.errors import StoreError

Knobs = dict[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True)
class Proposal:
    """A point to try. Those of the sampler carry its trial; points from elsewhere have none."""

    knobs: Knobs
    trial: Any = None


@dataclass(frozen=True)
class News:
    """What other workers did since one looked last, and the points that they hold now."""

    told: tuple[Record, ...] = ()
    taken: tuple[Knobs, ...] = ()


class Away(StoreError):
    """A shared storage does not answer just now."""


class Study(Protocol):
    """One space: proposes points, and is told what came of them."""

    @property
    def records(self) -> Sequence[Record]:
        """All that was told before this search."""

    def ask(self) -> Proposal: ...

    def claim(self, proposal: Proposal) -> bool:
        """It is ours to try; False when another worker has it, or has told it."""

    def later(self, proposal: Proposal) -> int:
        """How many points others have claimed since this one was."""

    def tell(
        self, proposal: Proposal, score: float | None, record: Record | None = None
    ) -> None: ...

    def withdraw(self, proposal: Proposal) -> None:
        """It was not claimed, and says nothing about its point."""

    def give_up(self, proposal: Proposal) -> None:
        """It was claimed and will not be tried: others may have it."""

    def news(self) -> News: ...


class Ledger(Protocol):
    """All studies of a search."""

    @property
    def where(self) -> str:
        """In words, for people."""

    @property
    def alone(self) -> bool:
        """Nobody else is on this search."""

    @property
    def salt(self) -> int:
        """Differs between workers on one search, so that they do not draw the same points."""

    def study(
        self, name: str, knobs: Mapping[str, Sequence[Any]], seed: int,
        about: Mapping[str, Any] | None = None,
    ) -> Study: ...

    def once(self, key: str, make: Callable[[], Record]) -> Record:
        """Made by one worker for all; the others wait for it."""

    def wait(self) -> None:
        """A moment, for other workers or for a storage that does not answer."""
