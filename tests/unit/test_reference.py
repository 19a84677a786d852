"""The reference against torch's own autograd through attention spelled out, in fp64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from fagen import reference
from fagen.cases import INPUTS, NOT_FINITE, Case
from fagen.inputs import random_inputs
from fagen.model import Problem
from fagen.patterns import parse_pattern
from fagen.workload import Workload

SIZES = [(5, 5), (7, 12), (12, 7), (1, 9), (33, 1)]
PATTERNS = ["dense", "causal", "causal-topleft", "window3", "window2x4", "prefix4", "blockdiag3",
            "strided-s3-causal", "longformer-w1-g2", "butterfly-b2"]


def spelled_out(q, k, v, mask, scale):
    s = (q @ k.mT * scale).masked_fill(~mask, -math.inf)
    lse = torch.logsumexp(s, -1)
    alive = mask.any(-1)
    p = torch.softmax(s.masked_fill(~alive[:, None], 0), -1).masked_fill(~alive[:, None], 0)
    return p @ v, lse


@pytest.mark.parametrize("slug", PATTERNS)
@pytest.mark.parametrize(("seqlen_q", "seqlen_kv"), SIZES)
def test_exact_is_what_autograd_says(slug, seqlen_q, seqlen_kv, monkeypatch):
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 3 * 2 * seqlen_kv)  # several chunks
    pattern = parse_pattern(slug)
    torch.manual_seed(0)
    q = torch.randn(2, seqlen_q, 8, dtype=torch.float64, requires_grad=True)
    k = torch.randn(seqlen_kv, 8, dtype=torch.float64, requires_grad=True)
    v = torch.randn(seqlen_kv, 16, dtype=torch.float64, requires_grad=True)
    dout = torch.randn(2, seqlen_q, 16, dtype=torch.float64)
    dlse = torch.randn(2, seqlen_q, dtype=torch.float64)
    keep = torch.from_numpy(pattern.mask(seqlen_q, seqlen_kv))
    o, lse = spelled_out(q, k, v, keep, 0.3)
    alive = keep.any(-1)
    want = torch.autograd.grad(
        (o * dout).sum() + (lse[:, alive] * dlse[:, alive]).sum(), (q, k, v)
    )

    mask = reference.Mask(pattern, seqlen_q, seqlen_kv, "cpu")
    with torch.no_grad():
        got_o, got_lse, largest = reference.forward(q, k, v, mask, 0.3, reference.EXACT)
        got = reference.backward(
            q, k, v, got_o, got_lse, dout, dlse, mask, 0.3, reference.EXACT
        )
    torch.testing.assert_close(got_o, o.detach())
    torch.testing.assert_close(got_lse, lse.detach())
    for mine, theirs in zip((got.dq, got.dk, got.dv), want, strict=True):
        torch.testing.assert_close(mine, theirs)
    kept = (q @ k.mT * 0.3).detach().abs().masked_select(keep)
    assert largest == pytest.approx(float(kept.max()) if keep.any() else 0.0)


def test_plain_rounds_what_a_16_bit_kernel_must_round():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 64, 32), torch.randn(64, 32), torch.randn(64, 32)
    mask = reference.Mask(parse_pattern("dense"), 64, 64, "cpu")
    exact, _, _ = reference.forward(q, k, v, mask, 0.2, reference.EXACT)
    fp32, _, _ = reference.forward(q, k, v, mask, 0.2, reference.plain(torch.float32))
    bf16, _, _ = reference.forward(q, k, v, mask, 0.2, reference.plain(torch.bfloat16))
    assert torch.equal(bf16, bf16.bfloat16().float())
    fp32_error, bf16_error = (float((x - exact).abs().max()) for x in (fp32, bf16))
    assert 0 < fp32_error < 1e-5
    assert 1e-4 < bf16_error < 2e-2


@pytest.mark.parametrize("kind", INPUTS)
def test_strange_inputs_give_what_torch_gives(kind):
    """Where a score is +inf or not a number torch has no more meaning than we do: not finite."""
    problem, case = Problem.parse("fwd-fp32-d16"), Case(Workload(1, 2, 1, 21, 30), kind)
    given = {n: b.values.double() for n, b in random_inputs(problem, case, "cpu").items()}
    q, k, v = given["q"], given["k"], given["v"]
    with sdpa_kernel(SDPBackend.MATH):
        want = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    mask = reference.Mask(problem.pattern, 21, 30, "cpu")
    o, lse, _ = reference.forward(q[0], k[0, 0], v[0, 0], mask, 16**-0.5, reference.EXACT)
    torch.testing.assert_close(o, want[0], equal_nan=True)
    strange = ~o.isfinite().all(-1)
    assert bool(strange.any()) == (kind in NOT_FINITE)
    if kind in ("nan_q", "nan_k"):
        assert not lse[strange].isfinite().any()
