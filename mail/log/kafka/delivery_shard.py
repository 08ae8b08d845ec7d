"""One shard of delivery on Kafka: dispatches in order, finishes in any order, marks that survive a kill.

`finish` appends the report first and marks the dispatch done after it, never the other way round. The marks of all
shards of a process are committed together by `Committing`, back to back, so that a kill repeats only what was in
flight. A shard that was closed finishes nothing more: its next owner has begun. Next: `delivery/worker.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import cast

import structlog
from aiokafka import ConsumerRecord, TopicPartition

from mail.log import Entry, LogUnavailable, LogUnusable, ShardLost
from mail.log.kafka.access import Access
from mail.log.kafka.marks import Mark, MarkError, Marks
from mail.log.kafka.reading import MadeAnew, Reader
from mail.log.kafka.records import read
from mail.log.topics import DISPATCHED
from mail.record import Attempted, Dispatched

log = structlog.get_logger()

_WAIT_SECONDS = 1.0
_THERE_SECONDS = 20.0  # for what is there to come: longer than a reader that is stuck takes to be made anew
_CROWDED_SECONDS = 0.05  # before looking again whether the marks have room


class KafkaDeliveryShard:
    """`append` makes a report durable; `committed` asks for the shard's mark; `finished` says that there is news;
    `may_begin`: whether more may be given out, which is not so while nobody confirms that the shard is ours.
    """

    def __init__(
        self,
        access: Access,
        number: int,
        *,
        append: Callable[[Attempted], Awaitable[None]],
        committed: Callable[[TopicPartition], Awaitable[Mark | None]],
        finished: Callable[[], None],
        may_begin: Callable[[], bool],
    ) -> None:
        self.number = number
        self.partition = access.partition(DISPATCHED, number)
        self._access = access
        self._append = append
        self._committed = committed
        self._finished = finished
        self._may_begin = may_begin
        self._reader = Reader(access, [self.partition])
        self._marks: Marks | None = None
        self.lost = asyncio.Event()
        self._closed = False

    @property
    def refused(self) -> str | None:
        """Why the brokers' authorizer lets nothing be read."""
        return self._reader.refused

    def lose(self) -> None:
        self.lost.set()

    def forget(self) -> None:
        self.lost.set()
        self._marks = None

    async def close(self) -> None:
        self.lost.set()
        self._closed = True
        await self._reader.close()

    def mark(self) -> Mark | None:
        """What to commit; None before the shard was read."""
        return None if self._marks is None else self._marks.mark()

    async def _open(self) -> Marks:
        if self._marks is not None:
            return self._marks
        mark = await self._committed(self.partition)
        try:
            marks = Marks() if mark is None else Marks.of(mark)
        except MarkError as reason:
            raise LogUnusable(
                f"{self._access.where}: the mark of {self.partition.topic}, shard {self.number} is not ours to read:"
                f" {reason}; use the newer eilpost"
            ) from None
        await self._reader.open({self.partition: None if mark is None else marks.low})
        position = self._reader.position(self.partition)
        if mark is None or position < marks.low:  # or it is the mark of a topic that is no more
            marks = Marks(position)
        self._marks = marks
        return marks

    async def take(self, limit: int, wait: timedelta | None = None) -> Sequence[Entry[Dispatched]]:
        clock = asyncio.get_running_loop().time
        until = None if wait is None else clock() + wait.total_seconds()
        there_until = clock() + _THERE_SECONDS
        while True:
            if self.lost.is_set():
                raise ShardLost
            marks = await self._open()
            if marks.are_many or not self._may_begin():
                await asyncio.sleep(_CROWDED_SECONDS)
                continue
            try:
                if not self._reader.is_open:  # it was stuck, and could not be made anew at once
                    await self._reader.reopen({self.partition: marks.position})
                before = self._reader.position(self.partition)
                seconds = _WAIT_SECONDS
                if until is not None and not self._reader.is_behind:
                    seconds = min(seconds, max(0.0, until - clock()))
                records = await self._reader.take_until(self.lost, limit, seconds)
            except MadeAnew as error:
                log.warning("shard begins anew", shard=self.number, reason=str(error))
                self.forget()
                raise ShardLost from None
            entries = self._entries(marks, records)
            position = self._reader.position(self.partition)
            marks.read_up_to(position)
            if entries:
                return entries
            if until is None:
                continue
            if not self._reader.is_behind:
                if clock() >= until:
                    return ()
            elif position > before:
                there_until = clock() + _THERE_SECONDS
            elif clock() > there_until:  # it is there, and on its way: "nothing" would not be true
                raise LogUnavailable(f"{self.partition.topic}, shard {self.number}: what is there does not come")

    def _entries(self, marks: Marks, records: Sequence[ConsumerRecord[bytes, bytes]]) -> list[Entry[Dispatched]]:
        """Those that are not finished. One that cannot be read is raised once it is the first."""
        entries: list[Entry[Dispatched]] = []
        for record in records:
            if record.value is None or marks.is_finished(record.offset):
                continue
            try:
                entries.append(self._entry(record))
            except LogUnusable:
                self._reader.seek(self.partition, record.offset)
                if entries:
                    break
                raise
            marks.take(record.offset)
        return entries

    def _entry(self, record: ConsumerRecord[bytes, bytes]) -> Entry[Dispatched]:
        return Entry(DISPATCHED.name, record.partition, record.offset, cast("Dispatched", read(self._access, record)))

    async def finish(self, entry: Entry[Dispatched], attempted: Attempted) -> None:
        if self._closed or self._marks is None:
            raise ShardLost
        await self._append(attempted)
        if self._closed or self._marks is None:
            raise ShardLost  # the report is there, the mark is the next owner's: it makes the attempt again
        self._marks.finish(entry.offset)
        self._finished()
