"""Pictures of patterns, and how their tiles are counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fagen.cli import main
from fagen.patterns import Tiles, parse_pattern

matplotlib = pytest.importorskip("matplotlib", reason="pip install 'fagen[bench]'")


@pytest.mark.parametrize("slug", ["causal", "window5x9", "strided-s7", "butterfly-b16-causal"])
@pytest.mark.parametrize(("sq", "skv", "rows", "keys"), [(100, 100, 16, 16), (33, 130, 64, 24)])
def test_tiles_are_what_the_mask_says(slug: str, sq: int, skv: int, rows: int, keys: int) -> None:
    pattern = parse_pattern(slug)
    mask, tiles = pattern.mask(sq, skv), pattern.tiles(sq, skv, rows, keys)
    assert tiles.kinds.shape == (-(-sq // rows), -(-skv // keys))
    for (m, n), kind in np.ndenumerate(tiles.kinds):
        tile = mask[m * rows : (m + 1) * rows, n * keys : (n + 1) * keys]
        want = Tiles.FULL if tile.all() else Tiles.PARTIAL if tile.any() else Tiles.SKIPPED
        assert kind == want


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_and_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    path = tmp_path / f"mask.{suffix}"
    assert main(["draw", "blockdiag64", "-o", str(path), "--seqlen", "256", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tiles"] == {"skipped": 12, "partial": 0, "full": 4}
    assert told["kept"] == told["computed"] == 0.25
    assert path.stat().st_size > 2000


def test_cells_say_what_stays_and_in_which_tile() -> None:
    from fagen.draw import cells

    pattern = parse_pattern("causal")
    shown = cells(pattern, 6, 5, pattern.tiles(6, 5, 4, 2))
    assert shown.tolist() == [  # even: dropped; 2 and 3: a partial tile, 5: a full one
        [2, 2, 2, 2, 0], [3, 2, 2, 2, 0], [3, 3, 2, 2, 0], [3, 3, 3, 2, 0],
        [5, 5, 5, 5, 2], [5, 5, 5, 5, 3],
    ]
    assert ((shown % 2 == 1) == pattern.mask(6, 5)).all()


def test_the_picture_is_named_after_the_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["draw", "causal", "--seqlen", "100", "--seqlen-kv", "130"]) == 0
    assert (tmp_path / "causal.png").is_file()
    assert "100 queries and 130 keys" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "says"), [
    (["spiral"], "unknown pattern 'spiral'"),
    (["causal", "--seqlen", "99999"], "cannot picture 99999 x 99999"),
    (["causal", "--tile", "64"], "cannot read the tile '64'"),
    (["causal", "-o", "mask.bmp"], "cannot draw a .bmp"),
    (["causal", "-o", "no/such/folder.png"], "cannot write no/such/folder.png"),
])
def test_bad_wishes_are_refused(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["draw", *words]) == 2
    assert says in capsys.readouterr().err
