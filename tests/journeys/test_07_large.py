"""Journey 7: content too large for a record goes through the spool and arrives unchanged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mail.record import MessageAccepted
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.scripted_remote import ScriptedRemote


def large_content(size_bytes: int) -> bytes:
    lines = size_bytes // 78
    return b"Subject: large\r\n\r\n" + b"".join(os.urandom(38).hex().encode() + b"\r\n" for _ in range(lines))


@pytest.mark.parametrize("size_bytes", [2_000, 5_000_000])
async def test_large_message_to_a_mailbox_and_a_remote_arrives_unchanged(size_bytes: int, tmp_path: Path) -> None:
    content = large_content(size_bytes)
    async with (
        ScriptedRemote() as remote,
        InMemoryMailServer(
            {"delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"}, "spool": {"max_inline_size": "1KiB"}},
            spool=tmp_path / "spool",
        ) as mail_server,
    ):
        queue_id = await mail_server.send(content, to=["alice@example.test", "friend@elsewhere.test"])
        await mail_server.wait_closed(queue_id)
        (received,) = await mail_server.details(queue_id, MessageAccepted)
        assert received.message.size_bytes > len(content)  # includes our Received header
        spooled = sum(path.stat().st_size for path in (tmp_path / "spool").rglob("*") if path.is_file())
        assert spooled >= len(content)
        (stored,) = await mail_server.mailbox("alice")
        (message,) = remote.messages
    assert stored.endswith(content)
    assert message.content.endswith(content)


async def test_too_large_message_is_refused_at_mail_and_after_the_dot() -> None:
    async with InMemoryMailServer({"ingress": {"max_message_size": "100KiB"}}) as mail_server:
        replies = await mail_server.smtp_session("MAIL FROM:<bob@example.test> SIZE=200000")
        assert replies[-1].startswith("552 5.3.4 ")
        with pytest.raises(AssertionError, match=r"5\.3\.4"):
            await mail_server.send(large_content(200_000), to=["alice@example.test"])
        assert await mail_server.mailbox("alice") == []
