"""One wheel in several environments: installed, imported, called. One row for each interpreter.

    python bench/install.py DIST/my_attention-*.whl bench/results/install.json PYTHON [PYTHON ...]

Each PYTHON is the interpreter of an environment that has torch; the wheel goes into a folder of its
own with that environment's pip. The import is timed after torch's and the first call after that, as
the process's own time, which other work on the machine does not touch, the best of a few processes.
Kernels for the host then serve every problem that the wheel has for it, checked by the package's
own ``python -m``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

IMPORT = """
import sys, time, torch
start = time.process_time()
package = __import__(sys.argv[1])
seconds = time.process_time() - start
assert not torch.cuda.is_initialized()
import json, platform
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__,
                  "import_ms": round(1e3 * seconds, 1)}))
"""
FIRST_CALL = """
import sys, time, torch
package = __import__(sys.argv[1])
kernel = next(k for k in package.kernels() if k["options"]["op"] == "fwd")["options"]
dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[kernel["dtype"]]
q = torch.randn(1, 2, 64, kernel["head_dim"], dtype=dtype)
v = torch.randn(1, 2, 64, kernel["head_dim_v"], dtype=dtype)
start = time.process_time()
package.attention(q, q, v, causal=kernel["right"] == 0)
print(round(1e3 * (time.process_time() - start), 1))
"""


def row(wheel: Path, python: str) -> dict[str, Any]:
    name = wheel.name.split("-")[0]
    with tempfile.TemporaryDirectory() as site:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": site}

        def run(*arguments: str) -> str:
            return subprocess.run(
                [python, *arguments], cwd=site, env=environment, check=True, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300).stdout

        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                        "--target", site, str(wheel)], check=True, stderr=subprocess.DEVNULL)
        imports = [json.loads(run("-c", IMPORT, name)) for _ in range(3)]
        calls = [float(run("-c", FIRST_CALL, name)) for _ in range(2)]
        kernels = json.loads(run("-m", name, "--json"))["kernels"]
    return {**min(imports, key=lambda found: found["import_ms"]), "first_call_ms": min(calls),
            "kernels_right": sum(kernel.get("right") is True for kernel in kernels),
            "kernels": len(kernels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    given = parser.parse_args()
    rows = []
    for python in given.pythons:
        rows.append(row(given.wheel.resolve(), python))
        print(rows[-1], flush=True)
    result = {
        "what": "one wheel in several environments; times: the process's own, after torch's import",
        "date": datetime.date.today().isoformat(),
        "command": "python bench/install.py WHEEL bench/results/install.json PYTHON ...",
        "wheel": given.wheel.name,
        "wheel_bytes": given.wheel.stat().st_size,
        "rows": rows,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(r["kernels_right"] < r["kernels"] or r["import_ms"] > 60 for r in rows))


if __name__ == "__main__":
    main()
