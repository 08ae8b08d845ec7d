"""The tests' Postfix: none of its processes outlives a killed run."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.interrupted import InterruptedRun, until

TEST = """
from tests.support.interrupted import wait
from tests.support.servers.postfix import Postfix

def test_postfix():
    with Postfix({}) as postfix:
        wait(postfix.pid, str(postfix.home))
"""


def _names(group: int) -> list[str]:
    """Names of the processes in a process group."""
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(OSError):
            if os.getpgid(process.pid) == group:
                found.append(process.info["name"])
    return found


@pytest.mark.postfix
def test_daemons_and_queue_are_gone_after_a_killed_run(tmp_path: Path) -> None:
    with InterruptedRun(tmp_path, TEST) as run:
        master, home = run.ready()
        assert {"master", "smtpd"} <= set(_names(master))
        run.end(signal.SIGKILL)
    until(lambda: not _names(master) and not Path(home).exists(), seconds=20)
    assert (_names(master), Path(home).exists()) == ([], False)
