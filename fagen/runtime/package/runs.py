"""Runs of keys that rise from query to query, and the runs of queries that follow from them."""

from __future__ import annotations

import torch
from torch import Tensor


def keys_to_queries(runs: Tensor, seqlen_kv: int) -> Tensor:
    """[batch, queries, 2], both ends rising -> the queries of each key, int32 [batch, keys, 2].

    Query q keeps key k from the first q whose run ends past k to the last whose begins by k.
    """
    keys = torch.arange(seqlen_kv, device=runs.device).expand(len(runs), -1).contiguous()
    ends = [runs[..., 1 - side].contiguous() for side in (0, 1)]
    return torch.stack(
        [torch.searchsorted(end.to(keys.dtype), keys, right=True) for end in ends], -1
    ).int().contiguous()
