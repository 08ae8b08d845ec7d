"""Start time of `make run`: from the start of its process to the first 250 for a message.

Runs `eilpost demo` with its own ports, once in an empty directory and once in the same one again. Creating `.venv` is
not included.
"""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.load import LoadFailed
from tests.support.servers.eilpost_process import EILPOST
from tests.support.servers.ports import free_port

_DEADLINE_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 0.002
_MESSAGE = b"Subject: first\r\n\r\nHi Alice\r\n"


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds to the first 250, one for each start."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(starts: int = 5) -> list[Start]:
    """Measure a first and a second start in each of `starts` folders."""
    first, again = [], []
    for _ in range(starts):
        with tempfile.TemporaryDirectory(prefix="eilpost-start-") as folder:
            first.append(_first_250(Path(folder)))
            again.append(_first_250(Path(folder)))
    return [Start("in an empty directory", tuple(first)), Start("in the directory of an earlier start", tuple(again))]


def _first_250(folder: Path) -> float:
    port = free_port()
    began = time.monotonic()
    with _demo(folder, port) as process:
        while True:
            try:
                with smtplib.SMTP("127.0.0.1", port, "laptop.test", timeout=_DEADLINE_SECONDS) as client:
                    client.sendmail("bob@example.test", ["alice@example.test"], _MESSAGE)
                    return time.monotonic() - began
            except (OSError, smtplib.SMTPException) as error:
                if process.poll() is not None or time.monotonic() > began + _DEADLINE_SECONDS:
                    said = (folder / "output").read_text(errors="replace")[-2000:]
                    raise LoadFailed(f"`eilpost demo` took no message ({error}):\n{said}") from None
            time.sleep(_LOOK_AGAIN_SECONDS)


@contextlib.contextmanager
def _demo(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EILPOST_")}
    environment |= {
        "EILPOST_INGRESS__SMTP_LISTEN": f"127.0.0.1:{port}",
        "EILPOST_MAILSTORE__POP3_LISTEN": f"127.0.0.1:{free_port()}",
        "EILPOST_HTTP__LISTEN": f"127.0.0.1:{free_port()}",
    }
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [str(EILPOST), "demo", "--dir", str(folder / "demo")],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def one_line(start: Start) -> str:
    each = ", ".join(f"{seconds:.2f}" for seconds in start.seconds)
    return f"`eilpost demo` {start.name}: first 250 after {start.median:.2f} s (median of {len(start.seconds)}: {each})"
