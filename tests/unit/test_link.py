"""The linked library: its table, host kernels on the team, CUDA calls on a fake driver."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import random
import subprocess
import sys
import threading
import time
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from fagen import compilers, paths
from fagen.devices import host
from fagen.errors import BuildError, UsageError
from fagen.families.base import Family, Kernel
from fagen.families.plan import Plan, Region, Step, TensorMap, product
from fagen.library import Library, Params
from fagen.link import Part, find_cc, link, table
from fagen.model import Binary, Candidate, Problem, Source
from fagen.target import Target
from fagen.workload import Workload
from tests.unit import toykernel

HERE = Path(__file__).parent
OK, NO_SUCH_KERNEL, BAD_ARGUMENT, NOT_HERE, FAILED = range(5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAGEN_CACHE_DIR", str(cache))


@pytest.fixture(scope="module")
def library(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    os.environ["FAGEN_CACHE_DIR"] = str(cache)
    small, large = (Workload(1, 2, 2, s, s) for s in (64, 4096))
    parts = [
        toykernel.part("fwd-fp32-d8-dense", cache, small),
        toykernel.part("fwd-fp32-d8-dense", cache, large, name="elsewhere"),
        toykernel.part("fwd-fp32-d8-causal", cache),
        toykernel.part("fwd-fp32-d16-causal", cache, answer=7),
        toykernel.part("fwd-fp32-d24-dense", cache, isa=("amx_fantasy", "avx2")),
    ]
    made = Library.load(link(parts, tmp_path_factory.mktemp("lib") / "libtoy.so"))
    made.handle.fagen_select.argtypes = (ctypes.c_char_p, ctypes.POINTER(Params), ctypes.c_int)
    return made


class Call:
    """Tensors of one forward, as plain arrays."""

    def __init__(self, batch: int, heads: int, kv_heads: int, sq: int, skv: int, d: int) -> None:
        rng = random.Random(0)
        self.params = p = Params(batch=batch, heads=heads, kv_heads=kv_heads, seqlen_q=sq,
                                 seqlen_kv=skv, scale=d**-0.5)
        self.arrays = {}
        for name, h, s in (("q", heads, sq), ("k", kv_heads, skv), ("v", kv_heads, skv),
                           ("o", heads, sq)):
            data = array("f", (rng.gauss(0, 1) for _ in range(batch * h * s * d)))
            self.arrays[name] = data
            view = getattr(p, name)
            view.data, view.batch_stride = data.buffer_info()[0], h * s * d
            view.head_stride, view.row_stride = s * d, d
        self.lse = array("f", [0.0] * (batch * heads * sq))
        p.lse = self.lse.buffer_info()[0]
        self.d = d

    def run(self, library: Library, index: int, threads: int = 0) -> int:
        size = library.workspace_bytes(self.params, index)
        room = ctypes.create_string_buffer(b"\xff" * (size + 256))
        at = -(-ctypes.addressof(room) // 256) * 256
        return int(library.handle.fagen_run(
            index, ctypes.byref(self.params), at if size else None, None, threads))

    def expected(self, causal: bool) -> tuple[list[float], list[float]]:
        p, d, (q, k, v) = self.params, self.d, (self.arrays[n] for n in "qkv")
        outs, lses = [], []
        for b in range(p.batch):
            for h in range(p.heads):
                kv = (b * p.kv_heads + h // (p.heads // p.kv_heads)) * p.seqlen_kv
                for i in range(p.seqlen_q):
                    row = ((b * p.heads + h) * p.seqlen_q + i) * d
                    end = min(p.seqlen_kv, i + p.seqlen_kv - p.seqlen_q + 1) if causal else (
                        p.seqlen_kv)
                    es = [math.exp(p.scale * sum(q[row + x] * k[(kv + j) * d + x]
                                                 for x in range(d))) for j in range(end)]
                    total = sum(es)
                    lses.append(math.log(total) if total else -math.inf)
                    outs += [sum(e * v[(kv + j) * d + x] for j, e in enumerate(es)) / (total or 1)
                             for x in range(d)]
        return outs, lses


def error(library: Library) -> str:
    return library.last_error()


# --- host kernels ----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
@pytest.mark.parametrize(("index", "causal"), [(0, False), (2, True)])
def test_runs(library: Library, index: int, causal: bool, threads: int) -> None:
    call = Call(2, 4, 2, 5, 3, 8)  # two rows see nothing when causal
    assert call.run(library, index, threads) == OK, error(library)
    outs, lses = call.expected(causal)
    assert call.arrays["o"].tolist() == pytest.approx(outs, abs=1e-5)
    assert call.lse.tolist() == pytest.approx(lses, abs=1e-5)


def test_what_is_inside(library: Library) -> None:
    class Head(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_char_p) for name in
                         ("problem", "family", "config", "target", "sha256"))

    at = library.handle.fagen_kernel_at
    at.restype = ctypes.POINTER(Head)
    assert library.handle.fagen_count() == 5
    assert at(1)[0].problem == b"fwd-fp32-d8-dense"
    assert (at(1)[0].family, at(1)[0].config) == (b"toy", b"answer=0")
    assert at(1)[0].target == b"elsewhere"
    assert len(at(1)[0].sha256) == 64
    assert not at(5)
    assert error(library) == "kernel 5 was asked for; this library has 0 to 4"


@pytest.mark.parametrize(("seqlen", "index"), [(16, 0), (4096, 1), (9000, 1)])
def test_the_nearest_tuned_sizes_win(library: Library, seqlen: int, index: int) -> None:
    p = Params(batch=1, heads=2, kv_heads=2, seqlen_q=seqlen, seqlen_kv=seqlen)
    select = library.handle.fagen_select
    assert select(b"fwd-fp32-d8-dense", ctypes.byref(p), -1) == index


def test_no_kernel_has_a_reason(library: Library) -> None:
    p = Call(1, 1, 1, 1, 1, 8).params
    select = library.handle.fagen_select
    assert select(b"bwd-fp32-d8-dense", ctypes.byref(p), -1) == -NO_SUCH_KERNEL
    assert error(library) == "no kernel for bwd-fp32-d8-dense is in this library"
    assert select(b"fwd-fp32-d24-dense", ctypes.byref(p), -1) == -NOT_HERE
    assert "needs amx_fantasy" in error(library)
    assert "which this CPU does not have" in error(library)
    assert select(b"fwd-fp32-d8-dense", ctypes.byref(p), 0) == -NOT_HERE
    assert "is for the host CPU; the tensors are on a CUDA device" in error(library)


def test_a_kernel_for_another_cpu_does_not_run(library: Library) -> None:
    assert Call(1, 1, 1, 4, 4, 24).run(library, 4) == NOT_HERE
    assert "fwd-fp32-d24-dense was built for anywhere and needs amx_fantasy" in error(library)


def test_a_kernel_that_reports_an_error(library: Library) -> None:
    assert Call(1, 1, 1, 4, 4, 16).run(library, 3) == FAILED
    assert error(library) == "fwd-fp32-d16-causal (toy): the kernel answered 7"


def _set(path: str, value: object) -> object:
    def change(p: Params) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            p = getattr(p, parent)
        setattr(p, name, value)

    return change


@pytest.mark.parametrize(("change", "says"), [
    (_set("batch", 0), "each must be at least 1"),
    (_set("seqlen_kv", -3), "seqlen_kv -3: each must be at least 1"),
    (_set("kv_heads", 3), "heads 4 is not a multiple of kv_heads 3"),
    (_set("k.data", None), "k is a null pointer"),
    (_set("lse", None), "lse is a null pointer"),
    (_set("v.data", 4097), "v starts at 0x1001, not a multiple of 4 bytes"),
    (_set("q.row_stride", -8), "q: row stride is -8 elements"),
    (_set("o.row_stride", 0), "o: row stride is 0 elements"),
    (_set("scale", -0.5), "scale is -0.5; it must be finite and not negative"),
    (_set("scale", math.nan), "scale is nan"),
])
def test_wrong_arguments(library: Library, change: object, says: str) -> None:
    call = Call(2, 4, 2, 5, 3, 8)
    change(call.params)  # type: ignore[operator]
    room = ctypes.create_string_buffer(1 << 16)
    at = -(-ctypes.addressof(room) // 256) * 256
    code = library.handle.fagen_run(0, ctypes.byref(call.params), at, None, 1)
    assert code == BAD_ARGUMENT
    assert says in error(library)


def test_a_workspace_that_is_missing_or_crooked(library: Library) -> None:
    call = Call(1, 1, 1, 4, 4, 8)
    for workspace in (None, 0x1008):
        assert library.handle.fagen_run(0, ctypes.byref(call.params), workspace, None, 1) == 2
        assert "needs a workspace of 256 bytes aligned to 256" in error(library)


def test_sizes_beyond_64_bits_are_refused(library: Library) -> None:
    big = 2**31 - 1
    p = Params(batch=big, heads=big, kv_heads=1, seqlen_q=big, seqlen_kv=1)
    size = library.handle.fagen_workspace_bytes(0, ctypes.byref(p))
    assert size == -BAD_ARGUMENT
    assert "does not fit 64 bits" in error(library)


# --- packed sequences -------------------------------------------------------------------------


class PackedCall(Call):
    """The same forward of sequences that stand one after another."""

    def __init__(self, rows: list[int], keys: list[int], heads: int, kv_heads: int, d: int) -> None:
        super().__init__(1, heads, kv_heads, sum(rows), sum(keys), d)
        p = self.params
        self.lengths = list(zip(rows, keys, strict=True))
        self.cu = [array("i", [0, *itertools.accumulate(n)]) for n in (rows, keys)]
        p.cu_q, p.cu_kv = (cu.buffer_info()[0] for cu in self.cu)
        p.batch, p.total_q, p.total_kv = len(rows), sum(rows), sum(keys)
        p.seqlen_q, p.seqlen_kv = max(rows), max(keys)

    def expected(self, causal: bool) -> tuple[list[float], list[float]]:
        """Each sequence alone, by head, put behind each other."""
        outs, lses = [], []
        p, d, cu_q, cu_kv = self.params, self.d, *self.cu
        for h in range(p.heads):
            hk = h // (p.heads // p.kv_heads)
            for b, (rows, keys) in enumerate(self.lengths):
                alone = Call(1, 1, 1, rows, keys, d)
                alone.params.scale = p.scale
                q = (h * p.total_q + cu_q[b]) * d
                kv = (hk * p.total_kv + cu_kv[b]) * d
                alone.arrays["q"] = self.arrays["q"][q : q + rows * d]
                for name in "kv":
                    alone.arrays[name] = self.arrays[name][kv : kv + keys * d]
                out, lse = alone.expected(causal)
                outs += out
                lses += lse
        return outs, lses


@pytest.fixture(scope="module")
def packing(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    os.environ["FAGEN_CACHE_DIR"] = str(cache)
    sizes = [Workload.parse(w) for w in ("b16-h2-s1000-t1600", "b2-h2-s1000")]  # means 100, 1000
    parts = [toykernel.part("fwd-fp32-d8-causal+varlen", cache, w) for w in sizes]
    parts.append(toykernel.part("fwd-fp32-d8-causal", cache))
    made = Library.load(link(parts, tmp_path_factory.mktemp("lib") / "libpacked.so"))
    made.handle.fagen_select.argtypes = (ctypes.c_char_p, ctypes.POINTER(Params), ctypes.c_int)
    return made


@pytest.mark.parametrize("threads", [1, 3])
def test_packed_sequences(packing: Library, threads: int) -> None:
    call = PackedCall([3, 0, 1, 5, 2, 0], [4, 2, 0, 3, 2, 0], 4, 2, 8)
    assert packing.workspace_bytes(call.params, 0) == 512  # 4 * 4 * (11 + 6), to 256
    assert call.run(packing, 0, threads) == OK, error(packing)
    outs, lses = call.expected(causal=True)
    assert call.arrays["o"].tolist() == pytest.approx(outs, abs=1e-5)
    assert call.lse.tolist() == pytest.approx(lses, abs=1e-5)


@pytest.mark.parametrize(("index", "change", "says"), [
    (0, _set("cu_q", None), "fwd-fp32-d8-causal+varlen needs cu_q, which is null"),
    (0, _set("total_kv", 0), "total_q 9, total_kv 0: each must be at least 1"),
    (0, _set("total_q", 8), "cu_q goes from 0 to 9; it must rise from 0 to 8"),
    (0, _set("seqlen_q", 4), "cu_q: sequence 2 has 5 rows; none to 4 are possible"),
    (2, _set("seqlen_q", 9), "offsets of packed sequences are given; fwd-fp32-d8-causal takes"
     " none"),
])
def test_wrong_packing(packing: Library, index: int, change: object, says: str) -> None:
    call = PackedCall([3, 1, 5], [4, 2, 3], 4, 2, 8)
    change(call.params)  # type: ignore[operator]
    room = ctypes.create_string_buffer(1 << 16)
    at = -(-ctypes.addressof(room) // 256) * 256
    code = packing.handle.fagen_run(index, ctypes.byref(call.params), at, None, 1)
    assert (code, error(packing)) == (BAD_ARGUMENT, says)


def test_falling_offsets_are_refused(packing: Library) -> None:
    call = PackedCall([3, 1, 5], [4, 2, 3], 4, 2, 8)
    call.cu[1][1] = 7
    assert call.run(packing, 0) == BAD_ARGUMENT
    assert error(packing) == "cu_kv: sequence 0 has 7 rows; none to 4 are possible"
    call.params.seqlen_kv = 9
    assert call.run(packing, 0) == BAD_ARGUMENT
    assert error(packing) == "cu_kv: sequence 1 has -1 rows; none to 9 are possible"


@pytest.mark.parametrize(("total", "index"), [(12000, 0), (100_000, 1)])
def test_the_nearest_mean_length_wins(packing: Library, total: int, index: int) -> None:
    p = Params(batch=100, heads=2, kv_heads=2, seqlen_q=8000, seqlen_kv=8000, total_q=total,
               total_kv=total)
    slug = b"fwd-fp32-d8-causal+varlen"
    assert packing.handle.fagen_select(slug, ctypes.byref(p), -1) == index


# --- the team of threads ---------------------------------------------------------------------


def test_many_callers_at_once(library: Library) -> None:
    wrong: list[str] = []

    def caller() -> None:
        call = Call(1, 4, 2, 6, 6, 8)
        outs, _ = call.expected(causal=False)
        for _ in range(50):
            code = call.run(library, 0, threads=3)
            if code or call.arrays["o"].tolist() != pytest.approx(outs, abs=1e-5):
                wrong.append(error(library))

    threads = [threading.Thread(target=caller) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_child_has_its_own_team(library: Library) -> None:
    assert Call(1, 4, 2, 6, 6, 8).run(library, 0, threads=3) == OK
    child = os.fork()
    if child == 0:
        os._exit(Call(1, 4, 2, 6, 6, 8).run(library, 0, threads=3))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


def _threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def _end(threads: set[str]) -> None:
    """Returns when they are gone: who joins a thread is told a moment before /proc is."""
    while threads & _threads():
        time.sleep(0.01)


@pytest.fixture
def own_team(request: pytest.FixtureRequest) -> bool:
    """Whether a library makes its own threads here. Beside torch it uses torch's: then the test is
    run in a process without torch, and has nothing left to do in this one."""
    if "libgomp" not in Path("/proc/self/maps").read_text():
        return True
    alone = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", request.node.nodeid],
        cwd=request.config.rootpath, capture_output=True, text=True, timeout=600,
    )
    assert alone.returncode == 0, alone.stdout
    assert "1 passed" in alone.stdout
    return False


def test_unloading_ends_the_team(cache: Path, tmp_path: Path, own_team: bool) -> None:
    if not own_team:
        return
    path = link([toykernel.part("fwd-fp32-d8-dense", cache)], tmp_path / "libunload.so")
    before = _threads()
    own = Library.load(path)
    assert Call(1, 8, 2, 6, 6, 8).run(own, 0, threads=4) == OK
    team = _threads() - before
    assert len(team) == 3
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(own.handle._handle))
    _end(team)
    child = os.fork()  # with nothing left behind that would be called here
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
def test_an_idle_team_ends_and_comes_back(cache: Path, tmp_path: Path, own_team: bool) -> None:
    if not own_team:
        return
    own = Library.load(link([toykernel.part("fwd-fp32-d8-dense", cache)], tmp_path / "libidle.so"))
    before = _threads()
    assert Call(1, 8, 2, 6, 6, 8).run(own, 0, threads=4) == OK
    _end(_threads() - before)
    call = Call(1, 8, 2, 6, 6, 8)
    assert call.run(own, 0, threads=4) == OK
    assert call.arrays["o"].tolist() == pytest.approx(call.expected(False)[0], abs=1e-5)


@pytest.mark.slow
def test_the_team_under_a_race_detector(tmp_path: Path) -> None:
    """Workers that give up after a millisecond, so that ending and beginning meet often."""
    sources = [HERE / "teamstress.c", *(paths.runtime() / f for f in ("threads.c", "openmp.c"))]
    built = subprocess.run(
        [find_cc(), "-g", "-O1", "-fsanitize=thread", "-DFAGEN_IDLE_MICROSECONDS=1000",
         f"-I{paths.runtime()}", f"-I{paths.templates() / 'device'}", *map(str, sources), "-o",
         str(tmp_path / "stress"), "-lpthread"], capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip("this compiler has no ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(tmp_path / "stress")], capture_output=True, text=True, timeout=600)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "right\n"


FEW_THREADS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg) {
  static int made;
  int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
  *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
  return ++made > 1 ? EAGAIN : real(t, a, run, arg);
}
"""


