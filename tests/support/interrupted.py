"""A pytest run of one test in its own process group, with a worker process as in `make test`, ended by a signal.

The test starts the processes that must end with the run, and calls `wait`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.removal import ROOT

_READY = "READY "
SIGNALS = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name
)


class InterruptedRun:
    """A context manager. The test may use the fixtures of tests/conftest.py."""

    def __init__(self, folder: Path, test: str) -> None:
        file = folder / "test_waiting.py"
        file.write_text(test)
        self._process = subprocess.Popen(
            [
                # A background job of a shell ignores SIGINT, and its children inherit that.
                *("env", "--default-signal=INT", sys.executable, "-m", "pytest", "-q", "-s", "-n", "1"),
                *("-p", "no:cacheprovider", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml"), str(file)),
            ],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def __enter__(self) -> InterruptedRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ready(self) -> Any:
        """The arguments of `wait`."""
        assert self._process.stdout is not None
        output = []
        for line in self._process.stdout:
            if _READY in line:
                return json.loads(line.partition(_READY)[2])
            output.append(line)
        raise AssertionError(f"the run ended before it was ready: {''.join(output)}")

    def end(self, number: signal.Signals) -> None:
        """Send the signal to the process group, as a terminal does, and wait for the end of pytest."""
        os.killpg(self._process.pid, number)
        output, _ = self._process.communicate(timeout=90)
        # SIGINT raises KeyboardInterrupt, after which pytest tears down its fixtures. The other signals have no
        # handler.
        expected = pytest.ExitCode.INTERRUPTED if number == signal.SIGINT else -number
        assert self._process.returncode == expected, output


def wait(*facts: str | int) -> None:
    """Called by the test: pass the values to `InterruptedRun.ready`, and wait for the end of the run."""
    print(f"\n{_READY}{json.dumps(facts)}", file=sys.stderr, flush=True)  # a worker's standard output is discarded
    threading.Event().wait()


def until(holds: Callable[[], object], *, seconds: float = 60) -> None:
    """Wait until `holds` is true or the time is over."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
