"""Journey 13: large messages in an object store: delivery, a lost object, an outage, and `eilpost doctor`."""

from __future__ import annotations

import asyncio
import json
import smtplib
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.test_07_large import large_content
from tests.support.servers.eilpost_process import EilpostProcess
from tests.support.servers.in_memory import queue_id_in
from tests.support.servers.object_store import BUCKET, SECRET_KEY, ObjectServer
from tests.support.servers.ports import free_port
from tests.support.servers.scripted_remote import ScriptedRemote

pytestmark = pytest.mark.objects


def _send(box: EilpostProcess, content: bytes, to: str) -> str:
    with smtplib.SMTP("127.0.0.1", box.mx, "client.test", timeout=30) as client:
        client.ehlo()
        client.mail("bob@example.test")
        assert client.rcpt(to)[0] == 250
        code, text = client.data(content)
        assert code == 250, text
        return queue_id_in(text.decode())


def _wait_for(box: EilpostProcess, *command: str, says: str) -> str:
    """Repeat `ask` until its answer contains these words; returns the answer with folded white space."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        answer = " ".join(box.run(*command, ok=False).split())
        if says in answer:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"eilpost {' '.join(command)} does not say {says!r}:\n{answer}\n{box.output()[-3000:]}")


def test_large_message_through_the_store_reaches_the_mailbox(tmp_path: Path) -> None:
    content = large_content(3_000_000)
    with ObjectServer() as server, EilpostProcess(tmp_path / "home", {"spool": server.settings("eil/post")}) as box:
        queue_id = _send(box, content, "alice@example.test")
        _wait_for(box, "trace", queue_id, says="closed after")
        (stored,) = box.mailbox("alice")
        assert stored.endswith(content)
        (file,) = server.files("eil/post")
        assert file.read_bytes().endswith(content)
        assert SECRET_KEY not in box.output()
        assert not (box.home / "spool").exists()
        assert box.stop() == 0


async def test_lost_object_defers_until_it_is_restored(tmp_path: Path) -> None:
    content, port = large_content(600_000), free_port()
    settings = {
        "delivery": {"relay": f"smtp://127.0.0.1:{port}", "reconnect_backoff": "100ms"},
        "router": {"retry_delays": ["1s"]},
    }
    with ObjectServer() as server, EilpostProcess(tmp_path / "home", {"spool": server.settings(), **settings}) as box:

        async def waits(says: str) -> str:
            return await asyncio.to_thread(_wait_for, box, "queue", says=says)

        queue_id = await asyncio.to_thread(_send, box, content, "friend@elsewhere.test")
        await waits("connection refused")
        (file,) = server.files()
        file.rename(server.home / "backup")
        name = f"{file.parent.name}/{file.name}"
        queue = await waits("451 4.3.0 The message content is missing or damaged")
        assert name not in queue  # a DSN would quote the reply to the sender
        (line,) = {
            (line["queue_id"], line["spool"], line["error"].partition(": ")[0])
            for line in (json.loads(line) for line in box.output().splitlines() if line.startswith("{"))
            if line["event"] == "spooled content damaged, delivery deferred"
        }
        assert line == (queue_id, f"{name}@0", f"spool object s3://{BUCKET}/spool/{name} is missing")
        file.parent.mkdir(exist_ok=True)
        (server.home / "backup").rename(file)
        async with ScriptedRemote(port=port) as remote:
            await asyncio.to_thread(_wait_for, box, "trace", queue_id, says="closed after")
            (message,) = remote.messages
        assert message.content.endswith(content)


def test_store_outage_gives_4xx_and_defers_queued_mail(tmp_path: Path) -> None:
    content = large_content(600_000)
    with ObjectServer() as server, EilpostProcess(tmp_path / "home", {"spool": server.settings()}) as box:
        server.kill()
        with pytest.raises(AssertionError, match=r"451|4\.3\.0"):
            _send(box, content, "alice@example.test")
        queue_id = _send(box, b"Subject: small\r\n\r\nneeds no spool\r\n", "alice@example.test")
        _wait_for(box, "trace", queue_id, says="closed after")
        server.start()
        _wait_for(box, "trace", _send(box, content, "alice@example.test"), says="closed after")
        assert len(box.mailbox("alice")) == 2  # messages refused with 4xx did not arrive


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (
            {"secret_key": "guessed"},
            "access denied (SignatureDoesNotMatch): check spool.access_key and spool.",
        ),
        ({"url": "s3://nobody-made-it"}, "there is no such bucket: create it, or correct spool.url"),
        (
            {"endpoint": f"http://127.0.0.1:{free_port()}"},
            "connection refused: start the store, or correct spool.",
        ),
    ],
)
def test_unusable_store_is_a_one_line_error_at_start(tmp_path: Path, over: dict[str, str], words: str) -> None:
    with ObjectServer() as server:
        box = EilpostProcess(tmp_path / "home", {"spool": server.settings() | over})
        ended = subprocess.run(
            [*box.command, "--config", str(box.config)], capture_output=True, text=True, timeout=60, check=False
        )
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("eilpost: ")]
    assert ended.returncode == 2
    assert line.startswith("eilpost: spool.url: cannot write the spool s3://")
    assert words in line
    assert "Traceback" not in ended.stderr
    assert "guessed" not in ended.stderr


def test_doctor_reports_the_state_of_the_store(tmp_path: Path) -> None:
    with ObjectServer() as server:
        settings = {"spool": server.settings("eil/post"), "delivery": {"relay": f"smtp://127.0.0.1:{free_port()}"}}
        box = EilpostProcess(tmp_path / "home", settings)  # its configuration only; it does not run

        def look() -> dict[str, Any]:
            answer = json.loads(box.run("doctor", "--json", ok=False))
            (finding,) = [each for each in answer["findings"] if each["what"] == "spool"]
            assert SECRET_KEY not in str(answer)
            return dict(finding, page=answer["level"])

        finding = look()
        assert (finding["level"], finding["advice"]) == ("OK", [])
        assert f"s3://{BUCKET}/eil/post: written and read in" in finding["text"]
        assert len(server.files("eil/post")) == 1
        server.kill()
        finding = look()
        assert (finding["level"], finding["page"]) == ("FAIL", "FAIL")
        assert f"s3://{BUCKET}/eil/post" in finding["text"]
        assert any("check spool.url" in line for line in finding["advice"])