def test_threads_that_cannot_be_made_are_done_without(
    library: Library, tmp_path: Path
) -> None:
    (tmp_path / "few.c").write_text(FEW_THREADS)
    subprocess.run([find_cc(), "-shared", "-fPIC", str(tmp_path / "few.c"), "-o",
                    str(tmp_path / "few.so"), "-ldl"], check=True)
    code = (
        "import os\nfrom tests.unit.test_link import Call, Library\n"
        f"library, call = Library.load({str(library.path)!r}), Call(1, 8, 2, 6, 6, 8)\n"
        "for _ in range(3):\n"
        "    assert call.run(library, 0, threads=5) == 0\n"
        "assert len(os.listdir('/proc/self/task')) == 2\n"
        "assert max(abs(x - y) for x, y in zip(call.arrays['o'], call.expected(False)[0])) < 1e-5\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[1], timeout=600, text=True,
                          capture_output=True,
                          env={**os.environ, "LD_PRELOAD": str(tmp_path / "few.so")})
    assert done.returncode == 0, done.stderr


# --- the table -------------------------------------------------------------------------------


def test_the_same_parts_give_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    parts = [toykernel.part(f"fwd-fp32-d{d}-dense", cache) for d in (8, 16)]
    one = link(parts, tmp_path / "one" / "libsame.so")
    two = link(parts, tmp_path / "two" / "libsame.so")
    assert one.read_bytes() == two.read_bytes()
    assert str(tmp_path).encode() not in one.read_bytes()
    assert str(cache).encode() not in one.read_bytes()


