"""Hugging Face models on an emitted package's kernels against their own eager attention.

Models are made from configurations, small and with random weights; nothing is downloaded. The
kernels are those of the cpu family.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
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
from fagen.model import Entry, Measurement, Problem, Workload
from fagen.render import Renderer

transformers = pytest.importorskip("transformers")

NAME = "hub_attention"
DIM, WINDOW, LENGTH = 16, 5, 13
KERNELS = [f"{op}-fp32-d{DIM}-{pattern}" for op in ("fwd", "bwd")
           for pattern in ("dense", "causal", f"window{WINDOW - 1}", "window2x2")]
SIZES: dict[str, Any] = {
    "hidden_size": 4 * DIM, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": 0.2, "attention_dropout": 0.0,
}
DECODER = {**SIZES, "vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    target, renderer = host().target, Renderer(paths.templates())
    builder, shipped = Builder(Cache(paths.cache())), []
    for problem in map(Problem.parse, KERNELS):
        family = families_for(problem, target)[0]
        candidate = family.default(problem, target)
        source = renderer.render(candidate)
        part = Part(candidate, source, builder.build(candidate, source))
        shipped.append(Shipped(part, Entry(problem, target, Workload(2, 4, 2, 64, 64), family.name,
                                           {}, Measurement(1, 1, 1, 1, 0, ""))))
    folder = emit(shipped, tmp_path_factory.mktemp("made") / NAME)
    sys.path.insert(0, str(folder.parent))
    try:
        found = importlib.import_module(NAME)
        assert found.register_with_transformers() == NAME
        yield found
    finally:
        sys.path.remove(str(folder.parent))


def llama() -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**DECODER, num_key_value_heads=2))


def mistral() -> Any:
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(**DECODER, num_key_value_heads=2, sliding_window=WINDOW))


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=64, n_positions=64, n_embd=4 * DIM, n_layer=2, n_head=4, initializer_range=0.2,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0))


def bert() -> Any:
    given = {name: DECODER[name] for name in DECODER if name != "attention_dropout"}
    return transformers.BertForMaskedLM(transformers.BertConfig(
        **given, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0))


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(
        **{k: v for k, v in SIZES.items() if k != "attention_dropout"}, image_size=24, patch_size=8,
        num_labels=7, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def modernbert() -> Any:
    return transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(
        **DECODER, local_attention=4, global_attn_every_n_layers=2, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2))


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


def results(model: Any, inputs: dict[str, Tensor], how: str) -> list[Tensor]:
    """The logits of real tokens, and the gradient of every parameter."""
    model.set_attn_implementation(how)
    model.zero_grad()
    logits = model(**inputs).logits
    if "attention_mask" in inputs:
        logits = logits[inputs["attention_mask"].bool()]
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits).sin()
    (logits * weights).sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [logits.detach(), *grads]


def compare(package: Any, make: Callable[[], Any], inputs: dict[str, Tensor]) -> dict[str, int]:
    """At most twice the error of eager attention in the same type; what fell back meanwhile."""
    torch.manual_seed(0)
    model = make().train()
    before = package.fell_back()
    ours = results(model, inputs, NAME)
    fell = {why: n - before.get(why, 0) for why, n in package.fell_back().items()
            if n != before.get(why, 0)}
    eager = results(model, inputs, "eager")
    # torch's attention is exact in fp64; some eager ones take their softmax in fp32 all the same.
    exact = results(model.double(), {
        name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}, "sdpa")
    assert len(ours) == len(eager) == len(exact) > 10
    # Where eager attention is all but exact, a rounding of the largest logit or gradient.
    # (The gradient of a bias of keys is 0, as the sum of terms of that size.)
    floors = [2.0 ** -23 * max(x.abs().max() for x in kind) for kind in (exact[:1], exact[1:])]
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
    assert compare(package, make, tokens(padding)) == {}


def test_a_window_beside_padding_on_the_right(package: Any) -> None:
    """The rows of padding have a window that shrinks, which no kernel has: torch computes those."""
    (why,) = compare(package, mistral, tokens("right"))
    assert why.startswith("no kernel of this package serves")


def test_an_image_model(package: Any) -> None:
    made = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 24, 24, generator=made)
    assert compare(package, vit, {"pixel_values": pixels}) == {}


def test_packed_sequences(package: Any) -> None:
    """Positions that start over mark a new sequence; each then equals its own run."""
    lengths = (6, 3, 4)
    ids = tokens()["input_ids"][:1]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    assert compare(package, llama, {"input_ids": ids, "position_ids": positions}) == {}
    model = llama().eval()
    model.set_attn_implementation(NAME)
    packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    alone = [model(input_ids=part).logits for part in ids.split(lengths, 1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1))


def test_the_mask_of_a_batch_is_read_once(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = sys.modules[f"{NAME}.masks"]
    read, before = [], masks.pieces_of
    monkeypatch.setattr(masks, "pieces_of", lambda mask: read.append(mask) or before(mask))
    model = llama()
    model.set_attn_implementation(NAME)
    model(**tokens("left"))
    assert len(read) == 1


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", ["", "left"])
def test_generation(package: Any, cache: str, padding: str) -> None:
    torch.manual_seed(0)
    model = llama().eval()

    def generate(how: str) -> Tensor:
        model.set_attn_implementation(how)
        found: Tensor = model.generate(
            **tokens(padding), max_new_tokens=6, do_sample=False, cache_implementation=cache,
            eos_token_id=None, disable_compile=True)
        return found

    before = package.fell_back()
    found = generate(NAME)
    assert package.fell_back() == before
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
    masks = sys.modules[f"{NAME}.masks"]
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


@pytest.mark.parametrize("mask", [
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
], ids=range(14))
def test_masks_that_fall_into_bands(package: Any, mask: Tensor) -> None:
    allowed = {"fwd-fp32-d16-window0", "bwd-fp32-d16-window0"}  # rows that see but themselves
    for why in check_mask(package, mask):
        assert any(name in why for name in allowed), why


def test_random_masks(package: Any) -> None:
    """Rows of keys in one run each, at random: many pieces, the same results."""
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
