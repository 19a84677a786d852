"""Compile a CPU candidate with g++ and call it on torch tensors, without the rest of fagen."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from fagen import compilers, paths
from fagen.families.cpu import CPU
from fagen.library import Params, View
from fagen.model import Candidate, Problem
from fagen.render import Renderer, symbol
from fagen.target import Target

TORCH_DTYPE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Harness:
    """Builds into one folder, once per text."""

    folder: Path

    def compile(self, candidate: Candidate) -> ctypes._CFuncPtr:
        source = Renderer(paths.templates()).render(candidate)
        flags = [f for f in compilers.host_flags(candidate) if f not in ("-c", "-x", "c++")]
        key = hashlib.sha256((source.digest + str(flags)).encode()).hexdigest()
        library = self.folder / f"{key[:16]}.so"
        if not library.exists():
            text = library.with_suffix(".cpp")
            text.write_text(source.text)
            subprocess.run([compilers.find_cxx(), *flags, "-Werror", "-shared", str(text), "-o",
                            str(library)], check=True, timeout=600)
        return getattr(ctypes.CDLL(str(library)), symbol(candidate))

    @functools.cached_property
    def team(self) -> ctypes.CDLL:
        source, library = Path(__file__).with_name("team.cpp"), self.folder / "team.so"
        subprocess.run([compilers.find_cxx(), "-std=c++20", "-O2", "-shared", "-fPIC", "-pthread",
                        f"-I{paths.templates()}", str(source), "-o", str(library)],
                       check=True, timeout=600)
        return ctypes.CDLL(str(library))

    def call(self, candidate: Candidate, tensors: dict[str, torch.Tensor], lse: torch.Tensor,
             scale: float, dlse: torch.Tensor | None = None, threads: int = 2) -> None:
        params = make_params(tensors, lse, scale, dlse)
        status = self.team.call(self.compile(candidate), ctypes.byref(params), threads)
        assert status == 0


def make_params(tensors: dict[str, torch.Tensor], lse: torch.Tensor, scale: float,
                dlse: torch.Tensor | None) -> Params:
    """Tensors are [batch, head, row, dim], any strides but a dim stride of 1."""
    params = Params(lse=lse.data_ptr(), dlse=dlse.data_ptr() if dlse is not None else None,
                    scale=scale)
    for name, tensor in tensors.items():
        assert tensor.stride(3) == 1
        setattr(params, name, View(tensor.data_ptr(), *tensor.stride()[:3]))
    q, k = tensors["q"], tensors["k"]
    params.batch, params.heads, params.seqlen_q = q.shape[:3]
    params.kv_heads, params.seqlen_kv = k.shape[1:3]
    return params


def default(slug: str, target: str, **knobs: object) -> Candidate:
    return CPU.default(Problem.parse(slug), Target.known(target)).with_config(**knobs)
