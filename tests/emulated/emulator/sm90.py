"""Runs sm90 candidates on the host: what verifies kernels on a GPU verifies them here."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import subprocess
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fagen import paths
from fagen.errors import RunError
from fagen.families.plan import Plan, TensorMap
from fagen.library import Params, View
from fagen.model import Candidate
from fagen.render import Renderer
from fagen.workload import Workload
from tests.emulated.emulator.ptx_sm90 import translate

HERE = Path(__file__).parent
PARTS = ("machine_sm90", "barriers_sm90", "transfers_sm90", "wgmma_sm90")
FLAGS = ("-std=c++20", "-w", "-shared", "-fPIC", "-march=native", "-U_FORTIFY_SOURCE", f"-I{HERE}")
# How reports call the barriers: name, first byte, count.
_NAMES = {
    "fwd": [
        *((f"q_{what}", f"CONTROL_AT + offsetof(Control, q_{what})", "Q_BUFFERS * WARPGROUPS")
          for what in ("full", "empty")),
        *((f"{which}_{what}", f"CONTROL_AT + offsetof(Control, {which}_{what})", "STAGES")
          for which in "kv" for what in ("full", "empty")),
    ],
    "bwd": [
        *((f"{which}_{what}".lower(), f"{which}_{what}", f"STAGES_{which}")
          for which in ("Q", "DO", "DS", "P") for what in ("FULL", "EMPTY")),
        ("k_full", "K_FULL", "STAGES_KV"), ("v_full", "V_FULL", "STAGES_KV"),
        *((which.lower(), which, "RESIDENT ? STAGES_KV : 0")
          for which in ("KEYS_EMPTY", "OUTPUT_FULL")),
    ],
}  # fmt: skip
_BOUNDS = r"__launch_bounds__\((\w+)(?:, (\w+))?\)\s+{}\("


class Map(ctypes.Structure):
    """``machine::Map``, as large as a tensor map."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("dims", ctypes.c_int64 * 4), ("strides", ctypes.c_int64 * 4),
        ("box_dim", ctypes.c_int), ("box_rows", ctypes.c_int), ("swizzle", ctypes.c_int),
        ("rest", ctypes.c_char * 40),
    )


class Launch(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_void_p), ("grid", ctypes.c_uint * 3), ("threads", ctypes.c_int),
        ("shared_bytes", ctypes.c_int), ("overlap", ctypes.c_bool),
    )


class Mode(ctypes.Structure):
    """``residents`` blocks at a time; ``seed`` 0 is a fixed order; ``late``: see the machine."""

    _fields_ = (("residents", ctypes.c_int), ("seed", ctypes.c_int), ("late", ctypes.c_int))


def starts(op: str, plan: Plan, text: str) -> str:
    """What calls each kernel with its arguments."""
    names = "".join(f'{{"{name}", {at}, {count}}}, ' for name, at, count in _NAMES[op])
    out = [f"static const machine::Name names[] = {{{names}{{nullptr, 0, 0}}}};",
           'extern "C" { fagen_params given;']
    for i, step in enumerate(plan.steps):
        threads, blocks = re.search(_BOUNDS.format(step.symbol), text).groups()  # type: ignore[union-attr]
        if step.maps:
            out.append(f"TensorMap maps_{i}[{len(step.maps)}];")
        maps = "".join(f", maps_{i}[{n}]" for n in range(len(step.maps)))
        out.append(f"static void start_{i}() {{ {step.symbol}(given{maps}); }}")
        registers = f"min(256, 65536 / ({threads} * {blocks or 1}) / 8 * 8)"
        out.append(
            f'machine::Kernel kernel_{i} = {{"{step.symbol}", start_{i}, {registers}, names}};'
        )
    return "\n".join([*out, "}\n"])


Edit = tuple[str, str]  # a piece of a kernel's text, and what to put in its place


@functools.cache
def the_machine() -> ctypes.CDLL:
    """One for the whole process: kernels find its symbols by name."""
    with tempfile.TemporaryDirectory() as scratch:
        library = f"{scratch}/machine.so"
        sources = [str(HERE / f"{part}.cpp") for part in PARTS]
        subprocess.run(["g++", *FLAGS, "-O3", *sources, "-o", library], check=True)
        handle = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    handle.emulate.restype = handle.remark_on_run.restype = ctypes.c_char_p
    handle.columns_multiplied_in_run.restype = ctypes.c_long
    return handle


