"""Hugging Face models on an emitted package's kernels against their own eager attention.

Models are made from configurations, small and with random weights; nothing is downloaded. The
kernels are those of the cpu family.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fagen import paths
from fagen.build import Builder, Cache
from fagen.devices import host
from fagen.emit import Shipped, emit
from fagen.families import families_for
from fagen.link import Part
from fagen.model import Entry, Measurement, Problem
from fagen.render import Renderer
from fagen.target import Target
from fagen.workload import Workload
from tests.unit.imported import imported

transformers = pytest.importorskip("transformers")

NAME, PACKING = "hub_attention", "hub_packing_attention"
DIM, WINDOW, LENGTH = 16, 5, 13
KERNELS = [f"{op}-fp32-d{DIM}-{pattern}" for op in ("fwd", "bwd")
           for pattern in ("dense", "causal", f"window{WINDOW - 1}", "window2x2")]
ALONE = "packed sequences, one after another: no kernel of this package serves"


@contextmanager
def made(folder: Path, slugs: Iterable[str], target: Target) -> Iterator[Any]:
    """The default kernels for a target, emitted and registered."""
    renderer = Renderer(paths.templates())
    builder, shipped = Builder(Cache(paths.cache())), []
    for problem in map(Problem.parse, slugs):
        family = families_for(problem, target)[0]
        candidate = family.default(problem, target)
        source = renderer.render(candidate)
        part = Part(candidate, source, builder.build(candidate, source))
        shipped.append(Shipped(part, Entry(problem, target, Workload(2, 4, 2, 64, 64), family.name,
                                           {}, Measurement(1, 1, 1, 1, 0, ""))))
    with imported(emit(shipped, folder)) as found:
        assert found.register_with_transformers() == folder.name
        yield found


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with made(tmp_path_factory.mktemp("made") / NAME, KERNELS, host().target) as found:
        yield found


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """With kernels for packed sequences beside them."""
    slugs = [*KERNELS, *(f"{slug}+varlen" for slug in KERNELS)]
    with made(tmp_path_factory.mktemp("made") / PACKING, slugs, host().target) as found:
        yield found


def sizes(dim: int) -> dict[str, Any]:
    return {"hidden_size": 4 * dim, "intermediate_size": 6 * dim, "num_hidden_layers": 2,
            "num_attention_heads": 4, "initializer_range": 0.8 * dim**-0.5,
            "attention_dropout": 0.0}


def decoder(dim: int) -> dict[str, Any]:
    return {**sizes(dim), "vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}


def llama(dim: int = DIM) -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**decoder(dim), num_key_value_heads=2))


def mistral(dim: int = DIM) -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(
        **decoder(dim), num_key_value_heads=2, sliding_window=WINDOW))


def gpt2(dim: int = DIM) -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=64, n_positions=64, n_embd=4 * dim, n_layer=2, n_head=4,
        initializer_range=0.8 * dim**-0.5, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0))


def bert(dim: int = DIM) -> Any:
    given = {name: size for name, size in decoder(dim).items() if name != "attention_dropout"}
    return transformers.BertForMaskedLM(transformers.BertConfig(
        **given, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0))


def vit(dim: int = DIM) -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(
        **{k: v for k, v in sizes(dim).items() if k != "attention_dropout"}, image_size=24,
        patch_size=8, num_labels=7, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def modernbert(dim: int = DIM) -> Any:
    return transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(
        **decoder(dim), local_attention=4, global_attn_every_n_layers=2, bos_token_id=1,
        eos_token_id=2, cls_token_id=1, sep_token_id=2))


def tokens(padding: str = "") -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 64, (3, LENGTH), generator=made)
    if not padding:
        return {"input_ids": ids}
    seen = torch.ones_like(ids)
    for sequence, short in ((1, 4), (2, 9)):
        rows = slice(0, short) if padding == "left" else slice(LENGTH - short, LENGTH)
        seen[sequence, rows] = 0
    return {"input_ids": ids * seen, "attention_mask": seen}


def results(
    model: Any, inputs: dict[str, Tensor], how: str, options: dict[str, Any]
) -> list[Tensor]:
    """The logits of real tokens, and the gradient of every parameter."""
    model.set_attn_implementation(how)
    model.zero_grad()
    logits = model(**inputs, **options).logits
    if "attention_mask" in inputs:
        logits = logits[inputs["attention_mask"].bool()]
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits).sin()
    (logits * weights).sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [logits.detach(), *grads]


def compare(
    package: Any, make: Callable[[], Any], inputs: dict[str, Tensor], device: str = "cpu",
    dtype: torch.dtype = torch.float32, **options: Any,
) -> dict[str, int]:
    """At most twice the error of eager attention in the same type; what fell back meanwhile."""
    torch.manual_seed(0)
    model = make().train().to(device, dtype)
    inputs = {name: x.to(device, dtype if x.is_floating_point() else None)
              for name, x in inputs.items()}
    before = package.fell_back()
    ours = results(model, inputs, package.__name__, options)
    fell = {why: n - before.get(why, 0) for why, n in package.fell_back().items()
            if n != before.get(why, 0)}
    eager = results(model, inputs, "eager", options)
    # torch's attention is exact in fp64; some eager ones take their softmax in fp32 all the same.
    doubled = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    exact = results(model.double(), doubled, "sdpa", options)
    assert len(ours) == len(eager) == len(exact) > 10
    # Where eager attention is all but exact, a rounding of the largest logit or gradient.
    # (The gradient of a bias of keys is 0, as the sum of terms of that size.)
    unit = torch.finfo(dtype).eps
    floors = [unit * max(x.abs().max() for x in kind) for kind in (exact[:1], exact[1:])]
    for i, (found, plain, right) in enumerate(zip(ours, eager, exact, strict=True)):
        assert found.shape == right.shape
        bound = 2 * (plain - right).abs().max() + floors[i > 0]
        assert (found - right).abs().max() <= bound, i
    return fell


@pytest.mark.parametrize(("make", "padding"), [
    (llama, ""), (llama, "left"), (llama, "right"), (gpt2, ""), (gpt2, "left"), (bert, ""),
    (bert, "left"), (bert, "right"), (mistral, ""), (mistral, "left"), (modernbert, ""),
])
def test_text_models(package: Any, make: Callable[[], Any], padding: str) -> None:
    """A batch whose sequences differ is computed one sequence after another, and that is told."""
    fell = compare(package, make, tokens(padding))
    assert all(why.startswith(ALONE) for why in fell)
    assert bool(fell) == bool(padding)


def test_a_window_beside_padding_on_the_right(package: Any) -> None:
    """The rows of padding have a window that shrinks, which no kernel has: torch computes those."""
    whys = [why for why in compare(package, mistral, tokens("right")) if not why.startswith(ALONE)]
    assert len(whys) == 1
    assert whys[0].startswith("no kernel of this package serves")


@pytest.mark.parametrize(("make", "padding", "calls"), [
    (llama, "left", 1), (llama, "right", 2), (gpt2, "left", 1), (bert, "left", 1),
    (bert, "right", 1), (mistral, "left", 1), (modernbert, "left", 1),
])
def test_padded_batches_take_one_call_for_each_band(
    packing: Any, make: Callable[[], Any], padding: str, calls: int
) -> None:
    before = packing.served()
    assert compare(packing, make, tokens(padding)) == {}
    new = {slug: n - before.get(slug, 0) for slug, n in packing.served().items()}
    for op in ("fwd", "bwd"):
        counts = [n for slug, n in new.items() if n and slug.startswith(op)]
        assert sum(counts) <= 2 * calls, new
    assert any(n for slug, n in new.items() if slug.endswith("+varlen"))


def test_what_no_packed_kernel_has_goes_alone(packing: Any) -> None:
    """The shrinking windows of padding; the real tokens' rows are still one call."""
    before = packing.served()
    (why,) = compare(packing, mistral, tokens("right"))
    assert why.startswith("no kernel of this package serves")
    new = {slug: n - before.get(slug, 0) for slug, n in packing.served().items()}
    assert new[f"fwd-fp32-d{DIM}-window{WINDOW - 1}+varlen"] == 2  # one in each layer


