"""One broker: a Java process in the group of its cluster's guard, and the signals one sends to it.

In charge of the process only; its configuration is made by `properties.py`, and whether it serves is asked by
`question.py`. A node that was killed, terminated or thawed goes on with the data it has.
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

# Measured, processor seconds from start to first answer, one node: 6.4 plain, 5.4 with the serial collector, 3.4 with
# the quick compiler alone too, 1.8 with classes from the archive as well.
_JVM_OPTIONS = ("-XX:+UseSerialGC", "-Xshare:auto", "-Xms64m", "-Djava.awt.headless=true")
_FAST_START_OPTION = "-XX:TieredStopAtLevel=1"


class Node:
    """Node `number` in `folder`: server.properties, data/, log. Not started by making it."""

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
        """Of its process, running or not."""
        if self._process is None:
            raise BrokerError(f"node {self.number} was never started")
        return self._process.pid

    def running(self) -> bool:
        """Whether there is a process; a frozen one counts."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """What it logged so far, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_of_this_start(self) -> str:
        """What it logged since it was last started."""
        return self.log()[self._log_start :]

    def java(self, main: str, *arguments: str, archive: Sequence[str] = ()) -> list[str]:
        """The command line that runs a class of Kafka's; `archive` is options about the archive of classes."""
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        options = [*self.options, f"-Djava.io.tmpdir={self.folder / 'tmp'}"]
        if not archive and jars.archive_path().exists():
            archive = [f"-XX:SharedArchiveFile={jars.archive_path()}"]
        # In one order, whatever the file system's: the archive is for exactly this path.
        path = ":".join(str(jar) for jar in sorted(jars.folder().glob("*.jar")))
        return [shutil.which("java") or "java", *options, *archive, "-cp", path, main, *arguments]

    def start(self, group: int, *, archive: Sequence[str] = ()) -> None:
        """Start the process in the process group `group`; it does not wait until the broker serves."""
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
        """SIGKILL: gone at once, like a machine that lost its power. Returns when it is gone."""
        if self._process is not None:
            self._send(signal.SIGKILL)
            self._process.wait(30)

    def terminate(self, *, timeout_seconds: float = 30.0) -> None:
        """SIGTERM: leadership is handed over, then it ends. Killed when that takes longer than the time given."""
        self.request_stop()
        self.wait_until_ended(timeout_seconds)

    def request_stop(self) -> None:
        """SIGTERM, without waiting for what comes of it. A frozen one is thawed, or it would never hear of it."""
        self._send(signal.SIGTERM)
        self.thaw()

    def wait_until_ended(self, timeout_seconds: float) -> None:
        """Return when it has ended; killed when that takes longer than the time given."""
        if self._process is not None:
            try:
                self._process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self.kill()

    def freeze(self) -> None:
        """SIGSTOP: its connections stay open and nothing answers, like a machine that hangs."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on as if no time had passed."""
        self._send(signal.SIGCONT)

    def memory_bytes(self) -> int:
        """Its resident memory, on Linux."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def _send(self, number: signal.Signals) -> None:
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
