"""Benchmark of the embedded log alone: append -> take -> commit -> take -> finish -> take -> commit, messages a
second.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvloop

from mail.address import Address
from mail.envelope import Envelope, Recipient
from mail.log import DeliveryShard, RouterShard, ShardLost
from mail.log.embedded import EmbeddedLog
from mail.message import Client, Inline, Message, delivery_id
from mail.outcome import Delivered
from mail.queue_id import new_queue_id
from mail.record import (
    Accepted,
    Active,
    Attempted,
    Closed,
    Delivery,
    DeliveryAttempted,
    Dispatched,
    Event,
    MessageAccepted,
    QueueEntry,
    QueueTombstone,
    Record,
    Routed,
)
from mail.reply import Reply
from mail.route import ToRelay
from mail.settings import LogSettings

ALICE = Address("alice", "example.test")
ROUTE = ToRelay("127.0.0.1", 2626)
TAKEN = Reply(250, "2.0.0", "Ok: queued as 4F1C")


def message(size: int) -> Message:
    client = Client("192.0.2.1", 40000, "client.example.org", "ESMTP")
    envelope = Envelope(Address("bob", "example.org"), (Recipient(ALICE),))
    return Message(new_queue_id(), "default", datetime.now(UTC), envelope, size, client)


async def route(shard: RouterShard, closed: asyncio.Semaphore) -> None:
    try:
        while True:
            inputs = await shard.read(200, timedelta(seconds=1))
            outputs: list[Record] = []
            now = datetime.now(UTC)
            settled = 0
            for entry in inputs:
                record = entry.record
                if isinstance(record, Accepted):
                    queue_id = record.message.queue_id
                    delivery = Delivery(delivery_id(queue_id, 1), record.message, ROUTE)
                    outputs += (
                        QueueEntry(delivery, Active(now), None),
                        Dispatched(delivery, 1, record.content),
                        Event(queue_id, now, MessageAccepted(record.message)),
                        Event(queue_id, now, Routed(delivery.id, ROUTE, (ALICE,), None)),
                    )
                else:
                    queue_id = record.delivery_id[:26]
                    attempt = DeliveryAttempted(
                        record.delivery_id, 1, record.outcomes, record.started, record.duration, None
                    )
                    outputs += (
                        QueueTombstone(record.delivery_id),
                        Event(queue_id, now, attempt),
                        Event(queue_id, now, Closed()),
                    )
                    settled += 1
            if inputs:
                await shard.commit(outputs, inputs)
            for _ in range(settled):
                closed.release()
    except ShardLost:
        return


async def deliver(shard: DeliveryShard) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            while True:
                for entry in await shard.read(100):
                    outcome = Delivered(ALICE, TAKEN, "mx.example.test[192.0.2.1]:25")
                    attempted = Attempted(
                        entry.record.delivery.id, 1, (outcome,), datetime.now(UTC), timedelta(milliseconds=3)
                    )
                    group.create_task(shard.finish(entry, attempted))
    except* ShardLost:
        pass


async def main(count: int, size: int, appenders: int) -> None:
    with tempfile.TemporaryDirectory(dir=".") as directory:
        path = Path(directory) / "log.db"
        log = EmbeddedLog(path, LogSettings())
        await log.start()
        stop, closed = asyncio.Event(), asyncio.Semaphore(0)
        roles = [
            asyncio.create_task(log.own_router_shards(lambda shard: route(shard, closed), stop)),
            asyncio.create_task(log.own_delivery_shards(deliver, stop)),
        ]
        content = b"x" * size
        left = iter(range(count))
        delays: list[float] = []

        async def append() -> None:
            for _ in left:
                began = time.perf_counter()
                await log.append(Accepted(message(size), Inline(content)))
                delays.append(time.perf_counter() - began)

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(append() for _ in range(appenders)))
        accepted = time.perf_counter() - began
        for _ in range(count):
            await closed.acquire()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        delays.sort()
        sizes = {name: os.stat(path.with_name(name)).st_size >> 20 for name in ("log.db", "log.db-wal")}
        print(
            f"{count} x {size} B, {appenders} appenders: {count / seconds:.0f}/s whole life,"
            f" {count / accepted:.0f}/s accepted,"
            f" append p50 {delays[count // 2] * 1e3:.1f} ms p99 {delays[count * 99 // 100] * 1e3:.1f} ms,"
            f" CPU {cpu / count * 1e6:.0f} us a message, files MiB {sizes}"
        )
        stop.set()
        await asyncio.gather(*roles)
        await log.close()


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    uvloop.run(main(*(arguments + [20_000, 10_000, 20][len(arguments) :])))
