"""Offset committer of one process's delivery shards: commits continuously, for all shards together, as the group's
member.

A refused commit means that this member's generation has ended: its shards are revoked and nothing is retried. With
`_UNCONFIRMED_MAX` finished and unconfirmed deliveries no new ones start, which limits what the next owner may repeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from itertools import islice

import structlog
from aiokafka import OffsetAndMetadata, TopicPartition

from mail.log import LogUnavailable, ShardLost
from mail.log.kafka.committed_offset import CommittedOffset
from mail.log.kafka.delivery_shard import KafkaDeliveryShard
from mail.log.kafka.timeouts import TIMEOUTS

logger = structlog.get_logger()

_UNCONFIRMED_MAX = 100

CommitOffsets = Callable[[dict[TopicPartition, OffsetAndMetadata]], Awaitable[None]]


class OffsetCommitter:
    """`shards` returns the shards whose offsets this process may commit."""

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
        """Whether too many finished deliveries are unconfirmed to start more."""
        return self._unconfirmed >= _UNCONFIRMED_MAX

    async def run(self) -> None:
        """Commit until cancelled."""
        while True:
            try:
                async with asyncio.timeout(TIMEOUTS.idle_write_seconds):
                    await self._changed.wait()
            except TimeoutError:
                await self.commit(recommit=True)
                continue
            self._changed.clear()
            if not await self.commit():
                self._changed.set()
                await asyncio.sleep(TIMEOUTS.offset_commit_retry_seconds)
            await asyncio.sleep(TIMEOUTS.offset_commit_pause_seconds)

    async def commit(self, *, recommit: bool = False) -> bool:
        """Commit the finished offsets; False when the brokers did not confirm, so that the caller retries.

        `recommit`: without progress, commit one offset again.
        """
        async with self._lock:
            shards = list(self._shards())
            offsets = {shard.partition: offset for shard in shards if (offset := shard.to_commit()) is not None}
            changed = {tp: committed for tp, committed in offsets.items() if self._committed.get(tp) != committed}
            self._committed = {tp: committed for tp, committed in self._committed.items() if tp in offsets}
            finished = self._unconfirmed
            is_recommit = not changed and recommit
            if is_recommit:
                changed = dict(islice(offsets.items(), 1))
            if not offsets:
                self.outage = None  # nothing to commit
            if not changed:
                self._unconfirmed = 0
                return True
            numbers = sorted(tp.partition for tp in changed)
            try:
                await self._commit_offsets(
                    {tp: OffsetAndMetadata(committed.offset, committed.metadata) for tp, committed in changed.items()}
                )
            except ShardLost as error:
                self.outage = None  # the brokers answered
                if is_recommit:  # the group is rebalancing, and assigns the shards by itself
                    return True
                event = "offset commit refused: generation ended, shards revoked"
                logger.warning(event, shards=numbers, error=str(error))
                self._unconfirmed = 0  # the new owner commits them; a later generation of ours starts without them
                for shard in shards:
                    shard.revoke()
                return True
            except LogUnavailable as error:
                if self.outage is None:
                    logger.warning("offset commit failed, retrying", shards=numbers, error=str(error))
                self.outage = str(error)
                return False
            self.outage = None
            self._committed |= changed
            self._unconfirmed -= finished
            return True
