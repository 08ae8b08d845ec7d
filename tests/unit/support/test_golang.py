"""Go builds of the tests: none outlives the run that started it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.interrupted import InterruptedRun, until

TEST = """
import os
import threading
from pathlib import Path

from tests.support import golang
from tests.support.interrupted import wait, until

def test_build():
    folder = Path({folder!r})
    golang.BIN = folder / "bin"
    os.environ["PATH"] = f"{{folder}}:{{os.environ['PATH']}}"
    program = golang.GoProgram("hello", "example.test/hello", "v1.0.0")
    threading.Thread(target=program.prepare, daemon=True).start()
    until((folder / "pid").exists, seconds=20)
    wait(os.getpid(), int((folder / "pid").read_text()))
"""

GO = """#!/bin/sh
if [ "$1" = version ]; then echo go version go1.24.4 linux/amd64; exit; fi
echo $$ > {folder}/new && mv {folder}/new {folder}/pid
exec sleep 600
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_no_build_outlives_an_ended_run(tmp_path: Path, end: signal.Signals) -> None:
    go = tmp_path / "go"
    go.write_text(GO.format(folder=tmp_path))
    go.chmod(0o755)
    (tmp_path / "run").mkdir()
    with InterruptedRun(tmp_path / "run", TEST.format(folder=str(tmp_path))) as run:
        pytest_pid, build = run.ready()
        assert psutil.pid_exists(build)
        os.kill(pytest_pid, end)  # pytest alone, not its process group
        until(lambda: not psutil.pid_exists(build), seconds=20)
        assert not psutil.pid_exists(build)
