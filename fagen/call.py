"""One kernel bound to one set of tensors: what is verified, and what is timed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fagen.cases import Case
from fagen.inputs import CANARY, MASKS, Buffer, buffer, outputs
from fagen.library import TENSORS, Library, Params, View
from fagen.masks import drawn, point
from fagen.model import Problem


def parameters(problem: Problem, case: Case, tensors: Mapping[str, Tensor]) -> Params:
    """``fagen_params`` over tensors [batch, head, row, dim]; absent tensors are null."""
    w = case.workload.of(problem)
    params = Params(
        batch=w.batch, heads=w.heads, kv_heads=w.kv_heads, seqlen_q=w.seqlen_q,
        seqlen_kv=w.seqlen_kv, scale=case.scale_for(problem),
        total_q=w.total_q, total_kv=w.total_kv,
    )
    for name, tensor in tensors.items():
        if name in TENSORS:
            setattr(params, name, View(tensor.data_ptr(), *tensor.stride()[:3]))
        elif name not in MASKS:
            setattr(params, name, tensor.data_ptr())
    mask = drawn(problem, case)
    if mask is not None:
        arrays = {name: tensors[name].data_ptr() for name in MASKS if name in tensors}
        point(params, arrays, mask.sharing)
    return params


@dataclass(frozen=True)
class Call:
    """Holds every tensor that the parameters point into."""

    library: Library
    params: Params
    inputs: Mapping[str, Buffer]
    outputs: Mapping[str, Buffer]
    workspace: Buffer
    stream: int
    threads: int

    @classmethod
    def bind(
        cls, library: Library, problem: Problem, case: Case, inputs: Mapping[str, Buffer],
        device: str, threads: int,
    ) -> Call:
        made = {
            name: buffer(name, problem, case, device, CANARY) for name in outputs(problem)
        }
        tensors = {name: b.values for name, b in {**inputs, **made}.items()}
        params = parameters(problem, case, tensors)
        floats = -(-library.workspace_bytes(params) // 4)
        workspace = Buffer.empty((floats,), torch.float32, device, fill=CANARY)
        stream = torch.cuda.current_stream().cuda_stream if device.startswith("cuda") else 0
        return cls(library, params, inputs, made, workspace, stream, threads)

    @property
    def workspace_bytes(self) -> int:
        return 4 * self.workspace.values.numel()

    def poison(self) -> None:
        """What the kernel does not write must not look like a result."""
        for b in (*self.outputs.values(), self.workspace):
            b.values.fill_(math.nan)

    def __call__(self) -> None:
        self.library.run(
            self.params, self.workspace.values.data_ptr(), self.stream, self.threads
        )
