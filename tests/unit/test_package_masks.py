"""Masks of emitted packages: what they are made from, what is wrong with them, what is computed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from fagen.emit import emit
from tests.unit.imported import imported
from tests.unit.test_package import _shipped, tensors

NAME = "masked_attention"
PATTERNS = ("blocks16", "blocks16x32-causal", "documents")
SLUGS = [f"{op}-fp32-d8-{pattern}" for pattern in PATTERNS for op in ("fwd", "bwd")]
LENGTHS = (50, 70)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        kernels = [_shipped(slug) for slug in [*SLUGS, "fwd-fp32-d8-blocks64"]]
        yield emit(kernels, tmp_path_factory.mktemp("made") / NAME)


@pytest.fixture(scope="module")
def package(folder: Path) -> Iterator[Any]:
    with imported(folder) as module:
        yield module


def formula(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """In fp64, by torch's autograd; a row without a key is 0 and -inf."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), *(x.double().repeat_interleave(group, 1) for x in (k, v))
    seen = keep.any(-1, keepdim=True)
    scores = (q @ k.mT * q.shape[3] ** -0.5).masked_fill(~keep, -math.inf).masked_fill(~seen, 0)
    out = scores.softmax(-1).masked_fill(~seen, 0) @ v
    return out, scores.logsumexp(-1).masked_fill(~seen[..., 0], -math.inf)


def random(*shape: int, share: float = 0.4) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) < share


def blocks_of(mask: Tensor, bq: int, bkv: int) -> Tensor:
    """Blocks of booleans as elements of LENGTHS."""
    grown = mask.repeat_interleave(bq, -2).repeat_interleave(bkv, -1)
    return grown[..., : LENGTHS[0], : LENGTHS[1]]


def causal() -> Tensor:
    return torch.ones(LENGTHS, dtype=torch.bool).tril(LENGTHS[1] - LENGTHS[0])


def every_mask(p: Any) -> dict[str, tuple[Any, Tensor]]:
    """Masks, and what they are to keep."""
    elements, per_head = random(*LENGTHS), random(2, 4, *LENGTHS, share=0.02)
    blocks = random(2, 1, 4, 3)
    blocks[0, 0, 1] = False
    documents = torch.tensor([7] * 20 + [3] * 5 + [9] * 25), torch.tensor([7] * 1 + [9] * 69)
    made = p.BlockSparseMask, p.DocumentMask
    return {
        "elements": (made[0].from_elements(elements.numpy(), block_size=16), elements),
        "elements of each head": (made[0].from_elements(per_head, block_size=16), per_head),
        "blocks": (
            made[0].from_blocks(blocks, *LENGTHS, block_size=(16, 32), causal=True),
            blocks_of(blocks, 16, 32) & causal(),
        ),
        "documents": (made[1].from_ids(*documents), documents[0][:, None] == documents[1]),
    }


KINDS = ("elements", "elements of each head", "blocks", "documents")


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients(package: Any, kind: str, layout: str) -> None:
    mask, keep = every_mask(package)[kind]
    assert torch.equal(mask.dense().expand(*mask.sharing, *LENGTHS),
                       keep.expand(*mask.sharing, *LENGTHS))
    given = tensors(2, 4, 2, *LENGTHS, grad=True)
    if layout == "bshd":
        given = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in given]
    turn = (lambda x: x.transpose(1, 2)) if layout == "bshd" else lambda x: x
    out, lse = package.attention(*given, mask=mask, layout=layout, return_lse=True)
    want, want_lse = formula(*map(turn, given), keep)
    torch.testing.assert_close(turn(out).double(), want, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, atol=2e-5, rtol=1e-5)
    seen = want_lse.isfinite()
    assert seen.all() == (kind in ("elements",))
    loss, want_loss = ((o.square().sum() + x[seen].sin().sum())
                       for o, x in ((out.double(), lse.double()), (want, want_lse)))
    for got, exact in zip(torch.autograd.grad(loss, given), torch.autograd.grad(want_loss, given),
                          strict=True):
        torch.testing.assert_close(got, exact, atol=2e-4, rtol=1e-4)


