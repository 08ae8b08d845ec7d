"""Processes under a guard end with the one that started them, frozen ones too; those of tests as well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eilpost.child_supervisor import ChildSupervisor

ROOT = Path(__file__).resolve().parents[3]

STARTER = """
import os, signal, subprocess, sys, time
from eilpost.child_supervisor import ChildSupervisor
guard = ChildSupervisor()
sleepers = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=guard.process_group)
            for _ in range(3)]
sleepers[0].send_signal(signal.SIGSTOP)
print(*(sleeper.pid for sleeper in sleepers), guard.process_group, flush=True)
time.sleep(600)
"""
A_TEST = """
import sys, time
from pathlib import Path
from tests.support.servers.eilpost_process import EilpostProcess
box = EilpostProcess(Path(sys.argv[1]))
box.start()
print(box.pid, flush=True)
time.sleep(600)
"""


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(state.stdout.strip()) and "Z" not in state.stdout  # what nobody has waited for yet is gone too


def ended(pids: list[int], deadline_seconds: float = 10.0) -> bool:
    end = time.monotonic() + deadline_seconds
    while any(map(lives, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(lives, pids))


@pytest.mark.parametrize("program", [STARTER, A_TEST], ids=["guard", "onebox"])
def test_whoever_is_killed_leaves_nobody_behind(tmp_path: Path, program: str) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "box")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert pids
        assert all(map(lives, pids))
    finally:
        starter.send_signal(signal.SIGKILL)
        starter.communicate()
    if not ended(pids):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        pytest.fail("they live on")


def test_a_guard_that_is_closed_ends_what_is_left() -> None:
    guard = ChildSupervisor()
    sleeper = subprocess.Popen(["sleep", "600"], process_group=guard.process_group)
    guard.close()
    assert sleeper.wait(10) == -signal.SIGKILL
    guard.close()
