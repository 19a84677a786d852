"""The child process that runs kernels: ``python -m fagen.worker --device cpu|cuda:N``.

One JSON object per line: requests on stdin, answers on stdout. Before anything else runs, the
answers move to a descriptor of their own and stdout becomes stderr, so that a kernel that prints
cannot garble them. Between answers the worker says what it is ``doing``, so that its parent knows
what a crash or a hang belongs to. When the parent goes away, so does the worker, even in the
middle of a kernel that hangs. After a CUDA error, or a write to memory that is not the kernel's,
the process is not to be trusted: it answers and exits.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from fagen.errors import RunError

if TYPE_CHECKING:
    from fagen.workbench import Workbench


class Line:
    """Both directions of the conversation with the parent."""

    def __init__(self, answers: IO[str]) -> None:
        self._answers = answers
        self._requests: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for text in sys.stdin:
            self._requests.put(json.loads(text))
        os._exit(0)  # the parent is gone

    def next_request(self) -> dict[str, Any]:
        return self._requests.get()

    def send(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def doing(self, stage: str, what: str) -> None:
        self.send({"doing": stage, "what": what})


def claim_stdout() -> IO[str]:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def see_one_device(device: str) -> str:
    """Hide every other GPU; what is left is number 0."""
    if not device.startswith("cuda"):
        return device
    index = int(device.partition(":")[2] or 0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else []
    os.environ["CUDA_VISIBLE_DEVICES"] = names[index] if index < len(names) else str(index)
    return "cuda:0"


def answer(bench: Workbench, request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked. A failure is an answer too."""
    import torch

    from fagen.errors import WrongResult
    from fagen.verify import MemoryDamaged

    gpu = bench.device.startswith("cuda")
    verbs: dict[str, Callable[..., dict[str, Any]]]
    verbs = {"verify": bench.verify, "measure": bench.measure, "lap": bench.lap,
             "reference": bench.reference}
    try:
        return {"ok": True, **verbs[request["do"]](**request["with"])}
    except WrongResult as error:
        fatal = isinstance(error, MemoryDamaged)
        return _failure("verify", "WrongResult", error.message, fatal)
    except RunError as error:
        return _failure("run", type(error).__name__, error.message, fatal=gpu)
    except (torch.OutOfMemoryError, MemoryError) as error:
        bench.forget()
        return _failure("run", "OutOfMemory", str(error).partition("\n")[0], fatal=False)
    except Exception as error:
        traceback.print_exc()
        text = str(error).strip().partition("\n")[0]
        return _failure("run", "RunError", f"{type(error).__name__}: {text}", fatal=True)


def _failure(stage: str, kind: str, reason: str, fatal: bool) -> dict[str, Any]:
    return {"ok": False, "stage": stage, "kind": kind, "reason": reason, "fatal": fatal}


def main() -> None:
    line = Line(claim_stdout())
    parser = argparse.ArgumentParser(prog="fagen.worker")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU kernel; 0: every core")
    arguments = parser.parse_args()
    device = see_one_device(arguments.device)

    from fagen.workbench import Workbench

    bench = Workbench(device, arguments.threads, line.doing)
    line.send({"ok": True, **bench.facts()})
    while True:
        reply = answer(bench, line.next_request())
        line.send(reply)
        if reply.get("fatal"):
            os._exit(1)


if __name__ == "__main__":
    main()
