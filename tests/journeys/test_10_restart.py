"""Journey 10: a restart while mail is queued: the next start delivers it."""

from __future__ import annotations

from pathlib import Path

from mail.log.embedded import EmbeddedLog
from mail.record import DeliveryAttempted, Waiting
from mail.settings import LogSettings
from mailstore.memory import MemoryMailboxes
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.ports import wait_until
from tests.support.servers.scripted_remote import ScriptedRemote

CONTENT = b"Subject: see you in the next life\r\n\r\nhello\r\n"


async def test_queued_mail_survives_a_restart(tmp_path: Path) -> None:
    boxes = MemoryMailboxes()

    def life(relay_port: int) -> InMemoryMailServer:
        return InMemoryMailServer(
            {
                "delivery": {"relay": f"smtp://127.0.0.1:{relay_port}", "reconnect_backoff": "200ms"},
                "router": {"retry_delays": ["2s"]},
            },
            log=EmbeddedLog(tmp_path / "log.db", LogSettings()),
            spool=tmp_path / "spool",
            mailboxes=boxes,
        )

    async with ScriptedRemote({"RCPT": ["451 4.3.0 not now"]}) as remote:
        port = remote.port
        async with life(port) as first:
            queue_ids = [await first.send(CONTENT, to=[f"friend{number}@elsewhere.test"]) for number in range(5)]
            local = await first.send(CONTENT, to=["alice@example.test"])
            await first.wait_closed(local)

            async def all_wait() -> bool:
                lines = await first.queue()
                return len(lines) == 5 and all(isinstance(line.state, Waiting) for line in lines)

            await wait_until(all_wait, what="five deferrals")
            before = {line.delivery.id: line for line in await first.queue()}

    async with ScriptedRemote(port=port) as remote, life(port) as second:
        assert {line.delivery.id for line in await second.queue()} <= set(before)
        for queue_id in queue_ids:
            await second.wait_closed(queue_id)
            attempts = [attempt.number for attempt in await second.details(queue_id, DeliveryAttempted)]
            assert attempts == list(range(1, len(attempts) + 1))  # the attempt count continues after the restart
            assert len(attempts) >= 2
        assert sorted(message.rcpts[0] for message in remote.messages) == [
            f"TO:<friend{number}@elsewhere.test>" for number in range(5)
        ]
        assert all(message.content.endswith(CONTENT) for message in remote.messages)
        assert len(await second.mailbox("alice")) == 1
