"""Reading the log on Kafka for people: a message's history, the open lines, what just came in, the backlog.

In charge of answers that need records and marks together. A history is read from the time of its queue id on, one
shard only; open lines are what the compacted `queue` says now. Never part of the flow, never writes. Numbers of
records are as Kafka counts: a transaction's own marker, which nobody takes, is in a backlog until it is passed.
Next: `mail/log/kafka/__init__.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import cast

from aiokafka import ConsumerRecord, TopicPartition

from mail.log import Backlog, LogUnavailable, LogUnusable
from mail.log.kafka.access import Access, make_access
from mail.log.kafka.lookout import Lookout
from mail.log.kafka.marks import Mark, MarkError, Marks
from mail.log.kafka.reaching import explain, reach_any
from mail.log.kafka.reading import Reader
from mail.log.kafka.records import last_of_each_key, read, read_line
from mail.log.kafka.topics import counts_of
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, EVENTS, QUEUE, ShardCounts, Topic, shard_of_message
from mail.message import QueueId, queue_id_time
from mail.record import Accepted, Event, Pending, received_time
from mail.settings import LogSettings

ROUTER, DELIVERY = "router", "delivery"  # the roles whose groups have marks

CLOCKS_APART = timedelta(minutes=5)  # of the ingress that made a queue id and the brokers
_SILENCE_SECONDS = 15.0
_TAKE = 1000


class KafkaHistorian:
    """HistoryLog by way of a lookout. Raises LogUnavailable when the brokers do not answer."""

    def __init__(self, access: Access, lookout: Lookout, counts: ShardCounts, oldest: datetime | None = None) -> None:
        """`oldest`: events before it are past their age; the brokers remove them in time."""
        self._access = access
        self._lookout = lookout
        self._counts = counts
        self._oldest = oldest

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        at = self._access.partition(EVENTS, shard_of_message(queue_id, self._counts))
        since = queue_id_time(queue_id) - CLOCKS_APART
        begin = await self._lookout.offset_at(at, max(0, int(since.timestamp() * 1000)))
        if begin is None:
            return
        async for record in self._records(at, begin, queue_id):
            event = cast("Event", read(self._access, record))
            if self._oldest is None or event.time >= self._oldest:
                yield event

    async def open_lines(self, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        """Of one message: only its shard is read, and only its lines are looked at."""
        every = range(self._counts.by_queue_id)
        for shard in every if queue_id is None else [shard_of_message(queue_id, self._counts)]:
            async for line in self.lines_of(shard, queue_id):
                yield line

    async def lines_of(self, shard: int, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        at = self._access.partition(QUEUE, shard)
        start = b"" if queue_id is None else queue_id.encode()
        for key, frame in (await last_of_each_key(self._access, at, start)).items():
            yield read_line(self._access, at, key, frame)

    async def oldest_unconsumed(self) -> datetime | None:
        first = await self.first_unconsumed()
        return min((received_time(cast("Accepted", read(self._access, each))) for each in first), default=None)

    async def first_unconsumed(self) -> Sequence[ConsumerRecord[bytes, bytes]]:
        """The first record that is not consumed of each partition where there is one."""
        first = {
            at: marks[at].low if at in marks else begin
            for role, topics in ((ROUTER, (ACCEPTED, ATTEMPTED)), (DELIVERY, (DISPATCHED,)))
            for marks in [await self._lookout.marks(self._access.group(role), self._partitions(topics))]
            for at, begin in (await self._lookout.begins(self._partitions(topics))).items()
        }
        ends = await self._lookout.ends(first)
        waiting = {at: offset for at, offset in first.items() if offset < ends[at]}
        found: list[ConsumerRecord[bytes, bytes]] = []
        reader = Reader(self._access, list(waiting))
        try:
            if waiting:
                await reader.open(waiting)
            until = asyncio.get_running_loop().time() + _SILENCE_SECONDS
            while any(reader.position(at) < ends[at] for at in waiting):
                for at in list(waiting):
                    taken = [record for record in await reader.take(_TAKE, 0.1, [at]) if record.value is not None]
                    if taken and waiting.pop(at, None) is not None:
                        found.append(taken[0])
                if asyncio.get_running_loop().time() > until:
                    raise LogUnavailable(f"{self._access.where}: what waits cannot be read")
        finally:
            await reader.close()
        return found

    async def waiting_inputs(self, queue_id: QueueId) -> Sequence[Accepted]:
        at = self._access.partition(ACCEPTED, shard_of_message(queue_id, self._counts))
        marks = await self._lookout.marks(self._access.group(ROUTER), [at])
        begin = marks[at].low if at in marks else (await self._lookout.begins([at]))[at]
        return [cast("Accepted", read(self._access, record)) async for record in self._records(at, begin, queue_id)]

    async def backlog(self) -> Backlog:
        router = await self._lookout.marks(self._access.group(ROUTER), self._partitions((ACCEPTED, ATTEMPTED)))
        delivery = await self._lookout.marks(self._access.group(DELIVERY), self._partitions((DISPATCHED,)))
        sums = []
        for topic, marks in ((ACCEPTED, router), (DISPATCHED, delivery), (ATTEMPTED, router)):
            partitions = self._partitions((topic,))
            ends = await self._lookout.ends(partitions)
            unmarked = [at for at in partitions if at not in marks]
            begins = await self._lookout.begins(unmarked) if unmarked else {}
            sums.append(sum(_waiting(end, marks.get(at), begins.get(at, 0)) for at, end in ends.items()))
        return Backlog(*sums)

    async def _records(
        self, at: TopicPartition, begin: int, queue_id: QueueId
    ) -> AsyncIterator[ConsumerRecord[bytes, bytes]]:
        """The records of one key from `begin` to the end as it is now."""
        key = queue_id.encode()
        reader = Reader(self._access, [at])
        try:
            await reader.open({at: begin})
            async for record in reader.to_end(_SILENCE_SECONDS):
                if record.key == key and record.value is not None:
                    yield record
        finally:
            await reader.close()

    def _partitions(self, topics: Sequence[Topic]) -> list[TopicPartition]:
        return [self._access.partition(topic, shard) for topic in topics for shard in range(self._counts.of(topic))]


def _waiting(end: int, mark: Mark | None, begin: int) -> int:
    if mark is None:
        return max(0, end - begin)
    try:
        marks = Marks.of(mark)
    except MarkError as reason:
        raise LogUnusable(f"a committed mark cannot be read: {reason}; use the newer eilpost") from None
    return marks.unfinished + max(0, end - marks.position)


class KafkaHistory:
    """HistoryLog for a command: connects for one question, and lets go. Raises LogUnusable when it cannot."""

    def __init__(self, settings: LogSettings, tenant: str = "") -> None:
        """Raises LogUnusable, ValueError as KafkaLog does."""
        self._access = make_access(settings, tenant)
        self._settings = settings

    async def _historian(self, lookout: Lookout) -> KafkaHistorian:
        await reach_any(self._access)
        try:
            found = await lookout.topics(with_config=False)
        except LogUnavailable as error:
            raise LogUnusable(await explain(self._access, error)) from None
        return KafkaHistorian(self._access, lookout, counts_of(found, self._access, self._settings))

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        async with Lookout(self._access) as lookout:
            async for event in (await self._historian(lookout)).history(queue_id):
                yield event

    async def open_lines(self, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        async with Lookout(self._access) as lookout:
            async for line in (await self._historian(lookout)).open_lines(queue_id):
                yield line

    async def oldest_unconsumed(self) -> datetime | None:
        async with Lookout(self._access) as lookout:
            return await (await self._historian(lookout)).oldest_unconsumed()

    async def waiting_inputs(self, queue_id: QueueId) -> Sequence[Accepted]:
        async with Lookout(self._access) as lookout:
            return await (await self._historian(lookout)).waiting_inputs(queue_id)

    async def backlog(self) -> Backlog:
        async with Lookout(self._access) as lookout:
            return await (await self._historian(lookout)).backlog()
