"""Tests of the worker on an in-memory shard: reports, lost shards, and drain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from structlog.testing import capture_logs

from delivery.attempt import SPOOL_DAMAGED, SPOOL_UNAVAILABLE
from delivery.transaction import HEADER_BYTES_MAX
from mail.log import Entry, ShardLost
from mail.message import Spooled
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import Delivery, Dispatched
from mail.reply import Reply
from mail.route import ToMx
from tests.support.builders.delivery import CONTENT, FakeShard, FakeSpool, by_id, dispatched, relay
from tests.support.docs.metrics import value
from tests.support.servers.delivery_worker import OK, FakeCourier, outcomes_for_all, running_worker
from tests.support.servers.ports import wait_until

DEFERRED_REPLY = Reply(450, "4.2.0", "later")
FAILED_REPLY = Reply(550, "5.1.1", "never")


async def test_each_attempt_is_reported_once_in_any_order() -> None:
    others_finished = asyncio.Event()

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        if delivery.id == records[0].delivery.id:
            await others_finished.wait()
        return outcomes_for_all(delivery, Delivered, OK)

    shard = FakeShard()
    records = [dispatched(relay(1)) for _ in range(20)]
    async with running_worker(FakeCourier(do), shard):
        shard.put(*records)
        await shard.wait_finished(19)
        others_finished.set()
        reports = by_id(await shard.wait_finished(20))
        assert set(reports) == {record.delivery.id for record in records}
        assert shard.committed[-1] == 0  # the slow first one did not delay the others
        report = reports[records[0].delivery.id]
        assert (report.number, report.content, report.headers) == (1, None, b"")


async def test_courier_gets_the_number_of_the_attempt() -> None:
    shard, courier = FakeShard(), FakeCourier()
    async with running_worker(courier, shard):
        shard.put(dispatched(relay(1), number=3))
        await shard.wait_finished(1)
    assert courier.attempts == [3]


async def test_deferred_content_is_spooled_before_the_report() -> None:
    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        first, second, third = (recipient.address for recipient in delivery.message.envelope.recipients)
        return Delivered(first, OK), Deferred(second, DEFERRED_REPLY), Failed(third, FAILED_REPLY)

    shard, spool = FakeShard(), FakeSpool()
    spool.unavailable = 1
    async with running_worker(FakeCourier(do), shard, spool):
        shard.put(dispatched(relay(1), "a@r.test", "b@r.test", "c@r.test"))
        (report,) = await shard.wait_finished(1)
    assert report.content is not None
    assert spool.contents[report.content.name] == CONTENT
    assert report.headers == b"Subject: hello\r\nFrom: a@example.test\r\n"


async def test_attempts_count_by_provider_and_status() -> None:
    odd = Reply(550, "5.99.1", "an enhanced code whose subject RFC 3463 does not know")
    results = [(Delivered, OK), (Deferred, DEFERRED_REPLY), (Failed, FAILED_REPLY), (Failed, odd)]

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        recipients = delivery.message.envelope.recipients
        return tuple(kind(each.address, reply) for each, (kind, reply) in zip(recipients, results, strict=True))

    names = {"transport": "smtp", "provider": "google"}

    def counts() -> list[float]:
        return [
            *(value("delivery_attempts_total", **names, result=each) for each in ("delivered", "deferred", "failed")),
            *(value("delivery_failures_total", **names, status=each) for each in ("4.2", "5.1", "5.0")),
            value("delivered_messages_total", transport="smtp"),
            value("consumed_records_total", topic="dispatched"),
        ]

    before, shard = counts(), FakeShard()
    record = dispatched(ToMx("r.test", ((10, "aspmx.l.google.com"),)), *(f"{each}@r.test" for each in "abcd"))
    size = value("delivered_bytes_total", transport="smtp")
    async with running_worker(FakeCourier(do), shard):
        shard.put(record)
        await shard.wait_finished(1)
    assert [after - first for after, first in zip(counts(), before, strict=True)] == [1, 1, 2, 1, 1, 1, 1, 1]
    assert value("delivered_bytes_total", transport="smtp") - size == record.delivery.message.size_bytes


async def test_failed_delivery_reports_headers_without_content() -> None:
    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        return outcomes_for_all(delivery, Failed, FAILED_REPLY)

    shard, spool = FakeShard(), FakeSpool()
    async with running_worker(FakeCourier(do), shard, spool):
        shard.put(dispatched(relay(1), content=b"X: " + b"x" * 100_000 + b"\r\n\r\nbody"))
        (report,) = await shard.wait_finished(1)
    assert report.content is None
    assert spool.contents == {}
    assert len(report.headers) == HEADER_BYTES_MAX


async def test_spooled_content_is_read_and_not_removed() -> None:
    shard, spool = FakeShard(), FakeSpool()
    spooled = await spool.put(CONTENT)

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        return outcomes_for_all(delivery, Deferred, DEFERRED_REPLY)

    courier = FakeCourier(do)
    async with running_worker(courier, shard, spool):
        shard.put(dispatched(relay(1), content=spooled))
        (report,) = await shard.wait_finished(1)
    assert courier.delivered[0][1] == CONTENT
    assert report.content == spooled
    assert len(spool.contents) == 1


async def test_damaged_or_unavailable_spool_defers() -> None:
    shard, spool = FakeShard(), FakeSpool()
    courier = FakeCourier()
    missing = Spooled("2026/gone", 10, "00")
    with capture_logs() as lines:
        async with running_worker(courier, shard, spool):
            shard.put(dispatched(relay(1), content=missing))
            await shard.wait_finished(1)
            spool.unavailable = 1
            shard.put(dispatched(relay(1), content=missing))
            reports = await shard.wait_finished(2)
    assert courier.delivered == []
    for report, reply in zip(reports, (SPOOL_DAMAGED, SPOOL_UNAVAILABLE), strict=True):
        assert (type(report.outcomes[0]), report.outcomes[0].reply, report.content) == (Deferred, reply, missing)
        assert "2026/gone" not in reply.text  # a DSN would quote it to the sender
    assert [line["spool"] for line in lines if "spool" in line] == ["2026/gone"] * 2


async def test_bug_in_a_courier_defers() -> None:
    async def raising(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        raise ZeroDivisionError("secret")

    async def missing_outcome(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        return ()

    for do in (raising, missing_outcome):
        shard = FakeShard()
        async with running_worker(FakeCourier(do), shard):
            shard.put(dispatched(relay(1)))
            (report,) = await shard.wait_finished(1)
        (outcome,) = report.outcomes
        assert isinstance(outcome, Deferred)
        assert outcome.reply.enhanced == "4.3.0"
        assert "secret" not in outcome.reply.text
        assert report.content is not None


async def test_report_is_repeated_until_the_log_is_available() -> None:
    shard = FakeShard()
    shard.unavailable = 3
    courier = FakeCourier()
    async with running_worker(courier, shard):
        shard.put(dispatched(relay(1)))
        await shard.wait_finished(1)
    assert len(courier.delivered) == 1  # reported again, not delivered again


async def test_lost_shard_cancels_attempts_before_the_final_dot_only() -> None:
    go = asyncio.Event()

    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        if delivery.route == relay(1):
            await asyncio.Event().wait()
        try:
            await go.wait()
        except asyncio.CancelledError:  # as the SMTP courier past the final dot
            await go.wait()
        return outcomes_for_all(delivery, Delivered, OK)

    shard, courier = FakeShard(), FakeCourier(do)
    async with running_worker(courier, shard) as task:
        shard.put(dispatched(relay(1)), dispatched(relay(2)))
        await wait_until(lambda: courier.active >= 2)
        shard.revoke()
        await wait_until(lambda: courier.active <= 1)
        assert not task.done()
        assert courier.active == 1
        go.set()
        await task
        assert shard.committed == [1]


async def test_lost_shard_starts_no_more_attempts() -> None:
    class LostAtOnce(FakeShard):
        async def read(self, limit: int) -> Sequence[Entry[Dispatched]]:
            if self.read_count:
                raise ShardLost
            return await super().read(limit)

    shard, courier = LostAtOnce(), FakeCourier()
    shard.put(dispatched(relay(1)))
    async with running_worker(courier, shard) as task:
        await task
    assert courier.delivered == []  # its next owner makes the attempt
    assert shard.finished == []


async def test_drain_times_out() -> None:
    async def do(delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()
        raise AssertionError

    shard, courier = FakeShard(), FakeCourier(do)
    with capture_logs() as lines:
        async with running_worker(courier, shard, drain_seconds=0.1):
            shard.put(dispatched(relay(1)))
            await wait_until(lambda: courier.active)
    assert shard.finished == []
    (line,) = [line for line in lines if line["event"] == "drain timed out"]
    assert (line["role"], line["shard"], line["attempts_cancelled"]) == ("delivery", 0, 1)
