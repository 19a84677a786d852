"""Verbs about what was learned: list, explain, emit."""

from __future__ import annotations

from fagen.cli import options as opt


def list_(as_json: opt.Json = False) -> None:
    """List what was learned, and what of it is stale."""


def explain(problem: opt.Slug, as_json: opt.Json = False) -> None:
    """Say why this config was chosen."""


def emit(as_json: opt.Json = False) -> None:
    """Write the package."""
