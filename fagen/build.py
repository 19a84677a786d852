"""Source -> Binary: a content-addressed cache in front of nvcc (through PyCUDA) and g++.

The key is the text, the compiler and the flags. An entry is a folder that appears by one rename,
so any number of processes may share a cache; an entry whose bytes do not match its own record is
thrown away and built again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from fagen import compilers
from fagen.compilers import find_cxx, find_nvcc
from fagen.diskspace import IN_A_LOG, full, not_written
from fagen.errors import BuildError, SetupError
from fagen.model import Binary, Candidate, Source

__all__ = ["Builder", "Cache", "find_cxx", "find_nvcc"]

BUILD_SECONDS = 120.0
_SUFFIX = {"cpp": ".o", "cuda": ".cubin"}
# ptxas notes that cost real time: serialised wgmma, ignored setmaxnreg, injected waits.
_ADVICE = re.compile(r"\(C75\d\d\)[^\n]*")


class Cache:
    """Folders named by the hash of everything that decides their content."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, key: str) -> Path:
        return self.root / "kernels" / key[:2] / key

    def get(self, key: str) -> Binary | None:
        entry = self.entry(key)
        try:
            record = json.loads((entry / "record.json").read_text())
            record["advice"] = tuple(record["advice"])
            binary = Binary(**{**record, "path": str(entry / record["path"]), "cached": True})
            good = _sha256(Path(binary.path).read_bytes()) == binary.sha256
        except FileNotFoundError:
            if not entry.exists():
                return None
            good = False
        except (OSError, ValueError, TypeError, KeyError):
            good = False
        if good:
            return binary
        shutil.rmtree(entry, ignore_errors=True)
        return None

    def put(self, key: str, image: bytes, binary: Binary, texts: dict[str, str]) -> Binary:
        entry = self.entry(key)
        name = binary.path
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".new-") as fresh:
                (Path(fresh) / name).write_bytes(image)
                for file, text in texts.items():
                    (Path(fresh) / file).write_text(text)
                record = dataclasses.asdict(binary)
                (Path(fresh) / "record.json").write_text(json.dumps(record, indent=1))
                built = Path(fresh) / "entry"
                built.mkdir()
                for file in (name, *texts, "record.json"):
                    os.rename(Path(fresh) / file, built / file)
                try:
                    os.rename(built, entry)
                except OSError:
                    if not entry.is_dir():  # another process was first: its entry is as good
                        raise
        except OSError as error:
            raise not_written("storing the compiled kernel", self.root, error) from error
        return dataclasses.replace(binary, path=str(entry / name))


class Builder:
    """Compiles candidates, each at most once per cache."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def build(
        self,
        candidate: Candidate,
        source: Source,
        *,
        allow_spills: bool = False,
        timeout: float = BUILD_SECONDS,
    ) -> Binary:
        host = source.language == "cpp"
        compiler = compilers.compiler_of(candidate.family)
        arch = candidate.family.arch(candidate.target)
        flags = compilers.host_flags(candidate) if host else compilers.NVCC_FLAGS
        key = _sha256("\0".join((source.digest, compiler.identity, arch, *flags)).encode())
        binary = self.cache.get(key) or self._compile(
            key, source, compiler, arch, flags, timeout
        )
        if not allow_spills:
            _reject_spills(binary, candidate)
        return binary

    def _compile(
        self,
        key: str,
        source: Source,
        compiler: compilers.Compiler,
        arch: str,
        flags: tuple[str, ...],
        timeout: float,
    ) -> Binary:
        start = time.monotonic()
        if source.language == "cpp":
            image, log = _run_compiler([compiler.command, *flags], source, "-o", timeout)
        else:
            image, log = _cubin(source, compiler, arch, flags, timeout)
        binary = Binary(
            path="kernel" + _SUFFIX[source.language],
            sha256=_sha256(image),
            compiler=compiler.identity,
            arch=arch,
            seconds=round(time.monotonic() - start, 3),
            **parse_ptxas(log),
        )
        texts = {"kernel.cpp" if source.language == "cpp" else "kernel.cu": source.text,
                 "compiler.log": log}
        return self.cache.put(key, image, binary, texts)


def _cubin(
    source: Source, compiler: compilers.Compiler, arch: str, flags: tuple[str, ...], timeout: float
) -> tuple[bytes, str]:
    try:
        made = compilers.compile_with_pycuda(source.text, arch)
    except SetupError:
        raise
    except Exception as error:  # PyCUDA's CompileError is not importable without PyCUDA
        raise BuildError(_first_errors(str(error)), "fagen render shows the source") from error
    if made is not None:
        return made
    command = [compiler.command, "--cubin", *flags, f"-arch={arch}"]
    return _run_compiler(command, source, "-o", timeout)


def _run_compiler(
    command: list[str], source: Source, out: str, timeout: float
) -> tuple[bytes, str]:
    """Run in a folder of its own and under fixed names, so that no path gets into the binary."""
    try:
        return _run_in_folder(command, source, out, timeout)
    except OSError as error:
        raise not_written("the compiler", tempfile.gettempdir(), error) from error


def _run_in_folder(
    command: list[str], source: Source, out: str, timeout: float
) -> tuple[bytes, str]:
    suffix = ".cpp" if source.language == "cpp" else ".cu"
    with tempfile.TemporaryDirectory(prefix="fagen-build-") as folder:
        (Path(folder) / f"kernel{suffix}").write_text(source.text)
        process = subprocess.Popen(
            [*command, f"kernel{suffix}", out, "kernel.bin"],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )
        try:
            log, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise BuildError(
                f"the compiler did not finish within {timeout:g} s and was killed"
            ) from None
        finally:
            if process.poll() is None:  # also on Ctrl-C: nvcc's children go with it
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode and IN_A_LOG in log:
            raise full("the compiler", tempfile.gettempdir())
        if process.returncode:
            raise BuildError(_first_errors(log), "fagen render shows the source")
        return (Path(folder) / "kernel.bin").read_bytes(), log


def _first_errors(log: str, most: int = 3) -> str:
    errors = [line.strip() for line in log.splitlines() if "error" in line.lower()]
    return "; ".join(errors[:most]) or log.strip()[-500:] or "the compiler failed without a word"


def parse_ptxas(log: str) -> dict[str, Any]:
    """What ``-Xptxas -v`` said, over all kernels of the source: the worst of each."""
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    shared = [int(n) for n in re.findall(r"(\d+) bytes smem", log)]
    spills = [int(a) + int(b) for a, b in re.findall(
        r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)]
    return {
        "registers": max(registers, default=0),
        "shared_bytes": max(shared, default=0),  # static only; dynamic is the plan's
        "spill_bytes": sum(spills),
        "advice": tuple(dict.fromkeys(_ADVICE.findall(log))),
    }


def _reject_spills(binary: Binary, candidate: Candidate) -> None:
    if binary.spill_bytes:
        raise BuildError(
            f"{binary.spill_bytes} bytes of registers are spilled ({candidate})",
            "choose smaller tiles, or pass --allow-spills",
        )
    if binary.advice:
        raise BuildError(f"ptxas: {binary.advice[0]}", "pass --allow-spills to keep it anyway")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
