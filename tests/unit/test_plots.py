from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install 'fagen[bench]'")

from fagen import plots


def _record(seq: int, us: dict[str, float], causal: bool = False) -> dict[str, Any]:
    return {"tag": "core", "mode": "fwd", "dtype": "bf16", "head_dim": 64, "batch": 1,
            "heads_q": 2, "heads_kv": 2, "seq_q": seq, "seq_kv": seq, "causal": causal,
            "window": None, "us": us}


RESULT = {"gpu": "test", "cells": [
    _record(1024, {"fa2": 20.0, "fagen": 10.0}),
    _record(512, {"fa2": 5.0}),
    _record(512, {"fagen": 4.0}, causal=True),
]}


def test_panels_hold_speeds_in_order_of_length() -> None:
    found = plots.panels(RESULT)
    assert list(found) == ["fwd bf16 D64 dense", "fwd bf16 D64 causal"]
    flops = 4 * 2 * 64 * 1024 * 1024
    assert found["fwd bf16 D64 dense"]["fa2"][-1] == (1024, pytest.approx(flops / 20 * 1e-6))
    assert [s for s, _ in found["fwd bf16 D64 dense"]["fa2"]] == [512, 1024]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_written(tmp_path: Path, suffix: str) -> None:
    path = plots.draw(RESULT, tmp_path / f"plot.{suffix}")
    assert path.stat().st_size > 2000
