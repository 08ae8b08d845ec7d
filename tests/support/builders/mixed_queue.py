"""A queue with deliveries in every state, written to any log through its port, for tests of `eilpost move`.

Every message is for alice or bob and has its number in the header `X-Id`; `expected` has the ids that must arrive.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from eilpost.move.ownership import own_all_shards
from mail.address import Address
from mail.envelope import Envelope, Recipient
from mail.log import Log
from mail.log.topics import shard_of_message
from mail.message import Client, Inline, Message, QueueId, Spooled, delivery_id
from mail.outcome import Deferred, Delivered
from mail.queue_id import new_queue_id
from mail.record import (
    Accepted,
    Active,
    Attempted,
    Delivery,
    DeliveryAttempted,
    Dispatched,
    Event,
    MessageAccepted,
    QueueEntry,
    QueueTombstone,
    Record,
    Routed,
    WaitCause,
    Waiting,
)
from mail.reply import Reply
from mail.route import ToMailbox
from mail.spool import Spool

X_ID = re.compile(rb"^X-Id: (\S+)\r?$", re.MULTILINE)
LATER = Reply(451, "4.3.0", "Try again later")
OK = Reply(250, "2.0.0", "Ok")
LOOK_AGAIN = timedelta(milliseconds=200)
FOREVER = datetime.max.replace(tzinfo=UTC)
KINDS = (
    "unread", "unread-spooled", "active", "active-spooled", "retry", "waits", "hold", "reported-done",
    "reported-later", "reported-twice", "settled", "two",
)  # fmt: skip


@dataclass(slots=True)
class Planted:
    """`expected`: ids that must arrive once each; `held`: ids that stay in the queue; `entries`: attempts, due time and
    last reply of every open delivery.
    """

    expected: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    entries: dict[str, QueueEntry] = field(default_factory=dict)
    messages: dict[str, QueueId] = field(default_factory=dict)


def content_of(name: str, size: int) -> bytes:
    head = f"From: <bob@example.test>\r\nSubject: {name}\r\nX-Id: {name}\r\n\r\n".encode()
    return head + b"0123456789 and so on, to the end of the line\r\n" * (size // 46 + 1)


def message_of(size: int) -> Message:
    alice = Address.parse("alice@example.test")
    client = Client("192.0.2.7", 40001, "client.example.org", "ESMTP")
    envelope = Envelope(Address.parse("bob@example.test"), (Recipient(alice),))
    return Message(new_queue_id(), "default", datetime.now(UTC), envelope, size, client)


async def plant(log: Log, spool: Spool, each: int, size: int = 300, kinds: Iterable[str] = KINDS) -> Planted:
    """Write `each` messages of every kind."""
    planted = Planted()
    names = [f"{kind}-{number}" for kind in kinds for number in range(each)]
    contents = [content_of(name, size) for name in names]
    spooled = [
        stored
        for at in range(0, len(names), 500)
        for stored in await asyncio.gather(*map(spool.put, contents[at : at + 500]))
    ]
    by_shard: dict[int, list[Record]] = {}
    reports: list[Record] = []
    for name, data, stored in zip(names, contents, spooled, strict=True):
        kind = name.rpartition("-")[0]
        message = message_of(len(data))
        planted.messages[name] = message.queue_id
        records, later = _records(kind, message, data, stored)
        by_shard.setdefault(shard_of_message(message.queue_id, log.counts), []).extend(records)
        reports += later
        for record in records:
            if isinstance(record, QueueEntry):
                planted.entries[record.delivery.id] = record
        if kind == "hold":
            planted.held.add(name)
        elif kind not in ("reported-done", "settled"):
            planted.expected.add(name)
    async with own_all_shards(log.own_router_shards, log.counts.by_queue_id, "the log") as shards:
        for number, records in by_shard.items():
            await shards[number].commit(records, ())
    for at in range(0, len(reports), 500):
        await asyncio.gather(*map(log.append, reports[at : at + 500]))
    return planted


def _records(kind: str, message: Message, data: bytes, stored: Spooled) -> tuple[list[Record], list[Record]]:
    """Records as written by the router and by the appends."""
    now = datetime.now(UTC)
    delivery = Delivery(delivery_id(message.queue_id, 1), message, ToMailbox("alice@example.test"))
    alice = message.envelope.recipients[0].address
    history = [
        Event(message.queue_id, now, MessageAccepted(message)),
        Event(message.queue_id, now, Routed(delivery.id, delivery.route, (alice,), None)),
    ]
    attempt = Event(
        message.queue_id,
        now,
        DeliveryAttempted(delivery.id, 1, (Deferred(alice, LATER),), now, timedelta(seconds=1), now),
    )
    soon = now + timedelta(seconds=1)
    done = Attempted(delivery.id, 1, (Delivered(alice, OK, "h"),), now, timedelta(0))
    later = Attempted(delivery.id, 1, (Deferred(alice, LATER),), now, timedelta(0), stored, b"Subject: x\r\n\r\n")
    match kind:
        case "unread":
            return [], [Accepted(message, Inline(data))]
        case "unread-spooled":
            return [], [Accepted(message, stored)]
        case "active":
            return [*history, QueueEntry(delivery, Active(now), None), Dispatched(delivery, 1, Inline(data))], []
        case "active-spooled":
            entry = QueueEntry(delivery, Active(now), stored, 2, LATER, "h")
            return [*history, attempt, entry, Dispatched(delivery, 3, stored)], []
        case "retry":
            return [
                *history,
                attempt,
                QueueEntry(delivery, Waiting(soon, WaitCause.DEFERRED, "later"), stored, 4, LATER, "h"),
            ], []
        case "waits":
            return [*history, QueueEntry(delivery, Waiting(now, WaitCause.THROTTLED, "full"), stored)], []
        case "hold":
            return [*history, QueueEntry(delivery, Waiting(FOREVER, WaitCause.HELD, "held"), stored, 1)], []
        case "reported-done":
            return [*history, QueueEntry(delivery, Active(now), None)], [done]
        case "reported-later":
            return [*history, QueueEntry(delivery, Active(now), None)], [later]
        case "reported-twice":  # the commit of its dispatch was lost: report and dispatch are both present
            entry = QueueEntry(delivery, Active(now), None)
            return [*history, entry, Dispatched(delivery, 1, Inline(data))], [later, later]
        case "settled":  # the same, after the router read the report
            return [*history, Dispatched(delivery, 1, Inline(data)), QueueTombstone(delivery.id)], [done]
        case "two":  # one message, two deliveries in two states
            bob = Address.parse("bob@example.test")
            envelope = replace(message.envelope, recipients=(Recipient(bob),))
            other = Delivery(
                delivery_id(message.queue_id, 2), replace(message, envelope=envelope), ToMailbox("bob@example.test")
            )
            return [
                *history,
                QueueEntry(delivery, Waiting(soon, WaitCause.DEFERRED, "later"), stored, 1, LATER, "h"),
                QueueEntry(other, Active(now), None),
                Dispatched(other, 1, Inline(data)),
            ], []
    raise ValueError(kind)


def arrived(contents: Iterable[bytes]) -> Counter[str]:
    """Number of arrivals by id."""
    found: Counter[str] = Counter()
    for content in contents:
        match = X_ID.search(content)
        assert match is not None
        found[match[1].decode()] += 1
    return found


async def is_empty(log: Log) -> bool:
    """Whether a log has no open delivery and no input left; reads it as an owner does."""
    async with own_all_shards(log.own_router_shards, log.counts.by_queue_id, "the log") as shards:
        for shard in shards.all():
            async for batch in shard.replay():
                if batch:
                    return False
            if await shard.read(10, LOOK_AGAIN):
                await shard.rewind()
                return False
    await asyncio.sleep(0)
    return True
