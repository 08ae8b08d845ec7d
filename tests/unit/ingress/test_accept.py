"""Acceptance: no 250 before the record is durable, and the spool is written before the log."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from structlog.testing import capture_logs

from ingress import replies
from ingress.accept import Acceptance
from mail.envelope import Envelope
from mail.log import LogUnavailable
from mail.message import Inline, Message, QueueId, Spooled
from mail.spool import SpoolUnavailable
from tests.support.servers.ingress import StubLog, StubSpool

MESSAGE = Message(
    queue_id=QueueId("01M85DXKVK0FGNCFAQP8N9B05F"),
    tenant="default",
    received=datetime(2026, 3, 1, tzinfo=UTC),
    envelope=Envelope(None, ()),
    size_bytes=10,
)


def acceptance(log: StubLog, spool: StubSpool, timeout: float = 10.0) -> Acceptance:
    return Acceptance(appender=log, spool=spool, inline_max=10, timeout_seconds=timeout)  # type: ignore[arg-type]


async def test_no_250_before_the_append_returns() -> None:
    log, spool = StubLog(), StubSpool()
    log.gate.clear()
    pending = asyncio.ensure_future(acceptance(log, spool).accept(MESSAGE, b"0123456789"))
    await log.waiting.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not pending.done()
    log.gate.set()
    assert str(await pending) == f"250 2.0.0 Ok: queued as {MESSAGE.queue_id}"
    assert [record.content for record in log.accepted] == [Inline(b"0123456789")]
    assert spool.contents == {}


async def test_large_content_is_spooled_before_the_append() -> None:
    log, spool = StubLog(), StubSpool()
    assert (await acceptance(log, spool).accept(MESSAGE, b"0123456789+")).code == 250
    (content,) = (record.content for record in log.accepted)
    assert isinstance(content, Spooled)
    assert spool.contents == {content.name: b"0123456789+"}


async def test_nothing_is_appended_when_the_spool_fails() -> None:
    log, spool = StubLog(), StubSpool()
    spool.error = SpoolUnavailable("full")
    assert await acceptance(log, spool).accept(MESSAGE, b"0123456789+") == replies.LOCAL_ERROR
    assert log.accepted == []


async def test_unconfirmed_append_gets_451() -> None:
    log, spool = StubLog(), StubSpool()
    log.error = LogUnavailable("no quorum")
    assert await acceptance(log, spool).accept(MESSAGE, b"x") == replies.NOT_CONFIRMED


async def test_append_time_out_gets_451() -> None:
    log, spool = StubLog(), StubSpool()
    log.gate.clear()
    assert await acceptance(log, spool, timeout=0.05).accept(MESSAGE, b"x") == replies.NOT_CONFIRMED


async def test_reply_and_log_line_of_a_time_out_name_what_did_not_answer() -> None:
    class HangingSpool(StubSpool):
        async def put(self, content: bytes) -> Spooled:
            await asyncio.Event().wait()
            raise AssertionError

    log = StubLog()
    log.gate.clear()
    results = []
    for spool, content in ((HangingSpool(), b"0123456789+"), (StubSpool(), b"0123456789+"), (StubSpool(), b"x")):
        with capture_logs() as lines:
            reply = await acceptance(log, spool, timeout=0.05).accept(MESSAGE, content)
        results += [(reply, line["event"], line["error"]) for line in lines]
    log_failed = (replies.NOT_CONFIRMED, "message not accepted, log failed", "timed out")
    assert results == [
        (replies.LOCAL_ERROR, "message not accepted, spool failed", "timed out"),
        log_failed,
        log_failed,
    ]