class Emulator:
    """Compiles candidates for the host, several at a time."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.workers = ThreadPoolExecutor(2)
        self.libraries: dict[tuple[Candidate, Edit | None], Future[Path]] = {}
        self.renderer = Renderer(paths.templates())

    def prepare(self, candidate: Candidate, edit: Edit | None = None) -> Future[Path]:
        key = candidate, edit
        if key not in self.libraries:
            self.libraries[key] = self.workers.submit(self._compile, candidate, edit)
        return self.libraries[key]

    def _compile(self, candidate: Candidate, edit: Edit | None) -> Path:
        text = self.renderer.render(candidate).text
        if edit:
            if edit[0] not in text:
                raise ValueError(f"{candidate}: there is no {edit[0]!r} in its text")
            text = text.replace(*edit)
        op = candidate.problem.op
        text = f'#include "cuda_sm90.h"\n{translate(text)}\n{starts(op, _plan(candidate), text)}'
        source = self.scratch / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.cpp"
        source.write_text(text)
        library = source.with_suffix(".so")
        command = ["g++", *FLAGS, "-O2", "-Wl,-Bsymbolic", str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{candidate}: {source} does not compile\n{done.stderr[:4000]}")
        return library

    def library(
        self, candidate: Candidate, edit: Edit | None = None, **mode: int
    ) -> EmulatedLibrary:
        path = self.prepare(candidate, edit).result()
        return EmulatedLibrary(the_machine(), candidate, ctypes.CDLL(str(path)), **mode)

    def columns_multiplied(self) -> int:
        """N of every 64 x N x 16 multiply of the last run, summed."""
        return int(the_machine().columns_multiplied_in_run())


def _plan(candidate: Candidate) -> Plan:
    return candidate.family.kernel(candidate.problem.op).plan(candidate)


@dataclass(frozen=True)
class EmulatedLibrary:
    """Has what ``fagen.library.Library`` has, for one candidate on a GPU of ``sms`` SMs."""

    machine: ctypes.CDLL
    candidate: Candidate
    kernels: ctypes.CDLL
    sms: int = 2
    seed: int = 0
    late: int = 1
    room: int = 0  # not 0: so many blocks at a time, whatever the launch counts on

    @property
    def plan(self) -> Plan:
        return _plan(self.candidate)

    def workspace_bytes(self, params: Params) -> int:
        return self.plan.workspace_bytes(_workload(params))

    def run(self, params: Params, workspace: int, stream: int, threads: int) -> None:
        w, plan = _workload(params), self.plan
        given = Params.in_dll(self.kernels, "given")
        ctypes.pointer(given)[0] = params
        for i, region in enumerate(plan.regions):
            size = region.bytes.value(w)
            given.work[i] = workspace
            if region.zero:
                ctypes.memset(workspace, 0, size)
            workspace += -(-size // 256) * 256
        launches = (Launch * len(plan.steps))(
            *(self._launch(i, given, w) for i in range(len(plan.steps)))
        )
        residents = self.sms * max(step.ctas_per_sm or 1 for step in plan.steps)
        mode = Mode(self.room or residents, self.seed, self.late)
        trouble = self.machine.emulate(launches, len(launches), ctypes.byref(mode))
        if trouble:
            raise RunError(trouble.decode(errors="replace"))

    def remark(self) -> str:
        """On the last run: what may explain a NaN."""
        return str(self.machine.remark_on_run().decode())

    def _launch(self, i: int, params: Params, w: Workload) -> Launch:
        step = self.plan.steps[i]
        for n, wanted in enumerate(step.maps):
            maps = (Map * len(step.maps)).in_dll(self.kernels, f"maps_{i}")
            maps[n] = _map(wanted, params, w)
        grid = [product.value(w) for product in step.grid]
        if step.ctas_per_sm:
            grid[0] = min(grid[0], self.sms * step.ctas_per_sm)
        kernel = ctypes.addressof(ctypes.c_char.in_dll(self.kernels, f"kernel_{i}"))
        return Launch(kernel, tuple(grid), step.block, step.shared_bytes, step.overlap)


def _workload(p: Params) -> Workload:
    totals = {"total_q": p.total_q, "total_kv": p.total_kv} if p.cu_q else {}
    return Workload(p.batch, p.heads, p.kv_heads, p.seqlen_q, p.seqlen_kv, **totals)


def _map(wanted: TensorMap, params: Params, w: Workload) -> Map:
    """What the launcher encodes, with the driver's conditions on it."""
    view: View = getattr(params, wanted.tensor)
    of_keys = wanted.tensor in ("k", "v", "dk", "dv")
    rows, heads = (w.seqlen_kv, w.kv_heads) if of_keys else (w.seqlen_q, w.heads)
    if w.packed:
        rows = w.total_kv if of_keys else w.total_q
    dims: Any = (wanted.head_dim, rows, heads, 1 if w.packed else w.batch)
    strides = [2 * s for s in (1, view.row_stride, view.head_stride, view.batch_stride)]
    for dim, stride in zip(dims[1:], strides[1:], strict=True):
        if dim > 1 and stride % 16:
            raise RunError(f"no tensor map for {wanted.tensor}: a stride of {stride} bytes")
    if view.data % 16:
        raise RunError(f"no tensor map for {wanted.tensor}: data at {view.data:#x}")
    return Map(view.data, dims, tuple(strides), wanted.box_dim, wanted.box_rows, wanted.swizzle)
