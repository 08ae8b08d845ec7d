"""Journey 5: a 4xx from the next hop: a retry delivers the queued message, whose content is not in memory."""

from __future__ import annotations

from mail.message import Spooled
from mail.outcome import Deferred, Delivered
from mail.record import DeliveryAttempted, Resumed, WaitCause, Waiting
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.ports import wait_until
from tests.support.servers.scripted_remote import ScriptedRemote

CONTENT = b"Subject: patience\r\n\r\nhello\r\n" + b"a line that must not be in the queue twice\r\n" * 50
QUICK = {"retry_delays": ["300ms"]}


async def test_deferred_message_is_delivered_by_a_retry() -> None:
    async with (
        ScriptedRemote({"RCPT": ["451 4.7.1 greylisted", "451 4.7.1 still", "250 ok"]}) as remote,
        InMemoryMailServer({"delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"}, "router": QUICK}) as mail_server,
    ):
        queue_id = await mail_server.send(CONTENT, to=["friend@elsewhere.test"])
        details = await mail_server.wait_closed(queue_id)
        attempts = [what for what in details if isinstance(what, DeliveryAttempted)]
        assert [attempt.number for attempt in attempts] == [1, 2, 3]
        assert [type(attempt.outcomes[0]) for attempt in attempts] == [Deferred, Deferred, Delivered]
        assert attempts[0].outcomes[0].reply.text == "greylisted"
        assert attempts[0].next_due is not None
        assert attempts[2].next_due is None
        assert [what.number for what in details if isinstance(what, Resumed)] == [2, 3]
        (message,) = remote.messages
        assert message.content.endswith(CONTENT)


async def test_queue_shows_the_reason_of_a_deferral() -> None:
    async with (
        ScriptedRemote({"MAIL": ["450 4.3.2 shutting down"]}) as remote,
        InMemoryMailServer(
            {"delivery": {"relay": f"smtp://127.0.0.1:{remote.port}"}, "router": {"retry_delays": ["1h"]}}
        ) as mail_server,
    ):
        queue_id = await mail_server.send(CONTENT, to=["friend@elsewhere.test"])

        async def waits() -> bool:
            return any(isinstance(line.state, Waiting) for line in await mail_server.queue())

        await wait_until(waits, what="the deferral")
        (line,) = await mail_server.queue()
        assert line.delivery.message.queue_id == queue_id
        assert isinstance(line.state, Waiting)
        assert line.state.cause is WaitCause.DEFERRED
        assert "450 4.3.2 shutting down" in line.state.reason
        assert line.attempts == 1
        assert line.last is not None
        assert line.last.code == 450
        assert isinstance(line.content, Spooled)  # a queue record never contains the content
        assert (await mail_server.spool.read(line.content)).endswith(CONTENT)


async def test_refused_connection_defers() -> None:
    async with ScriptedRemote() as gone:
        port = gone.port
    async with InMemoryMailServer(
        {"delivery": {"relay": f"smtp://127.0.0.1:{port}", "reconnect_backoff": "200ms"}, "router": QUICK}
    ) as mail_server:
        queue_id = await mail_server.send(CONTENT, to=["friend@elsewhere.test"])

        async def has_attempt() -> bool:
            return bool(await mail_server.details(queue_id, DeliveryAttempted))

        await wait_until(has_attempt, what="an attempt")
        (outcome,) = (await mail_server.details(queue_id, DeliveryAttempted))[0].outcomes
        assert isinstance(outcome, Deferred)  # unknown means temporary
        async with ScriptedRemote(port=port) as remote:
            await mail_server.wait_closed(queue_id)
            assert len(remote.messages) == 1
