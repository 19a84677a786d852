"""The C table of a library: what the launcher must know of each kernel, from its family's Plan.

The other side is ``runtime/fagen_plan.h``. Cubins go in with ``.incbin``, from ``image0.cubin`` on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fagen.errors import UsageError
from fagen.families.plan import FACTORS, TENSORS, Plan, Product, Region, Step, TensorMap
from fagen.model import DTYPES, OPS, Binary, Candidate, Source
from fagen.render import symbol
from fagen.workload import Workload

_READS = ("", "blocks", "runs")  # enum fagen_mask_kind
_MOST = {"regions": 4, "steps": 4, "maps": 8, "factors": 5}  # the arrays of fagen_plan.h


@dataclass(frozen=True)
class Part:
    """One built kernel, and the sizes it was tuned for."""

    candidate: Candidate
    source: Source
    binary: Binary
    workload: Workload | None = None


def table(parts: Sequence[Part]) -> str:
    """The C text of ``fagen_kernels``. A kernel that won at several sizes has a row for each."""
    if not parts:
        raise UsageError("a library needs at least one kernel")
    rows = [(str(part.candidate), part.workload) for part in parts]
    for row in rows:
        if rows.count(row) > 1:
            raise UsageError(f"the same kernel is given twice: {row[0]}, tuned for {row[1]}")
    images = unique(parts)
    numbers = {str(part.candidate): i for i, part in enumerate(images)}
    count = len(parts)
    lines = ['#include "launcher.h"', ""]
    lines += [_declare(i, part) for i, part in enumerate(images)]
    lines += ["", f"const int fagen_kernel_count = {count};",
              f"void *_Atomic fagen_loaded[{count}];",
              f"const struct fagen_kernel fagen_kernels[{count}] = {{"]
    lines += [_kernel(numbers[str(part.candidate)], part) for part in parts]
    return "\n".join([*lines, "};", ""])


def unique(parts: Sequence[Part]) -> list[Part]:
    """One part per kernel, in order."""
    return list({str(part.candidate): part for part in reversed(parts)}.values())[::-1]


def on_host(part: Part) -> bool:
    return part.candidate.family.toolchain == "host"


def _declare(i: int, part: Part) -> str:
    if on_host(part):
        return (f"extern int {symbol(part.candidate)}(const struct fagen_params *, "
                "const struct fagen_host *);")
    return (f'__asm__(".section .rodata,\\"a\\"\\n.balign 64\\nfagen_image_{i}:\\n'
            f'.incbin \\"image{i}.cubin\\"\\n.byte 0\\n.previous\\n");\n'
            f"extern const unsigned char fagen_image_{i}[];")


def _kernel(i: int, part: Part) -> str:
    candidate, problem, target = part.candidate, part.candidate.problem, part.candidate.target
    plan = candidate.family.kernel(problem.op).plan(candidate)
    _check(plan, str(candidate))
    facts = {
        "problem": _text(str(problem)),
        "family": _text(candidate.family.name),
        "config": _text(candidate.family.show(candidate.config)),
        "target": _text(target.name),
        "sha256": _text(part.binary.sha256),
        "isa": _text(" ".join(target.isa)),
        "capability_major": target.capability[0],
        "capability_minor": target.capability[1],
        "sm_count": target.sm_count,
        "op": OPS.index(problem.op),
        "dtype": list(DTYPES).index(problem.dtype),  # the order of enum fagen_dtype
        "head_dim": problem.head_dim,
        "head_dim_v": problem.head_dim_v,
        "varlen": int("varlen" in problem.features),
        "mask": _READS.index(problem.pattern.reads),
        "tuned": _sizes(part),
        "region_count": len(plan.regions),
        "step_count": len(plan.steps),
        "region": _array(map(_region, plan.regions)),
        "step": _array(map(_step, plan.steps)),
    }
    if on_host(part):
        facts["entry"] = symbol(candidate)
    else:
        facts["image"] = f"fagen_image_{i}"
        facts["image_bytes"] = Path(part.binary.path).stat().st_size
    return "  {" + ",\n   ".join(f".{name} = {value}" for name, value in facts.items()) + "},"


def _check(plan: Plan, name: str) -> None:
    counts = {
        "regions": len(plan.regions),
        "steps": len(plan.steps),
        "maps": max((len(step.maps) for step in plan.steps), default=0),
        "factors": max((len(p.factors) for s in plan.steps for p in s.grid), default=0),
    }
    for what, most in _MOST.items():
        if counts[what] > most:
            raise UsageError(f"{name}: its plan has {counts[what]} {what}; {most} fit")


def _text(value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise UsageError(f"{value!r} cannot go into the library: printable ASCII only")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("?", "\\?") + '"'


def _array(items: Iterable[str]) -> str:
    return "{" + ", ".join(items) + "}"


def _sizes(part: Part) -> str:
    if part.workload is None:
        return "{0}"
    return _array(str(n) for n in mean_sizes(part.workload))


def mean_sizes(w: Workload) -> list[int]:
    """Batch, heads, key/value heads and the lengths, of packed sequences the mean ones."""
    lengths = (max(1, rows // w.batch) for rows in (w.rows_q, w.rows_kv))
    return [w.batch, w.heads, w.kv_heads, *lengths]


def _product(product: Product) -> str:
    factors = _array(f"{{{FACTORS.index(f.kind)}, {f.arg}}}" for f in product.factors)
    return f"{{{len(product.factors)}, {factors}}}"


def _region(region: Region) -> str:
    return f"{{{_product(region.bytes)}, {int(region.zero)}}}"


def _map(m: TensorMap) -> str:
    return (f"{{{TENSORS.index(m.tensor)}, {m.box_dim}, {m.box_rows}, {m.swizzle}, "
            f"{m.head_dim}, {m.l2_fetch}}}")


def _step(step: Step) -> str:
    return (f"{{{_text(step.symbol)}, {_array(map(_product, step.grid))}, {step.block}, "
            f"{step.shared_bytes}, {step.ctas_per_sm}, {int(step.overlap)}, {len(step.maps)}, "
            f"{_array(map(_map, step.maps))}}}")
