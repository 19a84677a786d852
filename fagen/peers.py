"""Other implementations of attention that this machine has, as calls that a lap can time.

They take part in the final lap, so that an entry can say whether tuning beat them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from fagen.cases import Case
from fagen.inputs import Buffer
from fagen.model import Problem


@dataclass(frozen=True)
class PeerCall:
    """One pass of a peer. What it allocates meanwhile is its own affair."""

    run: Callable[[], Any]
    workspace_bytes: int = 0

    def __call__(self) -> None:
        self.run()


def bind(
    name: str, problem: Problem, case: Case, inputs: Mapping[str, Buffer], threads: int
) -> PeerCall:
    """The same tensors and the same work as a kernel of ours has."""
    if name == "torch":
        return _torch(problem, case, inputs, _plain(threads))
    return _torch(problem, case, inputs, _cudnn())


Within = Callable[[Callable[[], Any]], Callable[[], Any]]


def _plain(threads: int) -> Within:
    """torch's own choice of backend, on as many threads as our kernels have."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return lambda run: run


def _cudnn() -> Within:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def within(run: Callable[[], Any]) -> Callable[[], Any]:
        def chosen() -> Any:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return run()

        return chosen

    return within


def _torch(
    problem: Problem, case: Case, inputs: Mapping[str, Buffer], within: Within
) -> PeerCall:
    w, causal = case.workload, str(problem.pattern) != "dense"
    given = [inputs[name].values for name in "qkv"]
    grouped = w.heads != w.kv_heads

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=case.scale_for(problem), enable_gqa=grouped
        )

    if problem.op == "fwd":
        return PeerCall(within(lambda: attend(*given)))
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    with torch.enable_grad():
        out = within(lambda: attend(*leaves))()
    dout = inputs["dout"].values
    return PeerCall(within(
        lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)
    ))