def test_linking_is_quick(cache: Path, tmp_path: Path) -> None:
    parts = [toykernel.part("fwd-fp32-d8-dense", cache)]
    link(parts, tmp_path / "warm.so")

    def seconds() -> float:
        """Of the processor, the compiler's included: a busy machine may take longer."""
        before = os.times()
        link(parts, tmp_path / "quick.so")
        return sum(os.times()[:4]) - sum(before[:4])

    assert min(seconds() for _ in range(5)) < 0.5  # 0.1 s on a quiet machine


def test_bad_parts(cache: Path, tmp_path: Path) -> None:
    part = toykernel.part("fwd-fp32-d8-dense", cache)
    with pytest.raises(UsageError, match="at least one kernel"):
        table([])
    with pytest.raises(UsageError, match="given twice"):
        table([part, part])
    broken = tmp_path / "broken.o"
    broken.write_bytes(b"not an object")
    with pytest.raises(BuildError):
        link([replace(part, binary=replace(part.binary, path=str(broken)))], tmp_path / "x.so")
    assert not (tmp_path / "x.so").exists()
    with pytest.raises(BuildError, match="linking cannot write to"):
        link([part], Path("/proc/none/x.so"))


# --- CUDA kernels, on a driver that only writes down what it is asked -------------------------

