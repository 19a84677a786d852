"""Hardware: what rules may ask about it, and a table of what can be built for without having it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from fagen.errors import UsageError


@dataclass(frozen=True)
class Target:
    """What rules may ask about hardware. The name is a label, never a key."""

    name: str
    kind: str  # "cpu" or "cuda"
    capability: tuple[int, int] = (0, 0)  # cuda: compute capability
    sm_count: int = 0
    shared_bytes: int = 0  # per block, opt-in
    isa: tuple[str, ...] = ()  # cpu: instruction sets, sorted
    cores: int = 0
    l1_bytes: int = 0
    l2_bytes: int = 0
    memory_gb_s: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.name):
            raise UsageError(f"target name {self.name!r} must be lower-case letters, digits, . _ -")

    @classmethod
    def known(cls, name: str) -> Target:
        try:
            return KNOWN_TARGETS[name]
        except KeyError:
            raise UsageError(
                f"unknown target {name!r}", f"known: {', '.join(sorted(KNOWN_TARGETS))}"
            ) from None

    def facts(self) -> dict[str, Any]:
        """What must match for a tuned entry to apply here: everything but the label."""
        given = asdict(self)
        del given["name"]
        return given

    def serves(self, other: Target) -> bool:
        """Can code built for this target run on the other?"""
        if self.kind != other.kind:
            return False
        if self.kind == "cpu":
            return set(self.isa) <= set(other.isa)
        return self.capability == other.capability


def _gpu(name: str, cc: tuple[int, int], sms: int, smem_kb: int, l2_mb: int, gb_s: float) -> Target:
    return Target(
        name, "cuda", cc, sms, smem_kb * 1024, l2_bytes=l2_mb << 20, memory_gb_s=gb_s
    )


_X86_64_V3 = ("avx2", "f16c", "fma")
_X86_64_V4 = (*_X86_64_V3, "avx512bw", "avx512dq", "avx512f", "avx512vl")


def _cpu(name: str, isa: tuple[str, ...], l2_kb: int) -> Target:
    return Target(name, "cpu", isa=tuple(sorted(isa)), cores=8, l1_bytes=32 << 10,
                  l2_bytes=l2_kb << 10)


KNOWN_TARGETS = {
    t.name: t
    for t in (
        _gpu("a100", (8, 0), 108, 163, 40, 2039),
        _gpu("a10", (8, 6), 72, 99, 6, 600),
        _gpu("rtx3090", (8, 6), 82, 99, 6, 936),
        _gpu("l4", (8, 9), 58, 99, 48, 300),
        _gpu("rtx4090", (8, 9), 128, 99, 72, 1008),
        _gpu("h100", (9, 0), 132, 227, 50, 3350),
        _gpu("h200", (9, 0), 132, 227, 60, 4800),
        _gpu("b200", (10, 0), 148, 227, 126, 8000),
        _gpu("rtx5090", (12, 0), 170, 99, 96, 1792),
        _cpu("x86-64-v3", _X86_64_V3, 512),
        _cpu("x86-64-v4", _X86_64_V4, 1024),
        _cpu("x86-64-v4-bf16", (*_X86_64_V4, "avx512_bf16"), 1024),
    )
}
