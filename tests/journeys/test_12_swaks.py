"""Journey 12: swaks sends to a running eilpost; the recipient fetches the message."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.servers.eilpost_process import EilpostProcess
from tests.support.servers.ports import block_until

pytestmark = pytest.mark.swaks


def test_message_sent_by_swaks_is_delivered(tmp_path: Path) -> None:
    with EilpostProcess(tmp_path) as box:
        done = subprocess.run(
            [
                "swaks", "--server", f"127.0.0.1:{box.mx}", "--helo", "client.test",
                "--from", "bob@example.test", "--to", "alice@example.test",
                "--header", "Subject: from swaks", "--body", "hello from swaks",
            ],
            capture_output=True,
            text=True,
            timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "queued as" in done.stdout
        block_until(lambda: box.mailbox("alice"), what="the message in its mailbox")
        (message,) = box.mailbox("alice")
        assert b"Subject: from swaks\r\n" in message
        assert message.rstrip().endswith(b"hello from swaks")
        refused = subprocess.run(
            ["swaks", "--server", f"127.0.0.1:{box.mx}", "--helo", "client.test", "--to", "nobody@example.test",
             "--from", "bob@example.test"],
            capture_output=True,
            text=True,
            timeout=30,
        )  # fmt: skip
        assert refused.returncode == 24  # exit status of swaks for "no recipient was accepted"
        assert "550 5.1.1" in refused.stdout
