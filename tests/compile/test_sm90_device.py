"""The sm_90a device headers and the wgmma operand lists assemble, each header on its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

jinja2 = pytest.importorskip("jinja2")

from fagen.compilers import find_nvcc  # noqa: E402
from fagen.errors import SetupError  # noqa: E402
from fagen.render import _DELIMITERS, _pull_in  # noqa: E402

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"

MULTIPLY = """
#include "device/wgmma_sm90.h"
//% from "macros/wgmma.j2" import wgmma
${ wgmma([8, 72, 128, 256, 128], dtype) }
using Tile = Panels<128, 128>;
extern "C" __global__ void multiply(float *out, int from) {
  float d[64];
  uint32_t a[4] = {1, 2, 3, 4};
  pin(d);
  wgmma_fence();
  Wgmma<128>::shared<Tile::high, Tile::high, 0, 0>(d, Tile::k_major(from), Tile::k_major(from), 0);
  Wgmma<128>::registers<Tile::high, 1>(d, a, Tile::mn_major(from), 1);
  wgmma_commit();
  pin(d);
  wgmma_wait<0>();
  pin(d);
  float sum = 0;
  for (float x : d) sum += x;
  out[threadIdx.x] = sum;
}
"""


def assemble(text: str, folder: Path) -> str:
    try:
        nvcc = find_nvcc()
    except SetupError:
        pytest.skip("no nvcc")
    source = folder / "source.cu"
    source.write_text(_pull_in(text, lambda name, _: (TEMPLATES / name).read_text(), "", set()))
    command = [nvcc, "-std=c++20", "-O3", "--cubin", "-arch=sm_90a", "-Xptxas", "-v",
               "-o", str(folder / "out.cubin"), str(source)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert made.returncode == 0, made.stderr
    return made.stderr


@pytest.mark.parametrize("header", ["sm90", "barrier_sm90", "tma_sm90", "wgmma_sm90"])
def test_a_header_stands_alone(header: str, tmp_path: Path) -> None:
    assemble(f'#include "device/{header}.h"\n', tmp_path)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_operand_lists_assemble(dtype: str, tmp_path: Path) -> None:
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, **_DELIMITERS,
    )
    log = assemble(jinja.from_string(MULTIPLY).render(dtype=dtype), tmp_path)
    assert "0 bytes spill stores" in log
    assert "(C75" not in log
