"""Child supervisor: child processes never outlive the process that started them, even after SIGKILL.

The children are in the supervisor's process group. The supervisor waits for the end of its standard input, which only
its parent holds open, and then kills the group. A parent-death signal is not used: it follows the starting *thread* and
exists on Linux only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


class ChildSupervisor:
    """Start children with `process_group=supervisor.process_group` in the same session."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # this very file
            [sys.executable, "-I", "-S", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        # Before this line is written, SIGHUP ends it: the kernel sends one to a group that becomes orphaned with a
        # stopped member.
        assert self._process.stdout is not None
        with self._process.stdout as ready:
            if not ready.readline():
                raise RuntimeError("the child supervisor ended at its start")

    @property
    def process_group(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End the supervisor and all processes of its group. Idempotent."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


if __name__ == "__main__":
    # These signals must not end the supervisor before it has killed its group.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while sys.stdin.buffer.read(1):
        pass
    os.killpg(0, signal.SIGKILL)
