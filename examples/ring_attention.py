"""Ring attention: each process holds one stretch of a sequence, keys and values go around.

    torchrun --nproc-per-node 2 examples/ring_attention.py my_attention

Every process computes its queries against each stretch of keys in turn, while the next one is on
its way, and joins the partial results with ``merge``, which is exact. Gradients flow back through
the log-sum-exps and travel around the ring the other way. The communication is torch.distributed's:
gloo between processes of one machine, NCCL between GPUs.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def exchange(tensors: tuple[Tensor, ...], to: int, source: int) -> tuple[list[Tensor], list[Any]]:
    """Send tensors to one process and receive their like from another; wait for the works."""
    sent = [x.contiguous() for x in tensors]
    received = [torch.empty_like(x) for x in sent]
    works = dist.batch_isend_irecv([
        *(dist.P2POp(dist.isend, x, to) for x in sent),
        *(dist.P2POp(dist.irecv, x, source) for x in received),
    ])
    return received, works


class Rotate(torch.autograd.Function):
    """Keys and values go to the next process, their gradients to the one before."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, works: list[Any]) -> tuple[Tensor, Tensor]:
        rank, world = dist.get_rank(), dist.get_world_size()
        ctx.neighbours = (rank + 1) % world, (rank - 1) % world
        (k, v), started = exchange((k, v), *ctx.neighbours)
        works += started
        return k, v

    @staticmethod
    def backward(ctx: Any, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor, None]:
        to, source = ctx.neighbours
        (dk, dv), works = exchange((dk, dv), source, to)
        for work in works:
            work.wait()
        return dk, dv, None


def rotated(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
    """The neighbour's keys and values, not to be read before the works are done."""
    works: list[Any] = []
    return *Rotate.apply(k, v, works), works


class TakePart(torch.autograd.Function):
    """The output as it is, and a gradient of 0 for keys that it does not depend on.

    Without it a process that skips the last stretch would not call ``Rotate.backward``, and its
    neighbours would wait for it forever.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(k, v)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v = ctx.saved_tensors
        return dout, torch.zeros_like(k), torch.zeros_like(v)


def ring_attention(
    package: Any, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention over the sequence that all processes hold together, in the order of their ranks.

    q [batch, heads, rows, dim], k and v alike: this process's stretch, equally long everywhere.
    Returns this process's rows of the output and of the log-sum-exp.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    k_next, v_next, works = rotated(k, v) if world > 1 else (k, v, [])
    found = package.attention(q, k, v, causal=causal, return_lse=True)
    for step in range(1, world):
        for work in works:
            work.wait()
        k, v = k_next, v_next
        if step + 1 < world:
            k_next, v_next, works = rotated(k, v)
        if causal and step > rank:  # keys from further on in the sequence
            found = TakePart.apply(found[0], k, v), found[1]
        else:
            found = package.merge(*found, *package.attention(q, k, v, return_lse=True))
    return found


# --- a run against one process -------------------------------------------------------------------


def reference(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The whole sequence by the formula, in fp64."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT / math.sqrt(q.shape[3])
    if causal:
        rows = scores.shape[-1]
        later = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def worst(package: Any, arguments: argparse.Namespace, causal: bool, device: str) -> float:
    """The largest error of this process's results and gradients, as a share of the largest value.

    Every process makes the whole sequence from one seed, so that each can check its own stretch.
    """
    made = torch.Generator().manual_seed(0)
    rank, world = dist.get_rank(), dist.get_world_size()
    whole = [torch.randn(2, heads, world * arguments.rows, arguments.dim, generator=made)
             for heads in (4, 2, 2)]
    weights = torch.randn(whole[0].shape, generator=made), torch.randn(
        whole[0].shape[:3], generator=made)
    mine = slice(rank * arguments.rows, (rank + 1) * arguments.rows)
    dtype = getattr(torch, arguments.dtype)
    whole = [x.to(device, dtype) for x in whole]
    exact = [x.double().requires_grad_() for x in whole]
    right = reference(*exact, causal)
    dright = torch.autograd.grad(right, exact, [x.to(device).double() for x in weights])

    given = [x[:, :, mine].contiguous().requires_grad_() for x in whole]
    found = ring_attention(package, *given, causal=causal)
    douts = [x[:, :, mine].to(device, y.dtype) for x, y in zip(weights, found, strict=True)]
    dfound = torch.autograd.grad(found, given, douts)
    return max(
        float((x.double() - y[:, :, mine]).abs().max() / y.abs().max())
        for x, y in zip((*found, *dfound), (*right, *dright), strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", help="an emitted package with dense and causal kernels")
    parser.add_argument("--rows", type=int, default=512, help="of each process")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    package = importlib.import_module(arguments.package)
    gpus = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = f"cuda:{os.environ['LOCAL_RANK']}" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo")
    bound = {"float32": 1e-5, "float16": 1e-2}.get(arguments.dtype, 6e-2)
    failed = False
    for causal in (False, True):
        error = worst(package, arguments, causal, device)
        failed |= not error <= bound
        print(f"rank {dist.get_rank()} of {dist.get_world_size()} on {device}, causal {causal}: "
              f"error {error:.1e} of the largest value, at most {bound:.0e}", flush=True)
    dist.destroy_process_group()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
