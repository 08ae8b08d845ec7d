"""Topic watcher: checks the topics at start, including their safety, and every few seconds afterwards.

A process whose topics are deleted stays up but unready, with a line that says what is missing and what to do, and
discards its shards; a restart would only fail again. When the topics are back, the shards restart without their former
positions and state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from mail.log import LogUnavailable, LogUnusable
from mail.log.kafka.access import Access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.kafka.topics import (
    TopicState,
    has_fewer_replicas,
    not_writable,
    refuse_unsafe,
    shard_counts_of,
    too_few_brokers,
)
from mail.log.topics import ShardCounts, Topic
from mail.settings import LogSettings
from mail.tasks import periodically

logger = structlog.get_logger()

_UNANSWERED_MAX = 2  # consecutive time-outs that make an outage; a dying broker causes one
_MISSING_TRIES = 6  # before topics count as missing


async def load_topics(
    cluster_info: ClusterInfo, access: Access, settings: LogSettings, *, with_config: bool = True
) -> tuple[ShardCounts, Mapping[Topic, TopicState]]:
    """Partition counts and topics. Raises LogUnavailable; LogUnusable for missing topics and, with `with_config`,
    unsafe ones.
    """
    topic_states = await cluster_info.topics(access, with_config=with_config)
    for _ in range(_MISSING_TRIES):
        if len(topic_states) == len(access.topics.all):
            break
        await asyncio.sleep(TIMEOUTS.topics_missing_seconds)
        topic_states = await cluster_info.topics(access, with_config=with_config)
    counts = shard_counts_of(topic_states, access, settings)
    if with_config and settings.durability != "dev":
        refuse_unsafe(topic_states, access, settings)
    return counts, topic_states


class TopicWatcher:
    """Watches one set of topics. `on_missing` is called when they are missing or were recreated, `on_restored` when
    they are back, `on_grown` when `dispatched` has more partitions.
    """

    def __init__(
        self,
        cluster_info: ClusterInfo,
        access: Access,
        settings: LogSettings,
        *,
        on_missing: Callable[[], None],
        on_restored: Callable[[], Awaitable[None]],
        on_grown: Callable[[], None] = lambda: None,
    ) -> None:
        self._cluster_info = cluster_info
        self._access = access
        self._settings = settings
        self._on_missing = on_missing
        self._on_restored = on_restored
        self._on_grown = on_grown
        self.counts = ShardCounts(settings.shards or 1, settings.delivery_shards or 1)
        self.problem: str | None = None  # one line for operators
        # Why mail is not processed although the topics exist: no broker answers, or a partition refuses writes.
        self.outage: str | None = None
        self._min_in_sync: Mapping[Topic, int] = {}
        self._unanswered = 0  # consecutive checks
        self._is_missing = False  # `on_missing` was called, and `on_restored` has not returned since

    async def load(self) -> None:
        """Check at start. Raises LogUnusable, LogUnavailable."""
        self.counts, topic_states = await load_topics(self._cluster_info, self._access, self._settings)
        self._update_writability(topic_states)
        if has_fewer_replicas(topic_states, self._settings):
            # New topics could not be created; existing ones work.
            live_brokers = await self._cluster_info.count_brokers()
            if live_brokers < self._settings.replication:
                reason = too_few_brokers(live_brokers, self._access, self._settings)
                logger.warning("more replicas than brokers, existing topics are used", error=reason)

    async def watch(self) -> None:
        """Check until cancelled. Partitions that `dispatched` gains are used for new dispatches."""
        event = "topic check failed, retrying"
        await periodically(TIMEOUTS.watch_seconds, self._check_once, event, prefix=self._access.prefix)

    async def _check_once(self) -> None:
        try:
            await self.check()
            self._unanswered = 0
        except LogUnusable as error:
            self._set_problem(str(error))
        except LogUnavailable as error:  # appends and reads report the error
            self._unanswered += 1
            if self._unanswered >= _UNANSWERED_MAX:
                self.outage = str(error)
            logger.debug("topic check failed, retrying", prefix=self._access.prefix, error=str(error))

    async def check(self) -> None:
        """Check the topics once, and suspend or restart the shards accordingly. Raises LogUnusable, LogUnavailable."""
        if not self._is_missing and await self._are_unchanged():
            return
        # Missing, or recreated, possibly by another process.
        counts, topic_states = await load_topics(self._cluster_info, self._access, self._settings)
        self._update_writability(topic_states)
        self._suspend()
        self.counts = counts
        async with asyncio.timeout(TIMEOUTS.topics_resume_seconds):
            await self._on_restored()
        self._is_missing = False
        if self.problem is not None:
            logger.info("topics available again", prefix=self._access.prefix)
        self.problem = None

    async def _are_unchanged(self) -> bool:
        """Whether the topics are unchanged, except for partitions that `dispatched` gained. Retried, because a paused
        broker may answer with old metadata.
        """
        for attempt in range(_MISSING_TRIES):
            if attempt:
                await asyncio.sleep(TIMEOUTS.topics_missing_seconds)
            topic_states = await self._cluster_info.topics(self._access, with_config=False)
            self.outage = not_writable(topic_states, self._min_in_sync)
            try:
                counts = shard_counts_of(topic_states, self._access, self._settings)
            except LogUnusable:
                continue
            if counts.by_queue_id == self.counts.by_queue_id and counts.of_dispatched >= self.counts.of_dispatched:
                has_grown = counts.of_dispatched > self.counts.of_dispatched
                self.counts = counts
                if has_grown:
                    self._on_grown()
                return True
        return False

    def _update_writability(self, topic_states: Mapping[Topic, TopicState]) -> None:
        """`topic_states` include the configuration."""
        self._min_in_sync = {
            topic: min(int(state.config.get("min.insync.replicas", "1")), state.replication)
            for topic, state in topic_states.items()
        }
        self.outage = not_writable(topic_states, self._min_in_sync)

    def _suspend(self) -> None:
        if not self._is_missing:
            self._is_missing = True
            self.problem = f"topics {self._access.prefix}*: deleted and recreated; reloading"
            self._on_missing()

    def _set_problem(self, problem: str) -> None:
        if self.problem != problem:
            logger.error("topics missing or invalid, mail is not processed", error=problem)
        self._suspend()
        self.problem = problem
