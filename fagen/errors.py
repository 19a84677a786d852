"""The exception tree. A message says what was asked and what is; a hint is a command or edit."""

from __future__ import annotations

INTERRUPTED = 130  # exit code after Ctrl-C, with the state saved


class FagenError(Exception):
    """Anything fagen can explain. A traceback that is not one of these is a bug in fagen."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(FagenError):
    """The request itself is wrong."""

    exit_code = 2


class SetupError(FagenError):
    """The machine lacks something: a compiler, a driver, PyCUDA, a GPU."""

    exit_code = 3


class RenderError(FagenError):
    """A template did not render."""


class BuildError(FagenError):
    """A compiler rejected a source, or took too long."""


class RunError(FagenError):
    """A kernel ran and something went wrong."""


class WorkerCrashed(RunError):
    """The process that ran the kernel died."""


class WorkerTimeout(RunError):
    """The process that ran the kernel did not answer in time and was killed."""


class WrongResult(RunError):
    """The kernel ran to its end and its numbers are wrong."""


class StoreError(FagenError):
    """A file of what was learned cannot be read or written."""
