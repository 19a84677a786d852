"""Several devices of one host: one worker each, on one storage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fagen import crew
from fagen.board import study_id
from fagen.devices import GpuProbe, host
from fagen.errors import SetupError
from fagen.members import Members
from fagen.shared import Turns
from fagen.storage import Pace, Storage

ROOT = Path(__file__).parents[2]


def test_all_means_every_gpu_and_commas_several() -> None:
    import dataclasses

    gpus = tuple(dataclasses.replace(host(), name=f"cuda:{n}", uuid=f"GPU-{n}") for n in range(2))
    assert crew.names("all", lambda: GpuProbe(gpus)) == ("GPU-0", "GPU-1")
    assert crew.names("0,2", lambda: GpuProbe(())) == ("0", "2")
    assert crew.names("0") == crew.names(None) == ()
    with pytest.raises(SetupError, match="there is no GPU here"):
        crew.names("all", lambda: GpuProbe(()))
    assert crew.labels(["GPU-0123456789", "none"]) == ("0:01234567", "1:none")


def test_what_workers_say_is_marked_and_their_ends_are_told() -> None:
    said: list[str] = []
    codes = crew.run({"good": ["devices"], "bad": ["tune", "--nonsense"]}, said.append)
    assert codes["good"] == 0
    assert codes["bad"] == 2
    assert any(line.startswith("[bad] error: no such option") for line in said), said


def test_ctrl_c_reaches_every_worker(tmp_path: Path) -> None:
    code = "from fagen import crew; crew.run({'a': ['tune'], 'b': ['tune']})"
    fake = tmp_path / "fagen" / "__main__.py"  # of the workers only
    fake.parent.mkdir()
    fake.write_text(
        "import sys, time\n"
        "try:\n    print('up', file=sys.stderr, flush=True)\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    print('down', file=sys.stderr)\n"
    )
    (tmp_path / "fagen" / "__init__.py").write_text("")
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": ""},
    )
    assert parent.stderr is not None
    assert {parent.stderr.readline(), parent.stderr.readline()} == {"[a] up\n", "[b] up\n"}
    parent.send_signal(signal.SIGINT)
    rest = parent.stderr.read()
    assert "[a] down" in rest
    assert "[b] down" in rest
    assert parent.wait() != 0


def test_a_worker_takes_up_first_what_nobody_is_on(tmp_path: Path) -> None:
    storage = Storage(f"sqlite:///{tmp_path}/s.db", Pace())
    busy = [Members(storage, study_id(storage, name)) for name in ("b", "c", "c")]
    for member in busy:
        member.join()
    assert list(Turns(storage, ["c", "b", "a"])) == [2, 1, 0]
    for member in busy:
        member.leave()


@pytest.mark.slow
def test_two_workers_on_one_host_tune_a_spec_together(tmp_path: Path) -> None:
    problems = ["fwd-fp32-d16", "fwd-fp32-d16-causal", "fwd-fp32-d16-window8"]
    ran = subprocess.run(
        [sys.executable, "-m", "fagen", "tune", *problems, "--gpu", "none,none", "--trials", "2",
         "--effort", "quick", "--workload", "b1-h1-s64", "--json"],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "FAGEN_DATA_DIR": str(tmp_path / "data")},
    )
    assert ran.returncode == 0, ran.stderr
    entries = json.loads(ran.stdout)["entries"]
    assert [e["problem"] for e in entries] == [
        "fwd-fp32-d16-dense", "fwd-fp32-d16-causal", "fwd-fp32-d16-window8"
    ]
    for entry in entries:
        search = entry["provenance"]["search"]
        assert search["tried"] == 2
        assert 0 <= search["device_waited"] <= 1
    assert "[0:none] fwd-fp32" in ran.stderr
    assert "[1:none] fwd-fp32" in ran.stderr
    assert "the device waited for builds" in ran.stderr
