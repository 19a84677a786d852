"""The benchmark's own honesty: suites, ratios, tables, and children that die."""

from __future__ import annotations

import dataclasses
import json
import selectors
from pathlib import Path
from typing import Any

import pytest
import torch

from fagen import bench, contenders
from fagen.bench import BenchOptions, geometric_mean, markdown, ratio, run_suite
from fagen.errors import RunError, UsageError
from fagen.suites import Cell, suite

SMALL = Cell("t", "fwd", "fp32", 16, 1, 2, 2, 48, 48, causal=True)


def test_core_is_the_72_published_cells() -> None:
    cells = suite("core")
    assert len(cells) == 72
    assert {c.batch * c.seq_q for c in cells} == {16384}
    assert {c.heads_q * c.head_dim for c in cells} == {2048}
    assert sum(c.mode == "fwd" for c in cells) == 36


def test_cpu_core_has_the_cells_of_the_goal() -> None:
    fp32 = [c for c in suite("cpu-core") if c.dtype == "fp32"]
    assert {(c.head_dim, c.seq_q, c.causal, c.mode) for c in fp32} == {
        (d, s, c, m) for d in (64, 128) for s in (512, 1024, 2048, 4096)
        for c in (False, True) for m in ("fwd", "fwdbwd")
    }


def test_packed_cells_are_the_published_batch() -> None:
    """64 sequences of 1K rows in the mean and 16K at most, 64K rows in all."""
    for cell in suite("packed"):
        assert str(cell.problems[0]) == "fwd-bf16-d128-causal+varlen"
        assert str(cell.workload) == "b64-h16-s16384-t65536"
        assert (len(cell.ends), cell.ends[0], cell.ends[-1]) == (65, 0, 65536)
        lengths = [n for n, _ in cell.workload.lengths()]
        kept = sum(n * (n + 1) // 2 for n in lengths)
        assert cell.flops == {"fwd": 4, "bwd": 10}[cell.mode] * 128 * 16 * kept


def test_a_peer_without_packed_sequences_takes_them_one_by_one() -> None:
    cell = dataclasses.replace(SMALL, batch=5, total=90, mode="fwdbwd")
    x = contenders.Inputs.random(cell, "cpu")
    found = contenders.contenders("cpu", None, None)
    gradients = found["torch"](cell, x)()
    longest = max(range(5), key=lambda i: cell.ends[i + 1] - cell.ends[i])
    rows = slice(cell.ends[longest], cell.ends[longest + 1])
    alone = contenders.Inputs(*(t[:, :, rows].contiguous() for t in (x.q, x.k, x.v, x.dout)))
    only = dataclasses.replace(cell, batch=1, total=0)
    for got, want in zip(gradients, found["torch"](only, alone)(), strict=True):
        torch.testing.assert_close(got[:, :, rows], want)
    with pytest.raises(contenders.Unserved, match="it takes no packed sequences"):
        found["math"](cell, x)


def test_sparse_cells_are_those_of_the_goal() -> None:
    cells = suite("sparse")
    assert {(c.batch, c.heads_q, c.seq_q, c.head_dim, c.dtype) for c in cells} == {
        (1, 16, 16384, 128, "bf16")}
    kept = {c.density: c.workload.kept(c.problem("fwd")) / c.workload.scores(c.problem("fwd"))
            for c in cells if c.tag == "blocks"}
    assert kept == pytest.approx({50: 0.502, 25: 0.255, 10: 0.107}, abs=0.006)
    assert {c.mask for c in cells if c.tag == "static"} == {
        "window1024", "longformer-w256-g64", "bigbird-w256-g64-r192-seed7", "butterfly-b128"}
    assert {c.mode for c in cells} == {"fwd", "fwdbwd"}
    shares = suite("shares")
    assert {c.mask for c in shares} == {"blocks128", "blocks32"}
    assert {c.workload.density for c in shares} == {100, 75, 50, 25, 10, 5}


def test_training_cells_and_pairs() -> None:
    assert {(c.head_dim, c.seq_q, c.mode) for c in suite("autograd")} == {
        (d, s, "fwdbwd") for d in (64, 128) for s in (2048, 4096, 8192, 16384)}
    slugs = [str(c.problem("bwd")) for c in suite("deterministic")]
    assert slugs[1::2] == [f"{slug}+deterministic" for slug in slugs[::2]]
    assert str(suite("deterministic")[1]) == "bwd-bf16-d64-dense+deterministic b2-h32-s8192"
    assert [c.dtype for c in suite("dtypes")] == ["bf16", "fp16"] * 6


MASKED = [dataclasses.replace(SMALL, causal=False, seq_q=160, seq_kv=160, mask=mask, density=d)
          for mask, d in (("longformer-w20-g8", 0), ("bigbird-w16-g8-r64-seed7", 0),
                          ("butterfly-b16", 0), ("blocks32", 30), ("window40", 0), ("dense", 0))]


@pytest.mark.parametrize("cell", MASKED, ids=lambda cell: cell.mask)
def test_every_peer_means_the_same_mask(cell: Cell) -> None:
    """What FlexAttention is given, element by element, is what the formula says."""
    pattern = contenders._pattern(cell)
    mask_mod = contenders._mask_mod(cell, torch.device("cpu"))
    q, k = torch.arange(160)[:, None], torch.arange(160)[None, :]
    given = mask_mod(0, 0, q, k).expand(160, 160)
    assert torch.equal(given, torch.from_numpy(pattern.mask(160, 160)))
    if cell.mask != "dense":
        with pytest.raises(contenders.Unserved, match=f"it has no {cell.mask}"):
            contenders.contenders("cpu", None, None)["torch"](cell, None)  # type: ignore[arg-type]


class Package:
    """What is asked of an emitted package."""

    NoKernel = LookupError

    class BlockSparseMask:
        @classmethod
        def from_blocks(cls, *given: Any, **options: Any) -> Any:
            return given, options

    def attention(self, q: Any, k: Any, v: Any, **options: Any) -> Any:
        self.asked = options
        return q


@pytest.mark.parametrize("cell", MASKED, ids=lambda cell: cell.mask)
def test_ours_is_asked_for_the_cells_mask(cell: Cell) -> None:
    ours = contenders.Ours.__new__(contenders.Ours)
    ours.package = Package()
    ours(cell, contenders.Inputs.random(cell, "cpu"))()
    asked = ours.package.asked
    if cell.mask == "blocks32":
        (blocks, *lengths), options = asked["mask"]
        assert lengths == [160, 160]
        assert options["block_size"] == (32, 32)
        assert torch.equal(blocks, torch.from_numpy(contenders._pattern(cell).drawn(160, 160)))
    else:
        assert asked.get("pattern") == (None if cell.mask == "dense" else cell.mask)
    assert "causal" not in asked


def test_who_says_nothing_about_repeating_is_left_out() -> None:
    cell = dataclasses.replace(SMALL, mode="bwd", deterministic=True)
    inputs = contenders.Inputs.random(cell, "cpu")
    with pytest.raises(contenders.Unserved, match="repeating bit by bit"):
        contenders.contenders("cpu", None, None)["torch"](cell, inputs)


def test_unknown_suite() -> None:
    with pytest.raises(UsageError, match="unknown suite 'cores'"):
        suite("cores")


def test_window_flops_count_kept_work_only() -> None:
    cell = next(c for c in suite("extra") if c.tag == "win" and c.mode == "fwd")
    kept = sum(min(q, 1024) + 1 for q in range(16384))
    assert cell.flops == 4 * 128 * 16 * kept


def test_forward_and_backward_add_up() -> None:
    one, two, both = (
        dataclasses.replace(SMALL, mode=m).flops for m in ("fwd", "bwd", "fwdbwd")
    )
    assert both == one + two
    assert two == 2.5 * one


def test_ratio_is_against_the_best_peer() -> None:
    record = {"us": {"a": 30.0, "b": 20.0, "fagen": 10.0}}
    assert ratio(record) == 2.0
    assert ratio(record, ["a"]) == 3.0
    assert ratio({"us": {"a": 1.0}}) is None


def test_geometric_mean_of_nothing_is_an_error() -> None:
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    with pytest.raises(RunError, match="nothing to compare"):
        geometric_mean([])


def test_a_real_run_of_one_cell() -> None:
    seen: list[dict[str, Any]] = []
    counts: list[int] = []
    backward = dataclasses.replace(SMALL, mode="fwdbwd")
    result = run_suite([SMALL, backward], BenchOptions(rounds=3, threads=1), seen.append,
                       save=lambda result: counts.append(len(result["cells"])))
    assert counts == [1, 2]
    assert [c["mode"] for c in result["cells"]] == ["fwd", "fwdbwd"]
    assert seen == result["cells"]
    for cell in result["cells"]:
        assert set(cell["us"]) == {"torch", "math"}
        assert all(us > 0 for us in cell["us"].values())
    assert result["threads"] == 1
    assert "geometric mean" not in markdown(result)  # nothing of ours was measured
    assert json.loads(json.dumps(result)) == result


HANGS = "open(sys.argv[0] + '.hangs', 'w'); time.sleep(1000)"


def stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str = "pass", last: str = "pass"
) -> None:
    """A child that answers for cells; before its answer for batch 2, and in the end, comes this."""
    child, hangs = tmp_path / "child.py", tmp_path / "child.py.hangs"
    child.write_text(
        "import json, os, sys, time\n"
        "answers = os.fdopen(int(sys.argv[-1]), 'w', buffering=1)\n"
        "cells = json.load(sys.stdin)['cells']\n"
        "answers.write(json.dumps({'machine': {'gpu': 'none'}}) + '\\n')\n"
        "for i, cell in enumerate(cells):\n"
        f"    if cell['batch'] == 2: {second}\n"
        "    answers.write(json.dumps({'us': {'torch': 1.0}}) + '\\n')\n"
        f"{last}\n"
    )
    popen = bench.subprocess.Popen
    monkeypatch.setattr(
        bench.subprocess, "Popen",
        lambda command, **more: popen([command[0], str(child), command[-1]], **more),
    )

    class Selector(selectors.DefaultSelector):
        """Two seconds are over when the child has begun to hang, and not before."""

        def select(self, timeout: float | None = None) -> Any:
            assert timeout == 2.0
            while not (ready := super().select(0.02)):
                if hangs.exists() and not super().select(0.02):
                    hangs.unlink()
                    break
            return ready

    monkeypatch.setattr(bench.selectors, "DefaultSelector", Selector)


