"""11: `eilpost trace` and `eilpost queue` tell what happened, while the server runs and after it has ended."""

from __future__ import annotations

import json
import smtplib
import time
from pathlib import Path

from tests.support.onebox import OneBox
from tests.support.ports import free_port
from tests.support.world import queue_id_in


def send(box: OneBox, to: str) -> str:
    with smtplib.SMTP("127.0.0.1", box.mx, "client.test", timeout=30) as client:
        client.ehlo()
        client.mail("bob@example.test")
        assert client.rcpt(to)[0] == 250
        code, text = client.data(b"Subject: a story\r\n\r\nhello\r\n")
        assert code == 250
        return queue_id_in(text.decode())


def test_trace_and_queue(tmp_path: Path) -> None:
    nobody = free_port()
    box = OneBox(tmp_path, {"delivery": {"relay": f"smtp://127.0.0.1:{nobody}"}, "router": {"retry": ["1h"]}})
    with box:
        delivered, waiting = send(box, "alice@example.test"), send(box, "friend@elsewhere.test")
        end = time.monotonic() + 20
        while "tried" not in (queue := box.run("queue").lower()) and "attempt" not in queue and time.monotonic() < end:
            time.sleep(0.1)
        while "closed" not in (story := box.run("trace", delivered).lower()) and "delivered" not in story:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert box.stop() == 0
    # The server has ended; the log still tells.
    story = box.run("trace", delivered)
    assert delivered in story
    assert "alice@example.test" in story
    assert "delivered" in story.lower()
    story = box.run("trace", waiting)
    assert "friend@elsewhere.test" in story
    assert str(nobody) in story
    queue = box.run("queue")
    assert waiting in queue
    assert delivered not in queue
    lines = json.loads(box.run("queue", "--json"))
    assert waiting in json.dumps(lines)
    assert "refused" in queue.lower() or "connect" in queue.lower()  # the last reply


def test_a_message_nobody_knows(tmp_path: Path) -> None:
    box = OneBox(tmp_path)
    with box:
        box.stop()
    unknown = box.run("trace", "01ARZ3NDEKTSV4RRFFQ69G5FAV", ok=False)
    assert "Traceback" not in unknown
