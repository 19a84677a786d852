"""A PostgreSQL server of one's own: on a free port of the loopback, in a folder that goes away."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path


def binaries() -> Path | None:
    """The folder of initdb and pg_ctl."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "pg_ctl").exists()), None)


class Server:
    """PostgreSQL refuses to run as root, so root runs it as somebody else."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self._data, self._log = binaries, folder / "data", folder / "log"
        self._user = _nobody() if os.geteuid() == 0 else None
        if self._user:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._run("initdb", "-D", str(self._data), "-U", "fagen", "--auth=trust", "-E", "UTF8",
                  "--no-sync")
        with (self._data / "postgresql.conf").open("a") as conf:
            conf.write(f"port = {self._port}\nlisten_addresses = '127.0.0.1'\n"
                       "unix_socket_directories = ''\n"
                       "fsync = off\n")  # the machine does not crash, and its disk may be slow

    @property
    def url(self) -> str:
        return f"postgresql://fagen@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-l", str(self._log), "-w", "-t", "600", "start")

    def stop(self, mode: str = "fast") -> None:
        """``immediate`` is what a crash looks like."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", "600", "-m", mode, "stop")

    def _run(self, program: str, *words: str) -> None:
        as_user = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": ()}
        ran = subprocess.run(
            [self._binaries / program, *words], cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=600,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"}, **(as_user if self._user else {}),
        )
        if ran.returncode:
            log = self._log.read_text()[-500:] if self._log.exists() else ""
            raise RuntimeError(f"{program}: {ran.stderr} {log}")


def _nobody() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
