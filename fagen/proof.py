"""Is a pattern's header right? Compiled for the host and asked about random tiles.

For every size the header's ``keep`` must be the mask, its walks must name exactly the next row or
column with a kept element, and ``tile`` must skip exactly what is empty and call full only what is.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fagen.compilers import find_cxx
from fagen.errors import BuildError, WrongResult
from fagen.patterns import StaticPattern
from fagen.patterns.user import UserPattern

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES = ((1, 1), (64, 64), (97, 150), (150, 97), (33, 300), (130, 16), (200, 200))
TILES = 60
_SECONDS = 60
_SKIP, _FULL = 0, 2
_PROGRAM = """
#include <stdio.h>
#include "%(header)s"
using Pattern = %(type)s;
static_assert(TilePattern<Pattern>, "the pattern lacks a member of patterns/contract.h");
int main() {
  int sq, skv, count, t[4];
  while (scanf("%%d %%d %%d", &sq, &skv, &count) == 3) {
    const Pattern p(Lengths{sq, skv});
    for (int q = 0; q < sq; ++q)
      for (int k = 0; k < skv; ++k) putchar(p.keep(q, k) ? '1' : '0');
    for (int i = 0; i < count; ++i) {
      if (scanf("%%d %%d %%d %%d", t, t + 1, t + 2, t + 3) != 4) return 1;
      printf(" %%d %%d %%d", p.next_key(t[0], t[1], t[2]), p.next_query(t[2], t[3], t[0]),
             static_cast<int>(p.tile(t[0], t[1], t[2], t[3])));
    }
    putchar('\\n');
  }
}
"""


def prove(pattern: UserPattern, templates: Path) -> int:
    """How many tiles were asked about. Raises BuildError or WrongResult in words."""
    tiles = [_tiles(n, *size) for n, size in enumerate(SIZES)]
    asked = "\n".join(
        f"{sq} {skv} {TILES} " + " ".join(map(str, t.flatten().tolist()))
        for (sq, skv), t in zip(SIZES, tiles, strict=True)
    )
    lines = _ask(pattern, templates, asked).splitlines()
    if len(lines) != len(SIZES):
        raise WrongResult(f"{pattern}: the header's program stopped after {len(lines)} of "
                          f"{len(SIZES)} sizes")
    for size, some, line in zip(SIZES, tiles, lines, strict=True):
        _compare(pattern, size, some, line)
    return TILES * len(SIZES)


def _ask(pattern: UserPattern, templates: Path, asked: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "proof.cpp"), Path(folder, "proof")
        source.write_text(_PROGRAM % {"header": pattern.file, "type": pattern.cpp})
        built = subprocess.run(
            [find_cxx(), "-std=c++20", "-O1", "-fmax-errors=5", f"-I{templates}", str(source),
             "-o", str(program)], capture_output=True, text=True,
        )
        if built.returncode:
            raise BuildError(f"{pattern.file} does not compile for the host:\n"
                             + built.stderr.strip()[:2000])
        try:
            ran = subprocess.run([str(program)], input=asked, capture_output=True, text=True,
                                 timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise WrongResult(f"{pattern}: the header did not answer within {_SECONDS} s; does "
                              "a walk go backwards?") from None
    return ran.stdout


def _tiles(seed: int, sq: int, skv: int) -> NDArray[Any]:
    """Rows q0, q1 and keys k0, k1, the ends clipped as kernels clip them."""
    import numpy as np

    rng = np.random.default_rng(seed)
    q0, k0 = rng.integers(0, sq, TILES), rng.integers(0, skv, TILES)
    rows, keys = (rng.choice([1, 3, 8, 16, 17, 64, 128], TILES) for _ in range(2))
    return np.stack([q0, np.minimum(q0 + rows, sq), k0, np.minimum(k0 + keys, skv)], 1)


def _compare(pattern: StaticPattern, size: tuple[int, int], tiles: Any, line: str) -> None:
    import numpy as np

    mask = pattern.mask(*size)
    kept, *numbers = line.split()
    at = f"with {size[0]} queries and {size[1]} keys"
    found = np.frombuffer(kept.encode(), np.uint8).reshape(size) == ord("1")
    if (found != mask).any():
        q, k = np.argwhere(found != mask)[0].tolist()
        raise WrongResult(f"{pattern}: {at}, keep({q}, {k}) is {bool(found[q, k])}, the expression "
                          f"says {bool(mask[q, k])}")
    answers = np.array(numbers, int).reshape(-1, 3).tolist()
    for (q0, q1, k0, k1), (key, query, kind) in zip(tiles.tolist(), answers, strict=True):
        tile = mask[q0:q1, k0:k1]

        def wrong(what: str, got: int, want: object, at: str = at) -> WrongResult:
            return WrongResult(f"{pattern}: {at}, {what} is {got}, {want} is right")

        next_key, next_query = _first(mask[q0:q1].any(0), k0), _first(mask[:, k0:k1].any(1), q0)
        if key != next_key:
            raise wrong(f"next_key({q0}, {q1}, {k0})", key, next_key)
        if query != next_query:
            raise wrong(f"next_query({k0}, {k1}, {q0})", query, next_query)
        name = f"tile({q0}, {q1}, {k0}, {k1})"
        if (kind == _SKIP) != (not tile.any()):
            raise wrong(name, kind, "skip (0)" if not tile.any() else "not skip (0)")
        if kind == _FULL and not tile.all():
            raise wrong(name, kind, "not full (2)")


def _first(there: Any, start: int) -> int:
    found = there[start:].nonzero()[0]
    return start + int(found[0]) if len(found) else len(there)


