"""What to tune, of many problems: a YAML spec, a Hugging Face model config, a benchmark's cells.

    problems:
      - problem: fwd-bf16-d128-causal
        workloads:
          - {workload: b4-h32x8-s8192, weight: 3}
          - b1-h32x8-s2048
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fagen import suites, yamlfile
from fagen.errors import FagenError, UsageError
from fagen.model import OPS, Problem
from fagen.workload import Workload
from fagen.yamlfile import Complaint, field, mapping, only

Noun = TypeVar("Noun", Problem, Workload)


@dataclass(frozen=True)
class Job:
    """One problem and the sizes it is tuned for."""

    problem: Problem
    workloads: tuple[Workload, ...]


# --- YAML --------------------------------------------------------------------------------------


def from_yaml(path: Path, default: Workload) -> tuple[Job, ...]:
    """The jobs of a spec; a problem without workloads gets the default one."""
    try:
        top = mapping(yamlfile.read(path), 1, "the spec")
        only(top, ("problems",))
        listed = field(top, "problems", list)
        jobs = tuple(_job(item, top.lines["problems"], default) for item in listed)
        if not jobs:
            raise Complaint(top.lines["problems"], "problems is empty")
    except Complaint as error:
        where = f"{path}, line {error.line}" if error.line else str(path)
        raise UsageError(f"{where}: {error.says}", "docs/tuning.md shows a spec") from None
    return jobs


def _job(item: Any, line: int, default: Workload) -> Job:
    if isinstance(item, str):
        return Job(_made(line, Problem.parse, item), (default,))
    given = mapping(item, line, "a problem")
    only(given, ("problem", "workloads"))
    problem = _made(given.lines.get("problem", line), Problem.parse, field(given, "problem", str))
    if "workloads" not in given:
        return Job(problem, (default,))
    here = given.lines["workloads"]
    workloads = tuple(_workload(w, here) for w in field(given, "workloads", list))
    if not workloads:
        raise Complaint(here, "workloads is empty")
    return Job(problem, workloads)


def _workload(item: Any, line: int) -> Workload:
    if isinstance(item, str):
        return _made(line, Workload.parse, item)
    given = mapping(item, line, "a workload")
    only(given, ("workload", "weight"))
    weight = field(given, "weight", float) if "weight" in given else 1.0
    return _made(given.line, lambda slug: Workload.parse(slug, weight),
                 field(given, "workload", str))


def _made(line: int, make: Callable[[str], Noun], text: str) -> Noun:
    try:
        return make(text)
    except FagenError as error:
        raise Complaint(line, error.message) from None


# --- a benchmark -------------------------------------------------------------------------------


def from_suite(name: str, ops: Sequence[str] = OPS) -> tuple[Job, ...]:
    """One job per problem of the suite, with the sizes that the suite times it at. Every size
    counts alike, as in a mean of ratios: its weight is the inverse of its work."""
    sizes: dict[Problem, dict[Workload, None]] = {}
    for cell in suites.suite(name):
        for problem in cell.problems:
            if problem.op in ops:
                sizes.setdefault(problem, {})[cell.workload] = None
    return tuple(Job(problem, _alike(problem, tuple(sizes[problem]))) for problem in sorted(sizes))


def _alike(problem: Problem, sizes: tuple[Workload, ...]) -> tuple[Workload, ...]:
    work = [size.flops(problem) for size in sizes]
    return tuple(
        replace(size, weight=round(max(work) / flops, 3))
        for size, flops in zip(sizes, work, strict=True)
    )


# --- captured ----------------------------------------------------------------------------------


def from_capture(path: Path) -> tuple[Job, ...]:
    """What ``fagen.capture`` wrote, added up: a workload's weight is its number of calls."""
    calls: dict[str, dict[str, int]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            told = json.loads(line)
            if "unserved" not in told:
                sizes = calls.setdefault(told["problem"], {})
                sizes[told["workload"]] = sizes.get(told["workload"], 0) + int(told["calls"])
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path}, line {number}: not a line of a capture") from None
    if not calls:
        raise UsageError(f"{path} holds no attention that fagen serves",
                         "\n      ".join(unserved(path)) or "did the program call attention?")
    return tuple(
        Job(Problem.parse(slug), tuple(
            Workload.parse(w, float(n)) for w, n in sorted(sizes.items(), key=lambda s: (-s[1], s))
        ))
        for slug, sizes in sorted(calls.items())
    )


