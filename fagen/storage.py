"""A database that workers on many hosts share, reached through Optuna, and patience with it.

A database goes away: it restarts, a network fails. Every call either answers or says ``Away`` at
once; between two tries there is a pause that grows to a bound, and people are told.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import optuna

from fagen.errors import FagenError, SetupError, StoreError, UsageError
from fagen.ledger import Away

optuna.logging.set_verbosity(optuna.logging.ERROR)

T = TypeVar("T")

# How a scheme is spelled for the driver that the extra "storage" installs.
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_OUTAGES = ("OperationalError", "InterfaceError", "TimeoutError", "DisconnectionError")
_SQLITE_TURN_S = 60.0  # its own limit of 5 s is a slow disk's flush of a few writers
_CREATIONS = 6  # tries to create the tables: workers that start together race


@dataclass(frozen=True)
class Pace:
    """Seconds."""

    renew: float = 3.0  # a worker says that it lives
    lease: float = 30.0  # without a word for so long, it is dead
    look: float = 0.25  # between two looks at what others did
    least: float = 0.5  # before the next try to reach a storage that is away
    most: float = 15.0  # the same, after many
    patience: float = 1800.0  # with nothing else to do, before giving up


class Storage:
    """One connection of this process. Its threads may use it at once."""

    def __init__(
        self, url: str, pace: Pace | None = None,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self.pace, self.say = pace or Pace(), say
        self._url, self.where = spelled(url), without_password(url)
        self.outages = 0
        self._engine: Any = None
        self._trouble, self._delay, self._closed_until, self._since = "", 0.0, 0.0, 0.0

    def call(self, do: Callable[[Any], T]) -> T:
        """Away while it cannot be reached, without trying in the pause between two tries."""
        if time.monotonic() < self._closed_until:
            raise Away(self._trouble)
        try:
            if self._engine is None:
                self._engine = _connect(self._url, self.where)
            answer = do(self._engine)
        except KeyError as error:
            raise StoreError(
                f"the study in {self.where} was deleted while it was used", "start this one again"
            ) from error
        except Exception as error:
            if not is_outage(error):
                raise
            raise self._fail(error) from error
        if self._delay:
            self._delay = 0.0
            self.say(f"{self.where} answers again, after {time.monotonic() - self._since:.1f} s")
        return answer

    def _fail(self, error: Exception) -> Away:
        self._engine = None  # its sessions may be in the middle of something
        if not self._delay:
            self._since = time.monotonic()
            self.outages += 1
        self._delay = min(max(self.pace.least, 2 * self._delay), self.pace.most)
        self._closed_until = time.monotonic() + self._delay
        self._trouble = f"{self.where} does not answer: {_words(error)}"
        self.say(f"{self._trouble}; results are kept here, the next try is in {self._delay:g} s")
        return Away(self._trouble)

    def wait(self) -> None:
        """Until the next try makes sense. Raises when patience is at its end."""
        if self._delay and time.monotonic() - self._since > self.pace.patience:
            raise StoreError(
                f"{self._trouble}, for {self.pace.patience:g} s now",
                "what was measured is kept here; the same command goes on from there",
            )
        time.sleep(max(self.pace.look, self._closed_until - time.monotonic()))


def spelled(url: str) -> str:
    """With the driver that the extra installs."""
    scheme, colon, rest = url.partition("://")
    if not (scheme and colon and rest):
        raise UsageError(
            f"cannot read --storage {url!r}", "for example postgresql://user@host/database"
        )
    return f"{_DRIVERS.get(scheme, scheme)}://{rest}"


def without_password(url: str) -> str:
    parts = urlsplit(url)
    if not parts.netloc:
        return url  # a file
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=user.partition(":")[0] + at + host, query=""))


def _connect(url: str, where: str) -> Any:
    """Optuna's storage. The tables are created by the first worker; several may try at once."""
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):  # of several hosts or a slow disk, each waits for its turn
        options["connect_args"] = {"timeout": _SQLITE_TURN_S}
    if url.startswith("postgresql"):  # a network that fails says nothing by itself
        options["connect_args"] = {
            "connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5,
            "keepalives_count": 3, "tcp_user_timeout": 30_000,
        }
    for attempt in range(_CREATIONS):
        try:
            return optuna.storages.get_storage(optuna.storages.RDBStorage(url, options))
        except ImportError as error:
            raise SetupError(
                f"the driver of {where} is not installed: {error.__cause__ or error}",
                "pip install 'fagen[storage]'",
            ) from error
        except Exception as error:
            if isinstance(error, FagenError) or not _is_database(error):
                raise StoreError(f"{where} cannot be used: {_words(error)}") from error
            if is_outage(error) and not url.startswith("sqlite"):
                raise
            if _named(error) & {"ArgumentError", "NoSuchModuleError"}:
                raise UsageError(
                    f"cannot use --storage {where}: {_words(error)}",
                    "for example postgresql://user@host/database",
                ) from error
            if attempt == _CREATIONS - 1:
                raise StoreError(f"{where} cannot be used: {_words(error)}") from error
            time.sleep(random.uniform(0.05, 0.3) * (attempt + 1))
    raise AssertionError("the last try raises")


def _named(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _is_database(error: BaseException) -> bool:
    """Of SQLAlchemy, which Optuna uses; named and not imported, as it is Optuna's own."""
    return any(kind.__module__.startswith("sqlalchemy.") for kind in type(error).__mro__)


def is_outage(error: BaseException) -> bool:
    """The database is not there, or ended the conversation. Anything else is a fault of ours."""
    if not isinstance(error, optuna.exceptions.StorageInternalError) and not _is_database(error):
        return False
    before = error.__cause__ or error.__context__  # what broke in the rollback began with it
    return bool(_named(error) & set(_OUTAGES)) or (before is not None and is_outage(before))


def _words(error: BaseException) -> str:
    """The database's own first line."""
    while error.__cause__ is not None and not getattr(error, "orig", None):
        error = error.__cause__
    text = str(getattr(error, "orig", None) or error).strip()
    return text.partition("\n")[0] or type(error).__name__
