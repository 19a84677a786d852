"""Sparse patterns through the emulated sm80 kernels: tiles are walked, copied ahead and masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.emulated.test_sm80_emulated import Emulator, check

SMALL_FORWARD = {"block_m": 32, "block_n": 16, "warps": 2}
SMALL_BACKWARD = {"block_m": 32, "block_n": 32, "warps": 4, "kv_warps": 2, "dq_warps": 2}
Case = tuple[str, str, dict[str, Any]]

FORWARD: tuple[Case, ...] = (
    ("fwd-bf16-d64-mix_window20x5_longformer-w20-g8_causal", "b1-h4x2-s77x131", SMALL_FORWARD),
    ("fwd-bf16-d64-blocks16x48-causal", "b2-h4x2-s150x231", SMALL_FORWARD),
    ("fwd-fp16-d40-blocks64", "b1-h2x1-s177x331", {**SMALL_FORWARD, "stages": 3}),
    ("fwd-bf16-d64-blocks32x16", "b1-h2x1-s77x750", {}),
    ("fwd-bf16-d32-documents", "b2-h2x1-s177x131", {}),
    ("fwd-bf16-d64-prefix40", "b1-h2x1-s131x77", {}),
    ("fwd-fp16-d32-blockdiag48-causal", "b1-h2x1-s131x177", {**SMALL_FORWARD, "stages": 2}),
    ("fwd-bf16-d64-longformer-w20-g8", "b1-h2x1-s77x131", {}),
    ("fwd-fp16-d40-bigbird-w9-g5-r32-b16-seed3", "b2-h2x1-s150x231", SMALL_FORWARD),
    ("fwd-fp16-d40x24-bigbird-w9-g5-r32-b16-seed3-causal", "b1-h2x1-s231x150",
     {**SMALL_FORWARD, "stages": 2}),
    ("fwd-bf16-d64-butterfly-b16", "b1-h2x1-s231x231",
     {**SMALL_FORWARD, "stages": 3, "q_in_registers": True}),
    ("fwd-bf16-d64-strided-s24-causal", "b1-h2x1-s131x177", {"stages": 2}),
    ("fwd-bf16-d24-dilated-w5-d40", "b1-h2x1-s160x190", {**SMALL_FORWARD, "stages": 3}),
)
BACKWARD: tuple[Case, ...] = (
    ("bwd-bf16-d64-mix_window20x5_2_butterfly-b16_causal", "b1-h4x2-s131x77", SMALL_BACKWARD),
    ("bwd-fp16-d40-mix_dense_2_fixed-s32-c4+deterministic", "b1-h4x1-s77x131", SMALL_BACKWARD),
    ("bwd-bf16-d64-blocks16x48-causal", "b2-h4x2-s150x231", SMALL_BACKWARD),
    ("bwd-fp16-d40-blocks64+deterministic", "b1-h2x1-s177x331",
     {"block_m": 16, "block_n": 32, "warps": 2, "kv_warps": 2, "dq_warps": 1, "stages": 1}),
    ("bwd-bf16-d32-documents-causal", "b2-h2x1-s177x131", SMALL_BACKWARD),
    ("bwd-bf16-d64-prefix40+deterministic", "b1-h2x1-s77x131", {}),
    ("bwd-fp16-d32-blockdiag48", "b1-h2x1-s177x131", SMALL_BACKWARD),
    ("bwd-bf16-d64-longformer-w20-g8", "b2-h2x1-s177x31", SMALL_BACKWARD),
    ("bwd-fp16-d40-bigbird-w9-g5-r32-b16-seed3", "b1-h4x2-s150x231",
     {"block_m": 16, "block_n": 32, "warps": 2, "kv_warps": 2, "dq_warps": 1, "stages": 1}),
    ("bwd-fp16-d40x24-bigbird-w9-g5-r32-b16-seed3-causal", "b1-h2x1-s231x150",
     {**SMALL_BACKWARD, "stages": 2}),
    ("bwd-bf16-d64-butterfly-b16+deterministic", "b1-h2x1-s231x231", {}),
    ("bwd-bf16-d64-fixed-s32-c4-causal", "b1-h2x1-s131x177", {}),
    ("bwd-bf16-d24-dilated-w2-d70-causal+deterministic", "b1-h2x1-s230x200",
     {**SMALL_BACKWARD, "stages": 2}),
)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("sparse"))


@pytest.mark.parametrize(("slug", "sizes", "knobs"), [*FORWARD, *BACKWARD],
                         ids=[row[0] for row in (*FORWARD, *BACKWARD)])
def test_sparse(emulator: Emulator, slug: str, sizes: str, knobs: dict[str, Any]) -> None:
    check(emulator, slug, sizes, packed=False, **knobs)


def test_the_walk_visits_what_the_pattern_keeps_and_nothing_else(tmp_path: Path) -> None:
    """Counted, not inferred: a dropped tile would only cost time, and no result would tell."""
    import ctypes
    import subprocess

    from fagen import paths
    from fagen.patterns import parse_pattern

    slugs = ("butterfly-b16", "bigbird-w9-g5-r32-b16-seed3-causal", "dilated-w2-d70", "window30x9",
             "blockdiag48")
    patterns = [parse_pattern(slug) for slug in slugs]
    uses = "\n".join(
        f'extern "C" int walk{n}(int sq, int skv, int *out)'
        f' {{ return walk<{p.cpp}>(sq, skv, out); }}'
        for n, p in enumerate(patterns)
    )
    source = tmp_path / "walk.cpp"
    source.write_text(f"""
#define __device__
#define __forceinline__ inline
{"".join(f'#include "{h}"' + chr(10) for h in sorted({p.header for p in patterns}))}
constexpr int ceil_div(int a, int b) {{ return (a + b - 1) / b; }}
#include "device/walk_sm80.h"
template <class P> int walk(int sq, int skv, int *out) {{
  const P pattern(Lengths{{sq, skv}});
  int *at = out;
  for (int q0 = 0; q0 < sq; q0 += 32)
    for (KeyWalk<P, 16, 2> keys(pattern, q0, min_of(q0 + 32, sq)); keys.more(); keys.advance())
      *at++ = 1, *at++ = q0 / 32, *at++ = keys.key() / 16;
  for (int k0 = 0; k0 < skv; k0 += 16)
    for (RowWalk<P, 32> rows(pattern, k0, min_of(k0 + 16, skv), 3); rows.more();
         rows.look_ahead(k0, min_of(k0 + 16, skv)), rows.advance())
      *at++ = 2 + rows.head(), *at++ = rows.tile(), *at++ = k0 / 16;
  return static_cast<int>(at - out) / 3;
}}
{uses}
""")
    made = source.with_suffix(".so")
    subprocess.run(["g++", "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{paths.templates()}",
                    str(source), "-o", str(made)], check=True)
    library = ctypes.CDLL(str(made))
    for n, pattern in enumerate(patterns):
        for sq, skv in ((200, 200), (70, 300), (310, 90)):
            out = (ctypes.c_int * 60000)()
            count = getattr(library, f"walk{n}")(sq, skv, out)
            visits = [tuple(out[3 * i : 3 * i + 3]) for i in range(count)]
            kinds = pattern.tiles(sq, skv, 32, 16).kinds
            kept = {(int(m), int(k)) for m, k in zip(*kinds.nonzero(), strict=True)}
            for walk in (1, 2, 3, 4):
                seen = [(m, k) for which, m, k in visits if which == walk]
                assert len(seen) == len(set(seen))
                assert set(seen) == kept, (str(pattern), walk)