def unserved(path: Path) -> list[str]:
    """What a capture saw that cannot be tuned, in words."""
    seen: dict[str, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        if "unserved" in told:
            seen[told["unserved"]] = seen.get(told["unserved"], 0) + told["calls"]
    return [f"{count} calls with {why}" for why, count in sorted(seen.items())]


def to_yaml(jobs: Sequence[Job]) -> str:
    """The spec of these jobs."""
    return yamlfile.dump({"problems": [
        {"problem": str(job.problem), "workloads": [
            yamlfile.Line({"workload": str(w), "weight": w.weight}) for w in job.workloads
        ]}
        for job in jobs
    ]})


# --- Hugging Face ------------------------------------------------------------------------------

# The names that model families use for the same thing, most common first.
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_KV_HEADS = ("num_key_value_heads",)
_HEAD_DIM = ("head_dim", "d_kv")
_DTYPE = ("torch_dtype", "dtype")
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_ENCODERS = ("MaskedLM", "SequenceClassification", "TokenClassification", "ImageClassification")


def from_hf(
    path: Path, batch: int, seqlen: int, ops: Sequence[str] = OPS
) -> tuple[Job, ...]:
    """One job per op and mask that the model's layers use."""
    config = _read_config(path)
    heads = _number(config, _HEADS, path)
    kv_heads = _number(config, _KV_HEADS, path, heads)
    dims = _head_dims(config, heads, path)
    dtype = _dtype(config, path)
    size = Workload(batch, heads, kv_heads, seqlen, seqlen)
    return tuple(
        Job(Problem.parse(f"{op}-{dtype}-{dims}-{pattern}"), (size,))
        for pattern in _patterns(config, seqlen) for op in ops
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path} is not a model config: it holds no JSON object")
    nested = config.get("text_config")  # models of several modes
    return {**config, **nested} if isinstance(nested, dict) else config


def _number(
    config: dict[str, Any], names: Sequence[str], path: Path, default: int | None = None
) -> int:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise UsageError(f"{path}: {name} is {value!r}, which is not a positive integer")
        return value
    if default is None:
        raise UsageError(
            f"{path} has none of: {', '.join(names)}", "give the problem and sizes by hand"
        )
    return default


def _head_dims(config: dict[str, Any], heads: int, path: Path) -> str:
    if "qk_nope_head_dim" in config:  # latent attention: keys and values differ in width
        nope = _number(config, ("qk_nope_head_dim",), path)
        rope = _number(config, ("qk_rope_head_dim",), path)
        return f"d{nope + rope}x{_number(config, ('v_head_dim',), path)}"
    if any(config.get(name) is not None for name in _HEAD_DIM):
        return f"d{_number(config, _HEAD_DIM, path)}"
    hidden = _number(config, _HIDDEN, path)
    if hidden % heads:
        raise UsageError(f"{path}: hidden size {hidden} is not a multiple of {heads} heads")
    return f"d{hidden // heads}"


def _dtype(config: dict[str, Any], path: Path) -> str:
    name = next((config[key] for key in _DTYPE if config.get(key)), "float32")
    try:
        return _DTYPES[str(name).removeprefix("torch.")]
    except KeyError:
        raise UsageError(
            f"{path}: dtype {name!r} is not served", f"one of: {', '.join(_DTYPES)}"
        ) from None


def _patterns(config: dict[str, Any], seqlen: int) -> tuple[str, ...]:
    """A window of W in a model config counts the query itself: W - 1 keys before it."""
    names = config.get("architectures") or ()
    if any(str(name).endswith(_ENCODERS) for name in names) and not config.get("is_decoder"):
        return ("dense",)
    window = config.get("sliding_window")
    if config.get("use_sliding_window") is False or type(window) is not int or window < 1:
        return ("causal",)
    kinds = set(config.get("layer_types") or ("sliding_attention",))
    found = ("causal",) if "full_attention" in kinds or window >= seqlen else ()
    slides = "sliding_attention" in kinds and window < seqlen
    return (*found, f"window{window - 1}") if slides else found or ("causal",)
