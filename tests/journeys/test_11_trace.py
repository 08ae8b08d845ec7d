"""Journey 11: `eilpost trace` and `eilpost queue` work while the server runs and after it has stopped."""

from __future__ import annotations

import json
import smtplib
import subprocess
from pathlib import Path

from tests.support.servers.eilpost_process import EILPOST, EilpostProcess
from tests.support.servers.in_memory import queue_id_in
from tests.support.servers.ports import block_until, free_port


def send(box: EilpostProcess, to: str) -> str:
    with smtplib.SMTP("127.0.0.1", box.mx, "client.test", timeout=30) as client:
        client.ehlo()
        client.mail("bob@example.test")
        assert client.rcpt(to)[0] == 250
        code, text = client.data(b"Subject: a timeline\r\n\r\nhello\r\n")
        assert code == 250
        return queue_id_in(text.decode())


def test_trace_and_queue_work_with_and_without_a_server(tmp_path: Path) -> None:
    nobody = free_port()
    box = EilpostProcess(
        tmp_path, {"delivery": {"relay": f"smtp://127.0.0.1:{nobody}"}, "router": {"retry_delays": ["1h"]}}
    )
    with box:
        delivered, waiting = send(box, "alice@example.test"), send(box, "friend@elsewhere.test")
        block_until(
            lambda: "; 1 attempt" in box.run("queue") and "closed after" in box.run("trace", delivered),
            what=lambda: box.run("queue") + box.run("trace", delivered),
        )
        assert box.stop() == 0
    # The server has stopped; the commands read the log.
    output = box.run("trace", delivered)
    assert delivered in output
    assert " delivered  alice@example.test (attempt 1, " in output
    output = box.run("trace", waiting)
    assert "friend@elsewhere.test" in output
    assert str(nobody) in output
    queue = box.run("queue")
    assert waiting in queue
    assert delivered not in queue
    assert f"451 4.4.1 [127.0.0.1]:{nobody}: connection refused" in queue  # the last reply
    (line,) = json.loads(box.run("queue", "--json"))
    assert (line["queue_id"], line["attempts"]) == (waiting, 1)


def test_trace_of_an_unknown_message_fails(tmp_path: Path) -> None:
    box = EilpostProcess(tmp_path)
    with box:
        box.stop()
    unknown = subprocess.run(
        [EILPOST, "trace", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "--config", box.config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("eilpost: 01ARZ3NDEKTSV4RRFFQ69G5FAV: no such message, or its history is older")
    assert unknown.stderr.count("\n") == 1
