"""Supervised processes, stopped ones included, end with the process that started them."""

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
supervisor = ChildSupervisor()
group = supervisor.process_group
sleepers = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=group)
            for _ in range(3)]
sleepers[0].send_signal(signal.SIGSTOP)
print(*(sleeper.pid for sleeper in sleepers), group, flush=True)
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


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(state.stdout.strip()) and "Z" not in state.stdout  # a zombie has ended too


def ended(pids: list[int], deadline_seconds: float = 10.0) -> bool:
    end = time.monotonic() + deadline_seconds
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_running, pids))


@pytest.mark.slow
@pytest.mark.parametrize("program", [STARTER, A_TEST], ids=["supervisor", "server"])
def test_children_of_a_killed_process_are_ended(tmp_path: Path, program: str) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "box")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert pids
        assert all(map(is_running, pids))
    finally:
        starter.send_signal(signal.SIGKILL)
        starter.communicate()
    if not ended(pids):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        pytest.fail("child processes are still running")


def test_closed_supervisor_ends_remaining_children() -> None:
    supervisor = ChildSupervisor()
    sleeper = subprocess.Popen(["sleep", "600"], process_group=supervisor.process_group)
    supervisor.close()
    assert sleeper.wait(10) == -signal.SIGKILL
    supervisor.close()


def test_signal_right_after_the_start_does_not_end_the_supervisor() -> None:
    supervisor = ChildSupervisor()
    os.kill(supervisor.process_group, signal.SIGHUP)
    sleeper = subprocess.Popen(["sleep", "600"], process_group=supervisor.process_group)
    supervisor.close()
    assert sleeper.wait(10) == -signal.SIGKILL
