"""Peak memory above inputs and outputs by sequence length: ours against the standard.

    python bench/memory.py PACKAGE_DIR bench/results/cpu-memory.json
    python bench/memory.py --device cuda PACKAGE_DIR bench/results/h200-memory.json

On the host a forward, in fp32: each point is a process of its own, so that one point's heap does
not hide in another's. The kernel's resident-memory high-water mark is reset after the inputs exist
and read at the end. On a GPU a forward, and a forward and backward, in bf16, as torch's allocator
counts.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import subprocess
import sys
from pathlib import Path

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
HEADS, DIM = 1, 64  # the standard computation needs 4 GiB a head at 32K


def resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def point(contender: str, package: Path, seqlen: int) -> None:
    """Print the bytes one forward took beyond what was resident before it, outputs deducted."""
    import torch

    torch.set_num_threads(2)
    sys.path.insert(0, str(package.parent))
    ours = __import__(package.name)
    attend = {"fagen": ours.attention, "standard": _standard}[contender]
    small = [torch.randn(1, HEADS, 64, DIM) for _ in range(3)]
    attend(*small)  # libraries and thread stacks are not the algorithm's memory
    q, k, v = (torch.randn(1, HEADS, seqlen, DIM) for _ in range(3))
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident_bytes("VmRSS")
    out = attend(q, k, v)
    peak = resident_bytes("VmHWM") - before
    written = out.numel() * 4 + HEADS * seqlen * 4
    print(max(0, peak - written))


def on_host(package: Path) -> list[dict[str, int]]:
    rows = []
    for seqlen in LENGTHS:
        row: dict[str, int] = {"seqlen": seqlen}
        for contender in ("fagen", "standard"):
            ran = subprocess.run(
                [sys.executable, __file__, str(package), "-", "--point", contender, str(seqlen)],
                capture_output=True, text=True, check=True,
            )
            row[contender + "_bytes"] = int(ran.stdout)
        print(row, flush=True)
        rows.append(row)
    return rows


def on_gpu(package: Path) -> list[dict[str, int]]:
    """The standard computation as far as a quarter of the memory goes."""
    import torch

    sys.path.insert(0, str(package.parent))
    ours = __import__(package.name)
    rows = []
    for seqlen in (*LENGTHS, 65536, 131072):
        row: dict[str, int] = {"seqlen": seqlen}
        leaves = [torch.randn(1, HEADS, seqlen, DIM, device="cuda", dtype=torch.bfloat16,
                              requires_grad=True) for _ in range(3)]
        dout = torch.randn_like(leaves[0])
        for contender, attend in (("fagen", ours.attention), ("standard", _standard)):
            scores = HEADS * seqlen**2 * 2
            if contender == "standard" and 8 * scores > torch.cuda.mem_get_info()[1] / 4:
                continue
            with torch.no_grad():
                out, peak = _peak(lambda: attend(*leaves))  # noqa: B023
            row[contender + "_forward_bytes"] = peak - out.nbytes
            found, peak = _peak(
                lambda: torch.autograd.grad(attend(*leaves), leaves, dout))  # noqa: B023
            row[contender + "_both_bytes"] = peak - sum(x.nbytes for x in found)
        print(row, flush=True)
        rows.append(row)
    return rows


def _peak(call):  # type: ignore[no-untyped-def]
    """What a call gives, and the bytes it took on top of what was there."""
    import torch

    call()  # libraries' own memory
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = call()
    return found, torch.cuda.max_memory_allocated() - before


def is_linear(rows: list[dict[str, int]], slack: float = 1.1) -> bool:
    """Does ours grow no faster than the length?"""
    return all(
        after[key] <= slack * max(before[key], 1 << 20) * after["seqlen"] / before["seqlen"]
        for before, after in itertools.pairwise(rows) for key in before if key.startswith("fagen")
    )


def _standard(q, k, v):  # type: ignore[no-untyped-def]
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--point", nargs=2, metavar=("CONTENDER", "SEQLEN"))
    given = parser.parse_args()
    package = given.package.resolve()
    if given.point:
        point(given.point[0], package, int(given.point[1]))
        return
    gpu = given.device != "cpu"
    rows = on_gpu(package) if gpu else on_host(package)
    what = f"bf16 B1 H{HEADS} D{DIM}" if gpu else f"fp32 B1 H{HEADS} D{DIM}, 2 threads"
    result = {
        "what": f"peak bytes above inputs and outputs, {what}",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python bench/memory.py", *sys.argv[1:]]),
        "linear": is_linear(rows),
        "rows": rows,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(not result["linear"])


if __name__ == "__main__":
    main()
