"""Processes whose log lines cannot be written: the service and its end are as without the fault."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import smtplib
from pathlib import Path

import pytest

from tests.support.servers.eilpost_process import EILPOST, EilpostProcess
from tests.support.servers.ports import block_until

pytestmark = pytest.mark.slow

MESSAGES = 30
PIPE_BYTES = 4096  # filled by the first messages


@pytest.mark.parametrize("log", ["stuck", "gone", "full"])
def test_log_that_cannot_be_written_stops_nothing(tmp_path: Path, log: str) -> None:
    path = tmp_path / "log"
    reader = -1
    if log == "full":
        path.symlink_to("/dev/full")
    else:
        os.mkfifo(path)
        reader = os.open(path, os.O_RDWR)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    command = ("sh", "-c", f"exec '{EILPOST}' up \"$@\" 2>'{path}'", "sh")
    with EilpostProcess(tmp_path, {"node": {"log_level": "debug"}}, command=command) as box:
        if log == "gone":
            os.close(reader)
        for number in range(MESSAGES):
            with smtplib.SMTP("127.0.0.1", box.mx, timeout=10) as client:
                client.sendmail("bob@example.test", ["alice@example.test"], f"Subject: {number}\r\n\r\ntext\r\n")
        new = tmp_path / "mail" / "example.test" / "alice" / "new"
        block_until(lambda: new.is_dir() and len(list(new.iterdir())) == MESSAGES, what="the messages in the mailbox")
        assert box.get("/healthz")[0] == 200
        if log != "stuck":  # the lines of a stuck log wait
            assert box.metric("eilpost_log_lines_dropped_total") > MESSAGES
        box.signal(signal.SIGTERM)
        assert box.wait() == 0
    if log == "stuck":
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):  # the pipe is full
            os.write(writer, bytes(select.PIPE_BUF))
        os.close(writer)
        os.close(reader)
