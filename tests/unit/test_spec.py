"""Files that say what to tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fagen.errors import UsageError
from fagen.spec import from_hf, from_suite, from_yaml
from fagen.workload import Workload

DEFAULT = Workload(1, 8, 8, 2048, 2048)


def spec(tmp_path: Path, text: str) -> list[tuple[str, list[tuple[str, float]]]]:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return [
        (str(job.problem), [(str(w), w.weight) for w in job.workloads])
        for job in from_yaml(path, DEFAULT)
    ]


def test_a_spec_holds_problems_with_weighted_sizes(tmp_path: Path) -> None:
    assert spec(tmp_path, """
problems:
  - problem: fwd-bf16-d128-causal
    workloads:
      - {workload: b4-h32x8-s8192, weight: 3}
      - b1-h32x8-s2048
  - problem: bwd-fp32-d64-dense
  - fwd-fp16-d64-window256
""") == [
        ("fwd-bf16-d128-causal", [("b4-h32x8-s8192", 3.0), ("b1-h32x8-s2048", 1.0)]),
        ("bwd-fp32-d64-dense", [("b1-h8-s2048", 1.0)]),
        ("fwd-fp16-d64-window256", [("b1-h8-s2048", 1.0)]),
    ]


@pytest.mark.parametrize(("text", "says"), [
    ("", "line 1: the spec is not a mapping"),
    ("problem: x", "unknown key 'problem'"),
    ("problems: []", "problems is empty"),
    ("problems: 3", "problems is 3"),
    ("problems: [3]", "a problem is not a mapping"),
    ("problems:\n  - problem: fwd-fp32-d65-dense", "line 2: head_dim 65 is not served"),
    ("problems:\n  - problem: fwd-fp32-d64\n    workloads: []", "line 3: workloads is empty"),
    ("problems:\n  - problem: fwd-fp32-d64\n    sizes: []", "line 3: unknown key 'sizes'"),
    ("problems:\n  - problem: fwd-fp32-d64\n    workloads: [b1]", "cannot read the workload 'b1'"),
    ("problems:\n  - problem: fwd-fp32-d64\n    workloads:\n    - {workload: b1-h1-s1, weight: 0}",
     "line 4: weight 0.0 is not positive"),
    ("problems: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    ("problems: [", "line"),
])
def test_a_wrong_spec_is_an_error_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        spec(tmp_path, text)
    assert says in caught.value.message
    assert "spec.yaml" in caught.value.message


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "torch_dtype": "bfloat16",
}


def model(tmp_path: Path, config: Any, **sizes: Any) -> list[tuple[str, str]]:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    jobs = from_hf(path, **{"batch": 2, "seqlen": 4096, "ops": ("fwd",)} | sizes)
    return [(str(job.problem), str(job.workloads[0])) for job in jobs]


def test_a_model_config_becomes_problems(tmp_path: Path) -> None:
    assert model(tmp_path, LLAMA, ops=("fwd", "bwd")) == [
        ("fwd-bf16-d128-causal", "b2-h32x8-s4096"), ("bwd-bf16-d128-causal", "b2-h32x8-s4096"),
    ]


@pytest.mark.parametrize(("changes", "problems"), [
    ({"head_dim": 64}, ["fwd-bf16-d64-causal"]),
    ({"torch_dtype": None, "dtype": "float16"}, ["fwd-fp16-d128-causal"]),
    ({"torch_dtype": None}, ["fwd-fp32-d128-causal"]),
    ({"sliding_window": 1024}, ["fwd-bf16-d128-window1023"]),
    ({"sliding_window": 8192}, ["fwd-bf16-d128-causal"]),
    ({"sliding_window": 1024, "use_sliding_window": False}, ["fwd-bf16-d128-causal"]),
    ({"sliding_window": 1024, "layer_types": ["full_attention", "sliding_attention"]},
     ["fwd-bf16-d128-causal", "fwd-bf16-d128-window1023"]),
    ({"architectures": ["BertForMaskedLM"]}, ["fwd-bf16-d128-dense"]),
    ({"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
     ["fwd-bf16-d192x128-causal"]),
    ({"text_config": {"hidden_size": 2048}}, ["fwd-bf16-d64-causal"]),
])
def test_what_a_model_config_says_is_heeded(
    tmp_path: Path, changes: dict[str, Any], problems: list[str]
) -> None:
    assert [slug for slug, _ in model(tmp_path, LLAMA | changes)] == problems


@pytest.mark.parametrize(("config", "says"), [
    ([], "holds no JSON object"),
    ({}, "has none of: num_attention_heads"),
    (LLAMA | {"num_attention_heads": 33}, "hidden size 4096 is not a multiple of 33 heads"),
    (LLAMA | {"num_attention_heads": -1}, "num_attention_heads is -1"),
    (LLAMA | {"num_key_value_heads": 5}, "heads 32 is not a multiple of kv_heads 5"),
    (LLAMA | {"torch_dtype": "float64"}, "dtype 'float64' is not served"),
    (LLAMA | {"head_dim": 300}, "head_dim 300 is not served"),
])
def test_a_model_config_that_cannot_be_served(tmp_path: Path, config: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        model(tmp_path, config)
    assert says in caught.value.message


def test_a_model_config_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        from_hf(path, 1, 1)


def test_a_suite_is_tuned_at_the_sizes_it_is_timed_at() -> None:
    jobs = from_suite("core")
    assert len(jobs) == 12  # 3 head dimensions, 2 masks, 2 ops
    assert {str(j.problem) for j in jobs} >= {"fwd-bf16-d64-dense", "bwd-bf16-d256-causal"}
    assert [str(w) for w in jobs[0].workloads] == [
        f"b{16384 // s}-h{2048 // jobs[0].problem.head_dim}-s{s}" for s in
        (512, 1024, 2048, 4096, 8192, 16384)
    ]
    dense = next(j for j in jobs if str(j.problem) == "fwd-bf16-d64-dense")
    assert [w.weight for w in dense.workloads] == [32, 16, 8, 4, 2, 1]
    # Forward + backward needs both kernels, once.
    both = from_suite("cpu-core")
    assert {j.problem.op for j in both if j.problem.dtype == "fp32"} == {"fwd", "bwd"}
    assert all(len(set(j.workloads)) == len(j.workloads) == 4 for j in both)
    assert {j.problem.op for j in from_suite("extra", ("bwd",))} == {"bwd"}
