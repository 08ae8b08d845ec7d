"""Builders for delivery tests: envelopes, deliveries, an in-memory shard and an in-memory spool."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b

from mail.address import Address
from mail.envelope import Body, Envelope, Recipient
from mail.log import Entry, LogUnavailable, ShardLost
from mail.message import Content, DeliveryId, Inline, Message, Spooled, delivery_id
from mail.queue_id import new_queue_id
from mail.record import Attempted, Delivery, Dispatched
from mail.route import RelayProtocol, Route, ToMailbox, ToRelay
from mail.spool import SpoolDamaged, SpoolUnavailable

CONTENT = b"Subject: hello\r\nFrom: a@example.test\r\n\r\n.a line\r\nanother\r\n"


def address(text: str) -> Address:
    return Address.parse(text, utf8=True)


def envelope(
    *recipients: str, sender: str | None = "sender@example.test", body: Body = Body.SEVEN_BIT, utf8: bool = False
) -> Envelope:
    """An envelope, by default to user@remote.test."""
    addresses = [address(text) for text in recipients or ("user@remote.test",)]
    return Envelope(
        None if sender is None else address(sender),
        tuple(Recipient(path) for path in addresses),
        body=body,
        smtputf8=utf8,
    )


def delivery(
    route: Route, *recipients: str, content: bytes = CONTENT, own_envelope: Envelope | None = None
) -> Delivery:
    queue_id = new_queue_id()
    message = Message(queue_id, "default", datetime.now(UTC), own_envelope or envelope(*recipients), len(content))
    return Delivery(delivery_id(queue_id, 0), message, route)


def relay(port: int, *, lmtp: bool = False) -> ToRelay:
    return ToRelay("127.0.0.1", port, RelayProtocol.LMTP if lmtp else RelayProtocol.SMTP)


def mailbox(owner: str = "alice@example.test") -> ToMailbox:
    return ToMailbox(owner)


def dispatched(route: Route, *recipients: str, content: bytes | Content = CONTENT, number: int = 1) -> Dispatched:
    as_content: Content = Inline(content) if isinstance(content, bytes) else content
    size = len(as_content.data) if isinstance(as_content, Inline) else as_content.size_bytes
    own_delivery = delivery(route, *recipients, content=b"x" * size)
    return Dispatched(own_delivery, number, as_content)


class FakeShard:
    """A `DeliveryShard` with the records given to `put`. `finished`: the reports in order. The next `unavailable` calls
    of `finish` raise LogUnavailable, the next `broken` ones another exception.
    """

    number = 0

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Entry[Dispatched] | None] = asyncio.Queue()
        self._offset = 0
        self._changed = asyncio.Condition()
        self.read_count = 0
        self.lost = asyncio.Event()
        self.unavailable = 0
        self.broken = 0
        self.finished: list[Attempted] = []
        self.committed: list[int] = []

    def put(self, *records: Dispatched) -> None:
        for record in records:
            self._waiting.put_nowait(Entry("dispatched", 0, self._offset, record))
            self._offset += 1

    def revoke(self) -> None:
        self.lost.set()
        self._waiting.put_nowait(None)

    async def read(self, limit: int) -> Sequence[Entry[Dispatched]]:
        assert limit >= 1
        if self.lost.is_set():
            raise ShardLost
        entries = []
        first = await self._waiting.get()
        while first is not None:
            entries.append(first)
            if len(entries) >= limit or self._waiting.empty():
                break
            first = self._waiting.get_nowait()
        if self.lost.is_set():
            raise ShardLost
        self.read_count += len(entries)
        return entries

    async def finish(self, entry: Entry[Dispatched], attempted: Attempted) -> None:
        await asyncio.sleep(0)
        if self.unavailable:
            self.unavailable -= 1
            raise LogUnavailable("the log does not answer")
        if self.broken:
            self.broken -= 1
            raise ZeroDivisionError("a bug in the log")
        self.finished.append(attempted)
        self.committed.append(entry.offset)
        async with self._changed:
            self._changed.notify_all()

    async def wait_finished(self, count: int) -> list[Attempted]:
        """Wait for that many reports."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: len(self.finished) >= count)
        return self.finished


class FakeSpool:
    """A `Spool` in memory; `damaged` makes reads fail, `unavailable` the next calls."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.damaged = False
        self.unavailable = 0

    async def put(self, content: bytes) -> Spooled:
        await asyncio.sleep(0)
        if self.unavailable:
            self.unavailable -= 1
            raise SpoolUnavailable("the spool is full")
        spooled = Spooled(f"kept-{len(self.contents)}", len(content), blake2b(content, digest_size=16).hexdigest())
        self.contents[spooled.name] = content
        return spooled

    async def read(self, spooled: Spooled, limit_bytes: int | None = None) -> bytes:
        await asyncio.sleep(0)
        if self.unavailable:
            self.unavailable -= 1
            raise SpoolUnavailable("the spool does not answer")
        if self.damaged or spooled.name not in self.contents:
            raise SpoolDamaged(f"{spooled.name} is missing; restore it from a backup")
        return self.contents[spooled.name][:limit_bytes]

    async def sweep(self, older_than: datetime) -> int:
        return 0

    async def free_bytes(self) -> int | None:
        return None


def by_id(reports: Sequence[Attempted]) -> dict[DeliveryId, Attempted]:
    return {report.delivery_id: report for report in reports}
