"""What a program's attention is, seen while it runs."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as taken_before

from fagen.capture import VARIABLE, capture
from fagen.cli import main
from fagen.errors import UsageError
from fagen.spec import from_capture, from_yaml, to_yaml, unserved
from fagen.workload import Workload

DEFAULT = Workload(1, 1, 1, 1, 1)


def tensors(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype)


def shapes(path: Path) -> dict[tuple[str, str], float]:
    return {(str(job.problem), str(w)): w.weight for job in from_capture(path)
            for w in job.workloads}


class Block(nn.Module):
    """Self-attention with fewer key/value heads, then cross-attention through torch's module."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 32 + 2 * 16)
        self.cross = nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).split((32, 16, 16), -1)
        q, k, v = (t.unflatten(-1, (-1, 8)).transpose(1, 2) for t in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + out.transpose(1, 2).flatten(2)
        return x + self.cross(x, memory, memory, need_weights=False)[0]


def test_a_transformer_with_mixed_shapes_is_written_down(tmp_path: Path) -> None:
    path, model, memory = tmp_path / "shapes.jsonl", Block(), tensors(2, 12, 32)
    with capture(path):
        for _ in range(3):
            model(tensors(2, 24, 32), memory).sum().backward()
        with torch.no_grad():
            model(tensors(2, 8, 32), memory)
    assert shapes(path) == {
        ("fwd-fp32-d8-causal", "b2-h4x2-s24"): 3, ("fwd-fp32-d8-causal", "b2-h4x2-s8"): 1,
        ("bwd-fp32-d8-causal", "b2-h4x2-s24"): 3,
        ("fwd-fp32-d16-dense", "b2-h2-s24x12"): 3, ("fwd-fp32-d16-dense", "b2-h2-s8x12"): 1,
        ("bwd-fp32-d16-dense", "b2-h2-s24x12"): 3,
    }
    spec = tmp_path / "spec.yaml"
    spec.write_text(to_yaml(from_capture(path)))
    assert from_yaml(spec, DEFAULT) == from_capture(path)


def test_results_are_those_without_and_the_function_comes_back(tmp_path: Path) -> None:
    q = tensors(1, 2, 8, 16)
    expected = functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    with capture(tmp_path / "a.jsonl"):
        seen = functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert torch.equal(seen, expected)
    assert functional.scaled_dot_product_attention is taken_before


def test_every_way_to_call_it_counts_once(tmp_path: Path) -> None:
    """By the module's name, by a name taken before, by a subclass, in another thread."""
    path, q = tmp_path / "a.jsonl", tensors(1, 2, 8, 16)
    with capture(path):
        functional.scaled_dot_product_attention(q, q, value=q)
        taken_before(q, key=q, value=q, is_causal=False)
        p = nn.Parameter(q)
        with torch.no_grad():
            functional.scaled_dot_product_attention(p, p, p, None, 0.0, False)
        thread = threading.Thread(
            target=lambda: functional.scaled_dot_product_attention(query=q, key=q, value=q)
        )
        thread.start()
        thread.join()
    assert shapes(path) == {("fwd-fp32-d16-dense", "b1-h2-s8"): 4}


def test_causal_is_what_torch_means_by_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with capture(path):
        q, k = tensors(1, 1, 4, 8), tensors(1, 1, 6, 8)
        functional.scaled_dot_product_attention(q, k, k, is_causal=True)
    assert set(shapes(path)) == {("fwd-fp32-d8-causal-topleft", "b1-h1-s4x6")}


def test_autocast_and_values_of_another_width(tmp_path: Path) -> None:
    path, q, v = tmp_path / "a.jsonl", tensors(1, 2, 8, 16), tensors(1, 2, 8, 24)
    with capture(path), torch.autocast("cpu", torch.bfloat16):
        functional.scaled_dot_product_attention(q, q, v)
    assert set(shapes(path)) == {("fwd-bf16-d16x24-dense", "b1-h2-s8")}


@pytest.mark.parametrize(("change", "says"), [
    ({"attn_mask": torch.ones(8, 8).bool()}, "a mask given as a tensor"),
    ({"dropout_p": 0.5}, "dropout"),
    ({"dtype": torch.float64}, "elements of torch.float64"),
    ({"dim": 12}, "head_dim 12 is not served"),
    ({"lead": (2, 1)}, "tensors of shapes"),
])
def test_what_cannot_be_tuned_is_named(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "a.jsonl"
    shape = (*change.pop("lead", (1,)), 2, 8, change.pop("dim", 16))
    q = tensors(*shape, dtype=change.pop("dtype", torch.float32))
    with capture(path):
        functional.scaled_dot_product_attention(q, q, q, **change)
    (line,) = unserved(path)
    assert line.startswith(f"1 calls with {says}")
    with pytest.raises(UsageError, match="no attention that fagen serves") as caught:
        from_capture(path)
    assert says in str(caught.value.hint)


def test_the_environment_decides_where_no_path_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = tensors(1, 2, 8, 16)
    monkeypatch.delenv(VARIABLE, raising=False)
    with capture():
        assert functional.scaled_dot_product_attention is taken_before
    monkeypatch.setenv(VARIABLE, str(tmp_path / "env.jsonl"))
    for _ in range(2):  # runs add up
        with capture() as counts:
            functional.scaled_dot_product_attention(q, q, q)
        assert sum(counts.calls.values()) == 1
    assert shapes(tmp_path / "env.jsonl") == {("fwd-fp32-d16-dense", "b1-h2-s8"): 2}


def test_what_ran_before_an_error_is_kept(tmp_path: Path) -> None:
    path, q = tmp_path / "a.jsonl", tensors(1, 2, 8, 16)

    def program() -> None:
        with capture(path):
            functional.scaled_dot_product_attention(q, q, q)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        program()
    assert len(shapes(path)) == 1
    with pytest.raises(UsageError, match="cannot be written"), capture("/proc/none/a.jsonl"):
        raise AssertionError("ran for nothing")


@pytest.mark.parametrize("line", ["nonsense", '{"problem": "x"}', "[]"])
def test_a_file_that_is_no_capture_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UsageError, match="line 1"):
        from_capture(path)


# --- the verbs ---------------------------------------------------------------------------------

PROGRAM = """
import sys
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa
q = torch.randn(1, 2, int(sys.argv[1]), 16)
for _ in range(5):
    sdpa(q, q, q, is_causal=True)
print("ran", __name__, sys.argv)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    (tmp_path / "program.py").write_text(PROGRAM)
    return str(tmp_path / "program.py")


def test_a_program_is_watched_and_tuned_from_what_it_did(
    program: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    spec = tmp_path / "spec.yaml"
    assert main(["capture", "-o", str(spec), "--json", "--", program, "48", "0"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["problems"] == [
        {"problem": "fwd-fp32-d16-causal", "workloads": [{"workload": "b1-h2-s48", "calls": 5}]}
    ]
    assert f"ran __main__ ['{program}', '48', '0']" in err
    monkeypatch.setenv("FAGEN_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("FAGEN_CACHE_DIR", str(tmp_path / "cache"))
    words = ["tune", "--from", str(spec), "--gpu", "none", "--trials", "2", "--effort", "quick",
             "-q", "--json"]
    assert main(words) == 0
    (entry,) = json.loads(capfd.readouterr().out)["entries"]
    assert (entry["problem"], entry["workload"]) == ("fwd-fp32-d16-causal", "b1-h2-s48")


def test_a_program_that_fails_leaves_what_it_did(
    program: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    counts = tmp_path / "counts.jsonl"
    assert main(["capture", "-o", str(counts), "--", program, "48", "3"]) == 1
    assert "the program ended with 3" in capfd.readouterr().err
    assert list(shapes(counts).values()) == [5]


@pytest.mark.parametrize(("words", "says"), [
    (["capture", "-o", "a.txt", "--", "x.py"], "neither .yaml nor .jsonl"),
    (["tune", "--from", "none.jsonl"], "there is no such file"),
    (["tune", "--from", "none.jsonl", "--spec", "a"], "exclude one another"),
    (["tune", "--from", "none.jsonl", "--seqlen", "64"], "a capture holds its own sizes"),
])
def test_wrong_words(words: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert says in capfd.readouterr().err