@pytest.mark.parametrize(("script", "why"), [
    ("os.kill(os.getpid(), 11)", "SIGSEGV"), (HANGS, "no answer within 2 s"),
])
def test_a_cell_that_takes_the_process_down_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    stand_in(tmp_path, monkeypatch, second=script)
    cells = [dataclasses.replace(SMALL, batch=b) for b in (1, 2, 3)]
    result = run_suite(cells, BenchOptions(), deadline=2.0)
    assert [c["us"] for c in result["cells"]] == [{"torch": 1.0}, {}, {"torch": 1.0}]
    assert why in result["cells"][1]["unserved"]["*"]
    assert result["gpu"] == "none"


@pytest.mark.parametrize("end", [HANGS, f"answers.close(); {HANGS}"])
def test_a_child_that_does_not_end_has_answered_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    stand_in(tmp_path, monkeypatch, last=end)
    monkeypatch.setattr(bench, "END_SECONDS", 0.1)
    result = run_suite([SMALL], BenchOptions(), deadline=2.0)
    assert [c["us"] for c in result["cells"]] == [{"torch": 1.0}]


def test_a_child_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    popen = bench.subprocess.Popen
    monkeypatch.setattr(
        bench.subprocess, "Popen", lambda command, **more: popen(["false"], **more)
    )
    with pytest.raises(RunError, match="did not start"):
        run_suite([SMALL], BenchOptions())


def test_an_unknown_contender_is_refused_before_anything_is_timed() -> None:
    with pytest.raises(UsageError, match="no contender is called fa9 here") as refused:
        run_suite([SMALL], BenchOptions(only=("torch", "fa9")))
    assert "one of: torch, math" in refused.value.hint


def test_a_machine_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from fagen.benchrun import _nvidia_smi

    monkeypatch.setenv("PATH", str(tmp_path))
    assert "nvidia-smi" in _nvidia_smi("name")