TILE_Q, TILE_KV = 128, 64
H200 = Target.known("h200")


def _cuda_plan(candidate: Candidate) -> Plan:
    d = candidate.problem.head_dim
    none = product()
    return Plan(
        steps=(
            Step("first", (product(q_tiles=TILE_Q), product(heads=1), product(batch=1)), 256),
            Step(
                "second", (product(q_tiles=TILE_Q, heads=1, batch=1), none, none), 384,
                shared_bytes=200_000, ctas_per_sm=1, overlap=True,
                maps=(TensorMap("q", 64, TILE_Q, 128, d),
                      TensorMap("k", 32, TILE_KV, 64, d, l2_fetch=128)),
            ),
        ),
        regions=(
            Region(product(batch=1, heads=1, q_padded=TILE_Q, one=4), zero=True),
            Region(product(kv_heads=1, kv_tiles=TILE_KV, one=1)),
        ),
    )


def cuda_part(
    path: Path, target: Target = H200, slug: str = "fwd-bf16-d64-causal"
) -> Part:
    kernel = Kernel("none", toykernel.Knobs, (), _cuda_plan, lambda p, t: toykernel.Knobs(),
                    lambda c, w: 0)
    family = Family("fake", "for tests", "nvcc", {"fwd": kernel}, lambda t: True, lambda t: "sm_90")
    problem = Problem.parse(slug)
    path.write_bytes(b"the cubin\0" + bytes(range(256)))
    return Part(Candidate(problem, target, family, toykernel.Knobs()),
                Source("", "0" * 64, "cuda"), Binary(str(path), "0" * 64, "none", "sm_90"))


