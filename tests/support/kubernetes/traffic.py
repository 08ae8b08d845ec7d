"""`eilpost load` in the network of the test cluster: in through a Service, out into its sink.

`Traffic` is a context in which the load runs; `result` ends the sending, waits until every message has its outcome, and
returns the output of `eilpost load --json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.kubernetes.configuration import HOST
from tests.support.kubernetes.release import Release
from tests.support.servers import supervised

ROOT = Path(__file__).resolve().parents[3]
SESSIONS = 8
_LONGEST = "5m"  # limit of a load that no test ends


class Traffic:
    """A running load; see `sending`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._result: dict[str, Any] | None = None

    def result(self, timeout: float = 90.0) -> dict[str, Any]:
        """End the sending; returns the accounting."""
        if self._result is None:
            self._process.terminate()
            out, err = self._process.communicate(timeout=timeout)
            assert out, f"eilpost load: exit status {self._process.returncode}: {err}"
            self._result = json.loads(out)
        return self._result

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate(timeout=10)


@contextlib.contextmanager
def sending(release: Release, *options: str, rate: float = 40.0, seconds: float = 2.0) -> Iterator[Traffic]:
    """Send mail to the release's ingress. The block begins after the first `seconds`."""
    host, port = release.address("ingress")
    command = [
        *(sys.executable, "-m", "eilpost", "load", "--json"),
        *("--target", f"{host}:{port}", "--sink", f"{HOST}:{release.sink_port}"),
        *("--rate", f"{rate:g}", "--sessions", f"{SESSIONS}", "--per-connection", "5", "--duration", _LONGEST),
        *("--size", "2kB:95,300kB:5", "--settle", "30s", *options),
    ]
    process = subprocess.Popen(
        release.cluster.namespaces.enter(*command, network_only=True),
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=supervised.group(),
    )
    traffic = Traffic(process)
    try:
        time.sleep(seconds)
        yield traffic
    finally:
        traffic.kill()


def assert_nothing_lost(result: dict[str, Any], *, most_duplicates: int = 0) -> None:
    """Check that every message was accepted and delivered once, with at most `most_duplicates` duplicates."""
    wrong = {
        name: result[name]
        for name in ("lost", "unsent", "refused", "damaged", "misdirected", "unexpected", "wrong_bounces")
    }
    assert not any(wrong.values()), (wrong, result)
    assert result["accepted"] > 0
    assert result["delivered"] + result["bounced"] >= result["accepted"]
    assert result["duplicates"] <= most_duplicates, result
