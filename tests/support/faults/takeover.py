"""Takeover time of a shard with many deferred deliveries.

The queue records are written as a router with `SETTINGS` writes them: deferred, due in a day.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from aiokafka import AIOKafkaProducer
from msgspec.structs import replace

from mail.log.codec import encode
from mail.log.kafka.access import BATCH_BYTES, make_access
from mail.log.topics import QUEUE, ShardCounts, place
from mail.message import Spooled, delivery_id
from mail.queue_id import new_queue_id
from mail.record import Delivery, QueueEntry, WaitCause, Waiting
from mail.reply import Reply
from mail.route import ToMx
from tests.support.builders.records import message
from tests.support.servers.mail_cluster import MailCluster, Member
from tests.support.servers.ports import wait_until

SETTINGS = {"router": {"retry_delays": ["2d"]}}  # a router corrects retry times beyond its schedule

_ROUTE = ToMx("example.org", ((10, "mx.example.org"),))
_LAST = Reply(451, "4.3.0", "Try again later")


async def write_queue_entries(cluster: MailCluster, count: int, shard: int) -> None:
    """Write `count` deferred deliveries of one shard."""
    counts = ShardCounts(cluster.log.shards, cluster.log.delivery_shards)
    now = datetime.now(UTC)
    state = Waiting(now + timedelta(days=1), WaitCause.DEFERRED, str(_LAST))
    topic = cluster.log.prefix + QUEUE.name
    producer = AIOKafkaProducer(
        acks="all", linger_ms=20, max_batch_size=BATCH_BYTES, **make_access(cluster.log).client_options(60.0)
    )
    await producer.start()
    try:
        planted, sent = 0, []
        while planted < count:
            queue_id = new_queue_id()
            sample = replace(message(), queue_id=queue_id, received=now)
            delivery = Delivery(delivery_id(queue_id, 1), sample, _ROUTE)
            line = QueueEntry(
                delivery, state, Spooled("2026010100/01HSPOOLED0000000000000000@0", 2000, "0" * 32), 1, _LAST
            )
            at = place(line, counts)
            if at.shard != shard:
                continue
            sent.append(await producer.send(topic, encode(line), at.key.encode(), partition=shard))
            planted += 1
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def take_over(cluster: MailCluster, count: int, shard: int, *, kill: bool) -> float:
    """End the shard's owner by SIGTERM or SIGKILL; returns the seconds until another owner has loaded `count`
    deliveries.
    """
    await wait_until(
        lambda: cluster.has_owners("router", cluster.log.shards), deadline_seconds=60, what="an owner for each shard"
    )
    owner = next(name for name, numbers in cluster.owners("router").items() if shard in numbers)
    others = [member for member in cluster.members_of("router") if member.is_running and member.name != owner]
    gone = cluster.members[owner]
    await wait_until(lambda: queue_entry_count(gone) >= count, deadline_seconds=120, what="the owner's own reading")
    before = {member.name: queue_entry_count(member) for member in others}
    began = time.monotonic()
    if kill:
        await asyncio.to_thread(gone.kill)
    else:
        stopping = asyncio.create_task(asyncio.to_thread(gone.stop))
    await wait_until(
        lambda: any(queue_entry_count(member) - before[member.name] >= count for member in others),
        deadline_seconds=120,
        poll_seconds=0.02,
        what="the takeover of the shard",
    )
    seconds = time.monotonic() - began
    if not kill:
        assert await stopping == 0
    return seconds


def queue_entry_count(member: Member) -> int:
    """Deferred deliveries in a router's memory."""
    return int(member.metric("eilpost_queue_recipients", state="deferred"))
