"""Hugging Face models on a GPU, bf16: logits and gradients against their own eager attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.gpu.test_conformance import TARGET
from tests.unit.test_transformers import (
    WINDOW,
    bert,
    compare,
    gpt2,
    llama,
    made,
    mistral,
    tokens,
    vit,
)

pytestmark = pytest.mark.gpu

DIM = 64
SLUGS = [f"{op}-bf16-d{DIM}-{pattern}{packed}" for op in ("fwd", "bwd")
         for pattern in ("dense", "causal", f"window{WINDOW - 1}") for packed in ("", "+varlen")]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("made") / "gpu_hub_attention"
    with made(folder, SLUGS, TARGET) as found:
        yield found


@pytest.mark.parametrize(("make", "padding"), [
    (llama, ""), (llama, "left"), (llama, "right"), (gpt2, ""), (bert, ""), (bert, "left"),
    (bert, "right"), (mistral, ""), (mistral, "left"),
])
def test_text_models(package: Any, make: Callable[[int], Any], padding: str) -> None:
    inputs = tokens(padding)
    assert compare(package, lambda: make(DIM), inputs, "cuda", torch.bfloat16) == {}


def test_packed_sequences(package: Any) -> None:
    ids = tokens()["input_ids"][:1]
    positions = torch.cat([torch.arange(n) for n in (6, 3, 4)])[None]
    before = package.served()
    inputs = {"input_ids": ids, "position_ids": positions}
    assert compare(package, lambda: llama(DIM), inputs, "cuda", torch.bfloat16,
                   use_cache=False) == {}
    slug = f"fwd-bf16-d{DIM}-causal+varlen"
    assert package.served()[slug] == before.get(slug, 0) + 2  # one in each layer


def test_an_image_model(package: Any) -> None:
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    inputs = {"pixel_values": pixels}
    assert compare(package, lambda: vit(DIM), inputs, "cuda", torch.bfloat16) == {}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation(package: Any, cache: str) -> None:
    """The same likelihoods step by step, whatever the cache: bf16 may break ties another way."""
    torch.manual_seed(0)
    model = llama(DIM).eval().to("cuda", torch.bfloat16)
    inputs = {name: x.to("cuda") for name, x in tokens("left").items()}

    def generate(how: str) -> Any:
        model.set_attn_implementation(how)
        return model.generate(
            **inputs, max_new_tokens=4, do_sample=False, cache_implementation=cache,
            eos_token_id=None, disable_compile=True, output_logits=True,
            return_dict_in_generate=True)

    found, eager = generate(package.__name__), generate("eager")
    assert found.sequences.shape == eager.sequences.shape
    torch.testing.assert_close(found.logits[0], eager.logits[0], atol=0.1, rtol=0.05)