SCRIPT = """
import ctypes, sys
from fagen.library import Library, Params
library = Library.load(sys.argv[1])
p = Params(batch=3, heads=4, kv_heads=2, seqlen_q=300, seqlen_kv=70, scale=1.0, lse=256)
for i, name in enumerate(("q", "k", "v", "o")):
    view = getattr(p, name)
    view.data, view.batch_stride, view.head_stride, view.row_stride = 4096 * (i + 1), 99968, 64, 256
for change in sys.argv[2:]:
    exec(change)
for _ in range(2):
    code = library.handle.fagen_run(0, ctypes.byref(p), 0x10000, 0x77, 0)
    print("code", code, library.last_error(), flush=True)
print("workspace", library.workspace_bytes(p))
library.handle.fagen_select.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]
print("select", *(library.handle.fagen_select(b"fwd-bf16-d64-causal", ctypes.addressof(p), d)
                  for d in (0, 1, 2, -1)))
"""


@pytest.fixture(scope="module")
def fake(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the driver and the library."""
    os.environ["FAGEN_CACHE_DIR"] = str(cache)
    folder = tmp_path_factory.mktemp("fake")
    subprocess.run([compilers.find_cxx(), "-x", "c", "-shared", "-fPIC", "-w",
                    str(HERE / "fakecuda.c"), "-o", str(folder / "libcuda.so.1")], check=True)
    link([cuda_part(folder / "image.cubin")], folder / "lib.so")
    return folder


def ask(place: Path, *changes: str, driver: bool = True, **environment: int) -> list[str]:
    """What a call of the library under ``place`` (or of that file) does to the driver beside it."""
    library = place if place.is_file() else place / "lib.so"
    fake = next(p for p in library.parents if (p / "libcuda.so.1").exists())
    facts = {name: str(value) for name, value in environment.items()}
    path = {"LD_LIBRARY_PATH": str(fake)} if driver else {}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(library), *changes], text=True, timeout=600,
        capture_output=True, env={**os.environ, **path, **facts,
                                  "PYTHONPATH": str(HERE.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    # C and Python write through buffers of their own.
    return sorted(done.stdout.splitlines())


def test_every_driver_call(fake: Path) -> None:
    said = ask(fake)
    assert [s for s in said if s.startswith("load")] == ["load the cubin"]  # once for two runs
    assert "attribute second 8 200000" in said
    assert "zero 10000 0 4608 77" in said  # 3 * 4 * 384 floats
    assert ("launch first grid 3 4 3 block 256 1 1 shared 0 stream 77 overlap 0 "
            "work 10000 14800 extra 0") in said
    assert ("launch second grid 36 1 1 block 384 1 1 shared 200000 stream 77 overlap 61 "
            "work 10000 14800 extra 0") in said
    assert ("map type 9 rank 4 at 1000 dims 64 300 4 3 strides 512 128 199936 box 64 128 1 1 "
            "steps 1 1 1 1 interleave 0 swizzle 3 promotion 3 fill 0 aligned 0") in said
    assert ("map type 9 rank 4 at 2000 dims 64 70 2 3 strides 512 128 199936 box 32 64 1 1 "
            "steps 1 1 1 1 interleave 0 swizzle 2 promotion 2 fill 0 aligned 0") in said
    assert said.count("code 0 no message") == 2
    # No context was current: the primary one of the device that holds q, and gone again after.
    assert (said.count("push"), said.count("pop"), said.count("retain 0")) == (2, 2, 2)
    assert "workspace 18688" in said  # 18432 + 256
    assert "select 0 -3 -3 -3" in said  # device 1 is 9.1, 2 does not exist, -1 is the host


def test_a_counter_is_zeroed_by_a_kernel_that_the_forward_overlaps(
    fake: Path, tmp_path: Path
) -> None:
    from fagen.families.sm90 import SM90

    forward = SM90.default(Problem.parse("fwd-bf16-d64-causal"), H200)
    assert forward.config.schedule == "dynamic"
    image = fake / "forward"
    image.mkdir()
    part = replace(cuda_part(image / "image.cubin"), candidate=forward)
    said = ask(link([part], image / "lib.so"))
    attention, zero = sorted({line for line in said if line.startswith("launch")})
    assert zero.startswith("launch fwd_zero grid 1 1 1 block 32 1 1 shared 0 stream 77 overlap 0 ")
    assert attention.startswith("launch fwd grid 24 1 1 block 640 1 1 ")
    assert " overlap 61 work 10000 " in attention
    assert [line for line in said if line.startswith("zero")] == []  # no memset
    assert "workspace 256" in said


def test_one_library_for_several_machines(fake: Path, cache: Path) -> None:
    """The nearest GPU of the right capability; on the host the most of what this CPU has."""
    folder = fake / "several"
    folder.mkdir(exist_ok=True)
    targets = [replace(H200, name=f"h{sms}", sm_count=sms) for sms in (60, 114, 132)]
    parts = [cuda_part(folder / f"{t.name}.cubin", t) for t in (Target.known("a100"), *targets)]
    slug = "fwd-fp32-d8-dense"
    everything = host().target.isa
    isas = [(), (*everything, "amx_fantasy"), everything[:1], everything]
    parts += [toykernel.part(slug, cache, isa=isa, name=f"cpu{i}") for i, isa in enumerate(isas)]
    library = link(parts, folder / "lib.so")
    for sms, major, index in ((132, 9, 3), (120, 9, 2), (16, 9, 1), (108, 8, 0), (132, 7, -3)):
        said = ask(library, FAKE_SMS=sms, FAKE_MAJOR=major)
        assert any(line.startswith(f"select {index} ") for line in said), (sms, said)
    p = Params(batch=1, heads=1, kv_heads=1, seqlen_q=9, seqlen_kv=9)
    loaded = Library.load(library)
    loaded.handle.fagen_select.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
    assert loaded.handle.fagen_select(slug.encode(), ctypes.addressof(p), -1) == (
        7 if len(everything) > 1 else 4)


def test_packed_sequences_are_launched_by_slots(fake: Path) -> None:
    (fake / "packed").mkdir(exist_ok=True)
    part = cuda_part(fake / "packed" / "image.cubin", slug="fwd-bf16-d64-causal+varlen")
    library = link([part], fake / "packed" / "lib.so")
    said = ask(library, "p.cu_q = p.cu_kv = 4096; p.total_q, p.total_kv = 500, 128",
               "p.q.batch_stride = 0")
    assert said.count("code 0 no message") == 2
    assert any("launch first grid 6 4 1" in s for s in said)  # 500 / 128 + 3 slots
    assert any("launch second grid 24 1 1" in s for s in said)
    assert any("at 1000 dims 64 500 4 1 strides 512 128 128 " in s for s in said)
    assert any("at 2000 dims 64 128 2 1 strides 512 128 128 " in s for s in said)
    assert "zero 10000 0 3072 77" in said  # 4 * 6 * 128 floats
    w = Workload(3, 4, 2, 300, 128, total_q=500, total_kv=128)
    assert _cuda_plan(part.candidate).workspace_bytes(w) == 4 * 3072 + 256
    assert f"workspace {4 * 3072 + 256}" in said
    assert "workspace -2" not in said


def test_a_dimension_of_one_may_have_any_stride(fake: Path) -> None:
    said = ask(fake, "p.batch = 1; p.q.batch_stride = 3; p.k.batch_stride = -1")
    assert any("dims 64 300 4 1 strides 512 128 128 " in s for s in said)
    assert said.count("code 0 no message") == 2


def test_a_persistent_grid_stops_at_the_device(fake: Path) -> None:
    assert any("launch second grid 132 1 1" in s for s in ask(fake, "p.batch = 64"))


@pytest.mark.parametrize(("change", "environment", "says"), [
    ("p.k.row_stride = 68", {}, "k: row stride is 68 elements of 2 bytes, not a multiple of 16"),
    ("p.q.data = 4104", {}, "q starts at 0x1008, not a multiple of 16 bytes"),
    ("p.q.batch_stride = 2**40", {}, "no tensor map for q (CUDA error 1): address 0x1000, dims 64"),
    ("p.batch = 70000", {}, "70000 blocks along z; CUDA allows 65535"),
    ("", {"FAKE_MAJOR": 8}, "built for compute capability 9.0 (h200); CUDA device 0 has 8.0"),
    ("", {"FAKE_LOAD": 209}, "loading the kernel (into a driver for CUDA 12.8) failed with CUDA "
     "error 209: no kernel image is available"),
    ("", {"FAKE_LAUNCH": 719}, "first (grid 3 x 4 x 3, block 256, 0 bytes of shared memory) failed "
     "with CUDA error 719: some error"),
    ("", {"FAKE_INIT": 100}, "the NVIDIA driver answered error 100 to cuInit"),
])
def test_what_cuda_cannot_do_is_said(
    fake: Path, change: str, environment: dict[str, int], says: str
) -> None:
    said = ask(fake, change, **environment)
    assert "code 0 no message" not in said
    assert any(says in line for line in said), said


def test_no_driver_is_said(fake: Path) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        said = ask(fake, driver=False)
        assert any("no NVIDIA driver on this machine" in line for line in said)
    else:
        pytest.skip("this machine has a driver")
