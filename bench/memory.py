"""Peak memory above inputs and outputs, forward, by sequence length: ours against the standard.

    python bench/memory.py PACKAGE_DIR bench/results/cpu-memory.json

Each point is a process of its own, so that one point's heap does not hide in another's. The
kernel's resident-memory high-water mark is reset after the inputs exist and read at the end.
"""

from __future__ import annotations

import argparse
import datetime
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


def _standard(q, k, v):  # type: ignore[no-untyped-def]
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--point", nargs=2, metavar=("CONTENDER", "SEQLEN"))
    given = parser.parse_args()
    package = given.package.resolve()
    if given.point:
        point(given.point[0], package, int(given.point[1]))
        return
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
    result = {
        "what": f"peak resident bytes of one forward above inputs and outputs, fp32 B1 H{HEADS} "
                f"D{DIM}, 2 threads",
        "date": datetime.date.today().isoformat(),
        "command": "python bench/memory.py PACKAGE_DIR bench/results/cpu-memory.json",
        "rows": rows,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
