"""Commits the marks of a process's delivery shards: together, back to back, as the group's member.

In charge of when; what is committed is each shard's `committed()`. A commit that the group refuses means that the
shards
are somebody else's now: they are told to go, and nothing is retried. With `_UNCONFIRMED_MOST` deliveries finished and
not confirmed nothing more is begun: these, and what is at work then, are what a next owner may repeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import structlog
from aiokafka import OffsetAndMetadata, TopicPartition

from mail.log import LogUnavailable, ShardLost
from mail.log.kafka.committed_offset import CommittedOffset
from mail.log.kafka.delivery_shard import KafkaDeliveryShard

logger = structlog.get_logger()

_PAUSE_SECONDS = 0.02  # between two commits: what finishes meanwhile goes with the next
_BACKOFF_SECONDS = 0.5
_IDLE_SECONDS = 5.0  # without news, then a committed is committed again: that shows whether the brokers take writes

_UNCONFIRMED_MAX = 100

CommitOffsets = Callable[[dict[TopicPartition, OffsetAndMetadata]], Awaitable[None]]


class OffsetCommitter:
    """`shards` gives those whose marks are ours to commit."""

    def __init__(self, shards: Callable[[], Collection[KafkaDeliveryShard]], commit_offsets: CommitOffsets) -> None:
        self._shards = shards
        self._commit_offsets = commit_offsets
        self._changed = asyncio.Event()
        self._committed: dict[TopicPartition, CommittedOffset] = {}
        self._lock = asyncio.Lock()
        self._unconfirmed = 0
        self.outage: str | None = None  # why the last commit failed

    def count_finished(self) -> None:
        self._unconfirmed += 1
        self._changed.set()

    @property
    def is_behind(self) -> bool:
        """Whether so much is finished and not confirmed that nothing more is to be begun."""
        return self._unconfirmed >= _UNCONFIRMED_MAX

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                await self.commit(recommit=True)
                continue
            self._changed.clear()
            if not await self.commit():
                self._changed.set()
                await asyncio.sleep(_BACKOFF_SECONDS)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def commit(self, *, recommit: bool = False) -> bool:
        """Commit what is finished now; False when the brokers did not answer, and it is to be done again.

        `again`: where nothing is new, commit one mark as it is.
        """
        async with self._lock:
            shards = list(self._shards())
            offsets = {shard.partition: offset for shard in shards if (offset := shard.to_commit()) is not None}
            changed = {at: committed for at, committed in offsets.items() if self._committed.get(at) != committed}
            self._committed = {at: committed for at, committed in self._committed.items() if at in offsets}
            finished = self._unconfirmed
            is_check = not changed and recommit
            if is_check:
                changed = dict([*offsets.items()][:1])
            if not offsets:
                self.outage = None  # there is nothing of ours to commit
            if not changed:
                self._unconfirmed = 0
                return True
            try:
                await self._commit_offsets(
                    {at: OffsetAndMetadata(committed.offset, committed.metadata) for at, committed in changed.items()}
                )
            except ShardLost as error:
                self.outage = None  # the brokers answered
                if is_check:  # the group is rebalancing, and tells by itself who has the shard
                    return True
                logger.warning("offset commit refused: another process owns the shards", reason=str(error))
                self._unconfirmed = 0  # the new owner commits them; a later generation of ours starts without them
                for shard in shards:
                    shard.revoke()
                return True
            except LogUnavailable as error:
                if self.outage is None:
                    logger.warning("marks not committed", reason=str(error))
                self.outage = str(error)
                return False
            self.outage = None
            self._committed |= changed
            self._unconfirmed -= finished
            return True