def test_a_block_mask_of_torch(package: Any) -> None:
    documents = torch.arange(LENGTHS[1]) // 30

    def keeps(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (documents[q] == documents[k]) & (k != 3 + h)

    given = create_block_mask(keeps, 1, 4, *LENGTHS, device="cpu", BLOCK_SIZE=16)
    mask = package.BlockSparseMask.from_block_mask(given)
    q, k = torch.arange(LENGTHS[0])[:, None], torch.arange(LENGTHS[1])
    head = torch.arange(4)[:, None, None]
    want = (q >= k) & (documents[q] == documents[k]) & (k != 3 + head)
    assert (mask.name, mask.sharing) == ("blocks16", (1, 4))
    assert torch.equal(mask.dense()[0], want)
    assert bool((mask.some & mask.full).any())
    assert len(mask.holes.bitmaps) < len(mask.holes.ids)  # equal ones are kept once
    inputs = tensors(2, 4, 4, *LENGTHS)
    torch.testing.assert_close(package.attention(*inputs, mask=mask).double(),
                               formula(*inputs, want)[0], atol=2e-5, rtol=1e-5)


def test_lists_are_what_their_rows_say(package: Any) -> None:
    counts, indices = torch.tensor([2, 0, 1, 3]), torch.tensor([[0, 2, 0]] * 3 + [[0, 1, 2]])
    mask = package.BlockSparseMask.from_lists(counts, indices, *LENGTHS, block_size=(16, 32))
    want = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    assert torch.equal(mask.some[0, 0], want)
    assert torch.equal(mask.dense()[0, 0], blocks_of(want, 16, 32))


def test_documents_from_ends_and_from_runs(package: Any) -> None:
    made = package.DocumentMask
    ends = torch.tensor([0, 20, 20, 50]), torch.tensor([0, 30, 31, 70])
    mask = made.from_cumulative(*ends, causal=True)
    assert mask.name == "documents-causal"
    keep = mask.dense()[0, 0]
    assert keep[19].nonzero().flatten().tolist() == list(range(30))  # its last query sees all
    assert keep[20].nonzero().flatten().tolist() == list(range(31, 70 - 29))
    padded = made.from_ids(torch.tensor([[1, 1, 0], [0, 2, 2]]), causal=True, padding=0)
    assert padded.dense()[:, 0].tolist() == [
        [[True, False, False], [True, True, False], [False] * 3],
        [[False] * 3, [False, True, False], [False, True, True]]]
    assert padded.sharing == (2, 1)
    runs = made.from_runs([0, 0, 2], [2, 2, 2], 5)
    assert runs.dense()[0, 0].sum(-1).tolist() == [2, 2, 0]


def test_the_transpose_is_made_once_and_only_for_a_backward(package: Any) -> None:
    mask, _ = every_mask(package)["elements"]
    given = tensors(2, 4, 2, *LENGTHS)
    package.attention(*given, mask=mask)
    assert "_by_key" not in vars(mask)
    assert mask.arrays(True)[3].data_ptr() == mask.arrays(True)[3].data_ptr()


def test_compiled(package: Any) -> None:
    mask, keep = every_mask(package)["elements"]
    mask.arrays(True)
    given = tensors(2, 4, 2, *LENGTHS, grad=True)
    compiled = torch.compile(lambda q, k, v: package.attention(q, k, v, mask=mask) * 2,
                             fullgraph=True, backend="aot_eager")
    out = compiled(*given)
    torch.testing.assert_close(out.double(), 2 * formula(*given, keep)[0], atol=4e-5, rtol=1e-5)
    assert len(torch.autograd.grad(out.sum(), given)) == 3


def test_no_kernel_and_torch_instead(package: Any) -> None:
    mask = package.BlockSparseMask.from_elements(random(*LENGTHS), block_size=48)
    given = tensors(2, 4, 2, *LENGTHS)
    with pytest.raises(package.NoKernel, match="fagen tune fwd-fp32-d8-blocks48 "):
        package.attention(*given, mask=mask)
    before = sum(package.fell_back().values())
    out = package.attention(*given, mask=mask, fallback="sdpa")
    assert sum(package.fell_back().values()) == before + 1
    torch.testing.assert_close(out.double(), formula(*given, random(*LENGTHS))[0],
                               atol=2e-5, rtol=1e-5)
    forward_only = package.BlockSparseMask.from_elements(random(*LENGTHS), block_size=64)
    with pytest.raises(package.NoKernel, match="bwd-fp32-d8-blocks64"):  # before anything runs
        package.attention(*tensors(2, 4, 2, *LENGTHS, grad=True), mask=forward_only)


def test_causal_documents_run_on_the_kernels_of_documents(package: Any) -> None:
    mask = package.DocumentMask.from_cumulative([0, 20, 50], [0, 30, 70], causal=True)
    package.attention(*tensors(2, 4, 2, *LENGTHS), mask=mask)


def test_the_self_test_brings_masks(folder: Path, package: Any,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"{NAME}.__main__").main
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said.count(" right, ") == len(SLUGS) + 1


# --- bad masks -----------------------------------------------------------------------------------


def ints(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


BAD_LISTS: dict[str, tuple[Any, Any, str]] = {
    "repeated": (ints(2, 0, 1, 1), [[1, 1, 0]] * 4, "does not ascend"),
    "unsorted": (ints(2, 0, 1, 1), [[2, 1, 0]] * 4, "does not ascend"),
    "too large": (ints(2, 0, 1, 1), [[0, 3, 0]] * 4, "kv_indices has 3; there are 3 columns"),
    "negative": (ints(2, 0, 1, 1), [[-1, 1, 0]] * 4, "kv_indices has -1"),
    "too many": (ints(4, 0, 1, 1), [[0, 1, 2, 2]] * 4, "kv_num_blocks goes from 0 to 4"),
    "fewer than none": (ints(-1, 0, 1, 1), [[0, 1, 2]] * 4, "goes from -1 to 1"),
    "rows": (ints(1, 1, 1), [[0, 1, 2]] * 3, r"\[..., 4\] and \[..., 4, n\] are expected"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_bad_lists(package: Any, name: str) -> None:
    counts, indices, says = BAD_LISTS[name]
    with pytest.raises(package.BadArgument, match=says):
        package.BlockSparseMask.from_lists(counts, ints(*indices), *LENGTHS, block_size=(16, 32))


def test_bad_masks(package: Any) -> None:
    blocks, documents, bad = package.BlockSparseMask, package.DocumentMask, package.BadArgument
    whole = torch.ones(4, 5, dtype=torch.bool)
    for make, error, says in (
        (lambda: blocks.from_blocks(whole, 50, 90, block_size=16), bad, "are 4 x 5; .* are 4 x 6"),
        (lambda: blocks.from_blocks(whole, 50, 70, block_size=24), bad, "multiples of 16"),
        (lambda: blocks.from_blocks(whole, 0, 70, block_size=16), bad, "seqlen_q is 0"),
        (lambda: blocks.from_blocks(whole.int(), 50, 70), package.BadType, "booleans"),
        (lambda: blocks.from_blocks(whole[0], 50, 70), bad, "shape"),
        (lambda: blocks.from_lists(torch.ones(4), torch.ones(4, 1), 50, 70), package.BadType,
         "int32 is expected"),
        (lambda: blocks.from_block_mask(whole), package.BadType, "a torch BlockMask is expected"),
        (lambda: documents.from_ids([1, 2, 1]), bad, "do not stand together"),
        (lambda: documents.from_ids([1, 2], [2, 1]), bad, "one order"),
        (lambda: documents.from_ids([1.0]), package.BadType, "integers"),
        (lambda: documents.from_cumulative([1, 2]), bad, "rise from 0"),
        (lambda: documents.from_cumulative([0, 3, 2]), bad, "rise from 0"),
        (lambda: documents.from_cumulative([0, 3], [0, 1, 2]), bad, "1 documents .* 2 of keys"),
        (lambda: documents.from_runs([0], [9], 8), bad, "there are 8 keys"),
        (lambda: documents.from_runs([2, 1], [3, 3], 8), bad, "before"),
    ):
        with pytest.raises(error, match=says):
            make()


def test_masks_that_do_not_fit_the_call(package: Any) -> None:
    given = tensors(2, 4, 2, *LENGTHS)
    made = package.BlockSparseMask.from_blocks

    def blocks(*shape: int, lengths: tuple[int, int] = LENGTHS) -> Any:
        return made(np.ones((*shape, 4, 5), bool), *lengths, block_size=16)

    for mask, options, says in (
        (blocks(lengths=(50, 71)), {}, "for 50 queries and 71 keys; q has 50 rows, k has 70"),
        (blocks(3, 1), {}, "for 3 batches; q has 2"),
        (blocks(1, 2), {}, "for 2 heads; q has 4"),
        (blocks(), {"causal": True}, "mask is given, and causal"),
        (blocks(), {"pattern": "blocks16"}, "mask is given, and causal, window or pattern"),
        (torch.ones(LENGTHS, dtype=torch.bool), {}, "a BlockSparseMask or a DocumentMask"),
    ):
        with pytest.raises(package.AttentionError, match=says):
            package.attention(*given, mask=mask, **options)
    with pytest.raises(package.BadArgument, match="pass mask="):
        package.attention(*given, pattern="blocks16")
