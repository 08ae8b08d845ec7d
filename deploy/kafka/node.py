"""One broker: a Java process in the process group of its cluster's supervisor, and the signals for it.

`properties.py` writes its configuration, and `metadata.py` checks whether it serves. A node that was killed, terminated
or thawed continues with its data.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploy.kafka import jars
from deploy.kafka.jars import HERE, BrokerError

# CPU seconds from start to first response, one node, measured: 6.4 with defaults, 5.4 with the serial collector, 3.4
# also with the C1 compiler only, 1.8 also with the class archive.
_JVM_OPTIONS = ("-XX:+UseSerialGC", "-Xshare:auto", "-Xms64m", "-Djava.awt.headless=true")
_FAST_START_OPTION = "-XX:TieredStopAtLevel=1"


class Node:
    """Node `number` in `folder` (server.properties, data/, log), not started yet."""

    def __init__(self, number: int, folder: Path, *, heap: str, optimized: bool = False) -> None:
        self.number = number
        self.folder = folder
        self.data = folder / "data"
        self.log_path = folder / "log"
        self.options = [f"-Xmx{heap}", *_JVM_OPTIONS, f"-Dlog4j2.configurationFile={HERE / 'log4j2.xml'}"]
        if not optimized:
            self.options.append(_FAST_START_OPTION)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """Process id of the last start."""
        if self._process is None:
            raise BrokerError(f"node {self.number} was never started")
        return self._process.pid

    def running(self) -> bool:
        """Whether the process exists, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Its log of all starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_of_this_start(self) -> str:
        """Its log since the last start."""
        return self.log()[self._log_start :]

    def java(self, main: str, *arguments: str, archive: Sequence[str] = ()) -> list[str]:
        """Command line that runs one of Kafka's classes; `archive` are options for the class archive."""
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        options = [*self.options, f"-Djava.io.tmpdir={self.folder / 'tmp'}"]
        if not archive and jars.archive_path().exists():
            archive = [f"-XX:SharedArchiveFile={jars.archive_path()}"]
        # Sorted, because the archive is valid for exactly this class path.
        path = ":".join(str(jar) for jar in sorted(jars.folder().glob("*.jar")))
        return [shutil.which("java") or "java", *options, *archive, "-cp", path, main, *arguments]

    def start(self, group: int, *, archive: Sequence[str] = ()) -> None:
        """Start the process in the process group `group`, without waiting until the broker serves."""
        if self.running():
            return
        self._log_start = len(self.log())
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.java("kafka.Kafka", str(self.folder / "server.properties"), archive=archive),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=group,
            )

    def kill(self) -> None:
        """SIGKILL, like a power failure; returns when the process has ended."""
        if self._process is not None:
            self._send(signal.SIGKILL)
            self._process.wait(30)

    def terminate(self, *, timeout_seconds: float = 30.0) -> None:
        """SIGTERM, so that the broker hands over leadership and exits; SIGKILL after the time-out."""
        self.request_stop()
        self.wait_until_ended(timeout_seconds)

    def request_stop(self) -> None:
        """SIGTERM without waiting. A frozen process is thawed, because it could not handle the signal."""
        self._send(signal.SIGTERM)
        self.thaw()

    def wait_until_ended(self, timeout_seconds: float) -> None:
        """Wait until the process has ended; SIGKILL after the time-out."""
        if self._process is not None:
            try:
                self._process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self.kill()

    def freeze(self) -> None:
        """SIGSTOP, like a hung machine: connections stay open without responses."""
        self._send(signal.SIGSTOP)
        if self.running():
            # All its threads stop some time after the signal.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """SIGCONT: the process continues."""
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
