"""A real process: signals, exit status, one line on stderr."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import supervised

_ROOT = Path(__file__).parents[3]
_PROGRAM = """
import asyncio, sys
from datetime import timedelta
from mail import logging_setup, service

how = sys.argv[1]

class Works:
    name = "works"
    async def run(self, ready, stop):
        ready()
        await stop.wait()
        if how == "slow":
            print("draining", flush=True)
            await asyncio.sleep(1000)
        if how == "stubborn":
            print("draining", flush=True)
            while True:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    print("cancelled", flush=True)
        if how == "bug":
            raise KeyError("nobody expects")
        if how == "unusable":
            raise service.ServiceError("127.0.0.1:25: already in use\\nby another")

async def main():
    await service.run_roles([Works()], timedelta(seconds=900), lambda: print("ready", flush=True))

logging_setup.configure("info", "json")
sys.exit(service.run(main))
"""


@pytest.mark.parametrize(
    ("how", "signals", "status", "stderr"),
    [
        ("quick", [signal.SIGTERM], 0, ""),
        ("quick", [signal.SIGINT], 0, ""),
        ("slow", [signal.SIGTERM, signal.SIGTERM], 0, ""),
        ("stubborn", [signal.SIGINT, signal.SIGINT, signal.SIGINT], 130, ""),
        ("unusable", [signal.SIGTERM], 2, "eilpost: 127.0.0.1:25: already in use by another"),
        ("bug", [signal.SIGTERM], 70, "eilpost: internal error, please report it: KeyError: 'nobody expects'"),
    ],
)
def test_exit_status_and_error_line_of_a_process(
    how: str, signals: list[signal.Signals], status: int, stderr: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, how],
        cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=supervised.group(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for number in signals:
            assert process.stdout.readline().strip() in ("ready", "draining", "cancelled")
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status
    plain = [line for line in errors.splitlines() if not line.startswith("{")]
    assert plain == ([stderr] if stderr else [])
    assert "Traceback" not in errors
    assert ('"traceback":"KeyError' in errors) == (how == "bug")
