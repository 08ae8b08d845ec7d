"""Commits the marks of a process's delivery shards: together, back to back, as the group's member.

In charge of when; what is committed is each shard's `mark()`. A commit that the group refuses means that the shards
are somebody else's now: they are told to go, and nothing is retried. With `_UNCONFIRMED_MOST` deliveries finished and
not confirmed nothing more is begun: these, and what is at work then, are what a next owner may repeat.
Next: `mail/log/kafka/delivery_shard.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import structlog
from aiokafka import OffsetAndMetadata, TopicPartition

from mail.log import LogUnavailable, ShardLost
from mail.log.kafka.delivery_shard import KafkaDeliveryShard
from mail.log.kafka.marks import Mark

log = structlog.get_logger()

_PAUSE_SECONDS = 0.02  # between two commits: what finishes meanwhile goes with the next
_BACKOFF_SECONDS = 0.5
_IDLE_SECONDS = 5.0  # without news, then a mark is committed again: that shows whether the brokers take writes

_UNCONFIRMED_MOST = 100

Commit = Callable[[dict[TopicPartition, OffsetAndMetadata]], Awaitable[None]]


class Committing:
    """`shards` gives those whose marks are ours to commit."""

    def __init__(self, shards: Callable[[], Collection[KafkaDeliveryShard]], commit: Commit) -> None:
        self._shards = shards
        self._commit = commit
        self._news = asyncio.Event()
        self._last: dict[TopicPartition, Mark] = {}
        self._lock = asyncio.Lock()
        self._unconfirmed = 0
        self.outage: str | None = None  # why the last commit failed

    def finished(self) -> None:
        self._unconfirmed += 1
        self._news.set()

    @property
    def is_behind(self) -> bool:
        """Whether so much is finished and not confirmed that nothing more is to be begun."""
        return self._unconfirmed >= _UNCONFIRMED_MOST

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                await self.settle(again=True)
                continue
            self._news.clear()
            if not await self.settle():
                self._news.set()
                await asyncio.sleep(_BACKOFF_SECONDS)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def settle(self, *, again: bool = False) -> bool:
        """Commit what is finished now; False when the brokers did not answer, and it is to be done again.

        `again`: where nothing is new, commit one mark as it is.
        """
        async with self._lock:
            shards = list(self._shards())
            marks = {shard.partition: mark for shard in shards if (mark := shard.mark()) is not None}
            new = {at: mark for at, mark in marks.items() if self._last.get(at) != mark}
            self._last = {at: mark for at, mark in self._last.items() if at in marks}
            finished = self._unconfirmed
            is_check = not new and again
            if is_check:
                new = dict([*marks.items()][:1])
            if not marks:
                self.outage = None  # there is nothing of ours to commit
            if not new:
                self._unconfirmed = 0
                return True
            try:
                await self._commit({at: OffsetAndMetadata(mark.low, mark.text) for at, mark in new.items()})
            except ShardLost as error:
                self.outage = None  # the brokers answered
                if is_check:  # the group is rebalancing, and tells by itself who has the shard
                    return True
                log.warning("offset commit refused: another process owns the shards", reason=str(error))
                self._unconfirmed = 0  # the new owner commits them; a later generation of ours starts without them
                for shard in shards:
                    shard.lose()
                return True
            except LogUnavailable as error:
                if self.outage is None:
                    log.warning("marks not committed", reason=str(error))
                self.outage = str(error)
                return False
            self.outage = None
            self._last |= new
            self._unconfirmed -= finished
            return True
