"""Hopper: wgmma, TMA and warp specialisation (compute capability 9.0 only)."""

from __future__ import annotations

from fagen.families.base import Family
from fagen.families.sm90_bwd import BWD
from fagen.families.sm90_fwd import FORWARD

SM90 = Family(
    name="sm90",
    says="Hopper: wgmma, TMA, warp specialisation",
    toolchain="nvcc",
    kernels={"fwd": FORWARD, "bwd": BWD},
    runs_on=lambda target: target.kind == "cuda" and target.capability == (9, 0),
    arch=lambda target: "sm_90a",
)
