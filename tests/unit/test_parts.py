"""``--part N/M``: runs of limited time that add up to the whole."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import part

ROOT = Path(__file__).parents[2]
FILE = "tests/unit/test_complete.py"


def collected(*words: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider",
         "-o", "addopts=", FILE, *words],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    return [line for line in ran.stdout.splitlines() if "::" in line]


def test_parts_add_up_after_a_choice_by_name() -> None:
    whole = collected("-k", "machine")
    parts = [collected("-k", "machine", "--part", f"{n}/2") for n in (1, 2)]
    assert len(whole) > 2
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    assert abs(len(parts[0]) - len(parts[1])) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "-1/2"])
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not like 2/5"):
        part(text)
    assert part("2/5") == (2, 5)
