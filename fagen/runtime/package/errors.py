"""What can go wrong. Every message says what was asked and what is."""

from __future__ import annotations


class AttentionError(Exception):
    """Anything this package can explain."""


class BadArgument(AttentionError, ValueError):
    """A shape, size or option that makes no sense."""


class BadType(AttentionError, TypeError):
    """An argument of the wrong kind: not a tensor, integers, mixed types."""


class NoKernel(AttentionError, LookupError):
    """Nothing in this package serves the call. The message says why, kernel by kernel."""


class KernelError(AttentionError, RuntimeError):
    """The driver or a kernel reported an error."""


class PackageError(AttentionError, ImportError):
    """The files of this package are damaged or were changed."""
