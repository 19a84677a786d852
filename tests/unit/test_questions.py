"""The questions to a GPU: every lap has something to compare, and the script runs end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.questions import read
from fagen.target import Target

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", [p.stem for p in (ROOT / "bench/questions").glob("*.yaml")])
def test_every_lap_compares_legal_configs(name: str) -> None:
    target, _, first = name.partition("-")
    laps = list(read(ROOT / f"bench/questions/{name}.yaml", Target.known(target)))
    assert laps
    for lap in laps:  # a first run asks whether kernels pass, also of one alone
        assert len(lap.field) >= (1 if first else 2), lap.question


def test_answers_on_the_host(tmp_path: Path) -> None:
    asked = tmp_path / "asked.yaml"
    asked.write_text("""
- ask: unrolling
  family: cpu
  problems: [fwd-fp32-d16-causal]
  workloads: [b1-h2-s128]
  configs: [{}, {unroll: 2}]
""")
    answers = tmp_path / "answers.json"
    subprocess.run(
        [sys.executable, "bench/questions.py", str(asked), str(answers), "--device", "cpu",
         "--target", "x86-64-v3"], cwd=ROOT, check=True, timeout=600,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )
    [lap] = json.loads(answers.read_text())
    assert [sorted(row) for row in lap["configs"]] == [["config", "error", "tflops", "us"]] * 2
    assert lap["configs"][0]["us"] <= lap["configs"][1]["us"]