def test_an_image_model(package: Any) -> None:
    made = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 24, 24, generator=made)
    assert compare(package, vit, {"pixel_values": pixels}) == {}


@pytest.mark.parametrize("which", ["package", "packing"])
def test_packed_sequences(which: str, request: pytest.FixtureRequest) -> None:
    """Positions that start over mark a new sequence; each then equals its own run."""
    package = request.getfixturevalue(which)
    lengths = (6, 3, 4)
    ids = tokens()["input_ids"][:1]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    before = package.served()
    inputs = {"input_ids": ids, "position_ids": positions}
    fell = compare(package, llama, inputs, use_cache=False)  # with a cache they are one sequence
    new = {slug: n - before.get(slug, 0) for slug, n in package.served().items()}
    if which == "packing":
        assert fell == {}
        assert {slug: n for slug, n in new.items() if n} == {
            f"{op}-fp32-d{DIM}-causal+varlen": 2 for op in ("fwd", "bwd")}
    else:
        assert list(fell.values()) == [2]
        assert next(iter(fell)).startswith(ALONE)
    model = llama().eval()
    model.set_attn_implementation(package.__name__)
    packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    alone = [model(input_ids=part).logits for part in ids.split(lengths, 1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1))


def test_the_mask_of_a_batch_is_read_once(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = sys.modules[f"{NAME}.pieces"]
    read, before = [], masks.pieces_of
    monkeypatch.setattr(masks, "pieces_of", lambda mask: read.append(mask) or before(mask))
    model = llama()
    model.set_attn_implementation(NAME)
    model(**tokens("left"))
    assert len(read) == 1


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(("which", "padding"), [
    ("package", ""), ("package", "left"), ("packing", "left"),
])
def test_generation(
    which: str, cache: str, padding: str, request: pytest.FixtureRequest
) -> None:
    package = request.getfixturevalue(which)
    torch.manual_seed(0)
    model = llama().eval()

    def generate(how: str) -> Tensor:
        model.set_attn_implementation(how)
        found: Tensor = model.generate(
            **tokens(padding), max_new_tokens=6, do_sample=False, cache_implementation=cache,
            eos_token_id=None, disable_compile=True)
        return found

    before = package.fell_back()
    found = generate(package.__name__)
    new = {why for why, n in package.fell_back().items() if n != before.get(why, 0)}
    copies = "packed sequences, one after another: keys and values would have to be copied"
    assert all(why == copies or (which == "package" and why.startswith(ALONE)) for why in new)
    assert bool(new) == bool(padding)  # a cache is left where it is
    assert found.shape == (3, LENGTH + 6)
    assert torch.equal(found, generate("eager"))


def test_what_falls_back_is_counted(package: Any) -> None:
    torch.manual_seed(0)
    model = llama().eval()
    ids = tokens()["input_ids"]
    hole = torch.ones(3, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    hole[:, :, 5:, 3] = False
    by_head = hole.repeat(1, 4, 1, 1)

    def run(how: str, mask: Tensor, dropout: float = 0.0) -> Tensor:
        model.set_attn_implementation(how)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = dropout
        model.train(dropout > 0)
        torch.manual_seed(3)
        found: Tensor = model(input_ids=ids, attention_mask=mask).logits
        return found

    for mask, dropout, reason in (
        (hole, 0.0, "the mask has holes"),
        (by_head, 0.0, "the mask differs from head to head"),
        (torch.zeros(3, 1, LENGTH, LENGTH), 0.0, "the mask is not one of booleans"),
        (hole, 0.5, "dropout_p is not 0"),
    ):
        before = package.fell_back()
        torch.testing.assert_close(run(NAME, mask, dropout), run("sdpa", mask, dropout))
        new = {why: n - before.get(why, 0) for why, n in package.fell_back().items()
               if n != before.get(why, 0)}
        assert list(new.values()) == [2]  # one in each layer
        assert reason in next(iter(new))


def test_compiled(package: Any) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = llama().eval()
    model.set_attn_implementation(NAME)
    compiled = torch.compile(model.model, backend="aot_eager")
    ids = tokens()["input_ids"]
    before = package.fell_back()
    torch.testing.assert_close(compiled(input_ids=ids, use_cache=False).last_hidden_state,
                               model.model(input_ids=ids, use_cache=False).last_hidden_state)
    # Transformers makes a mask while compiling, which cannot be read then. That is told.
    (why,) = (w for w, n in package.fell_back().items() if n != before.get(w, 0))
    assert why == "a mask cannot be read while compiling (compiled)"


def test_registering(package: Any) -> None:
    assert package.register_with_transformers() == NAME  # again is fine
    for taken in ("sdpa", "eager", "flash_attention_2"):
        with pytest.raises(package.BadArgument, match="attention implementation already"):
            package.register_with_transformers(taken)
    model = llama()
    model.set_attn_implementation(NAME)
    attend = transformers.AttentionInterface()[NAME]
    q = torch.zeros(1, 4, 3, DIM)
    with pytest.raises(package.NoKernel, match="s_aux is given"):
        attend(model.model.layers[0].self_attn, q, q, q, None, s_aux=torch.zeros(4))


# --- masks alone -----------------------------------------------------------------------------


def check_mask(package: Any, mask: Tensor) -> dict[str, int]:
    """Whatever the mask, the result is torch's; rows that see nothing are zeros."""
    masks = sys.modules[f"{package.__name__}.masks"]
    made = torch.Generator().manual_seed(0)
    batch, _, rows, keys = mask.shape
    given = [torch.randn(s, generator=made).requires_grad_() for s in
             ((batch, 4, rows, DIM), (batch, 2, keys, DIM), (batch, 2, keys, DIM))]
    before = package.fell_back()
    out, reason = masks.masked(*given, mask, 0.3)
    assert reason == ""
    fell = {w: n - before.get(w, 0) for w, n in package.fell_back().items()
            if n != before.get(w, 0)}
    seen = mask.any(-1, keepdim=True)
    expected = F.scaled_dot_product_attention(
        *given, mask | ~seen, scale=0.3, enable_gqa=True) * seen
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-6)
    if mask.any():
        torch.testing.assert_close(torch.autograd.grad(out.cos().sum(), given),
                                   torch.autograd.grad(expected.cos().sum(), given),
                                   atol=5e-6, rtol=5e-6)
    return fell


def band(rows: int, keys: int, left: int, right: int, shift: int = 0) -> Tensor:
    diagonal = torch.arange(rows)[:, None] + shift
    key = torch.arange(keys)
    return ((key >= diagonal - left) & (key <= diagonal + right))[None, None]


MASKS = [
    band(9, 9, 99, 99),
    band(9, 9, 99, 0),
    band(9, 20, 99, 0),  # a static cache
    band(1, 20, 99, 0, 11),
    band(9, 9, 4, 0),
    band(9, 14, 4, 0, 5),
    band(9, 9, 2, 2),
    band(9, 14, 99, 0, 5),
    band(9, 9, 99, 0) & (torch.arange(9) >= 4),
    band(9, 9, 99, 0) & (torch.arange(9) < 4),
    band(9, 9, 0, 0) | (torch.arange(9) < 0),
    torch.block_diag(*(torch.ones(n, n) for n in (4, 2, 5))).bool()[None, None],
    torch.block_diag(*(torch.ones(n, n) for n in (4, 1, 1, 5))).bool()[None, None],
    torch.zeros(2, 1, 9, 9, dtype=torch.bool),
]


@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
@pytest.mark.parametrize("which", ["package", "packing"])
def test_masks_that_fall_into_bands(
    which: str, mask: Tensor, request: pytest.FixtureRequest
) -> None:
    allowed = {"fwd-fp32-d16-window0", "bwd-fp32-d16-window0"}  # rows that see but themselves
    for why in check_mask(request.getfixturevalue(which), mask):
        assert any(name in why for name in allowed) or (which, why[:len(ALONE)]) == (
            "package", ALONE), why


def test_sequences_of_different_bands(packing: Any) -> None:
    """Each band is one call over all sequences; a batch of masks needs no piece of its own."""
    shapes = [band(9, 9, 99, 0), band(9, 9, 99, 99), band(9, 9, 4, 0),
              band(9, 9, 99, 0) & (torch.arange(9) >= 4), band(9, 9, 99, 99) & False]
    before = packing.served()
    assert check_mask(packing, torch.cat(shapes)) == {}
    new = {slug: n - before.get(slug, 0) for slug, n in packing.served().items()}
    assert {slug: n for slug, n in new.items() if n} == {
        f"{op}-fp32-d{DIM}-{pattern}+varlen": 1 for op in ("fwd", "bwd")
        for pattern in ("dense", "causal", f"window{WINDOW - 1}")}


@pytest.mark.parametrize("which", ["package", "packing"])
def test_random_masks(which: str, request: pytest.FixtureRequest) -> None:
    """Rows of keys in one run each, at random: many pieces, the same results."""
    package = request.getfixturevalue(which)
    made = torch.Generator().manual_seed(0)
    for _ in range(20):
        batch, rows, keys = 2, 8, 11
        first = torch.randint(0, keys, (batch, 1, rows, 1), generator=made)
        count = torch.randint(0, 5, (batch, 1, rows, 1), generator=made)
        key = torch.arange(keys)
        check_mask(package, (key >= first) & (key < first + count))
        steps = torch.randint(0, 2, (batch, 1, rows, 1), generator=made).cumsum(2)
        check_mask(package, (key >= steps) & (key < steps + 3))


def test_a_changed_mask_is_read_again(package: Any) -> None:
    mask = band(9, 9, 99, 0).clone()
    check_mask(package, mask)
    mask[..., :3] = False
    check_mask(package, mask)
    with torch.inference_mode():
        masks = sys.modules[f"{NAME}.masks"]
        q = torch.randn(1, 4, 9, DIM)
        out, _ = masks.masked(q, q, q, band(9, 9, 99, 0), None)
        torch.testing.assert_close(out, package.attention(q, q, q, causal=True))


def test_too_many_pieces(package: Any) -> None:
    masks = sys.modules[f"{NAME}.masks"]
    rows = masks.MOST_PIECES + 1
    mask = torch.zeros(1, 1, rows, 3 * rows, dtype=torch.bool)
    mask[0, 0, torch.arange(rows), 3 * torch.arange(rows)] = True
    q, k = torch.zeros(1, 1, rows, DIM), torch.zeros(1, 1, 3 * rows, DIM)
    assert masks.masked(q, k, k, mask, None) == (None, "the mask falls into more than 256 pieces")


def test_no_number_of_pieces_is_too_many_for_packed_sequences(packing: Any) -> None:
    rows = sys.modules[f"{PACKING}.masks"].MOST_PIECES + 1
    ends = torch.block_diag(*(torch.ones(2, 2) for _ in range(rows))).bool()
    assert check_mask(packing, ends[None, None]) == {}
