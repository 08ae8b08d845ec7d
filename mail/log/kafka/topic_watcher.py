"""Whether our topics are there, looked at when a process starts (safe too, then) and every few seconds while it runs.

In charge of the one line that says what is missing and what to do. A process whose topics are deleted under it stays:
unready, with that line, and its shards put down; it works again when the topics are back. To end would not be more
truthful: whatever starts it again would see it refused, again and again. What shards remember of deleted topics
(positions, queues) counts no more, so they begin anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from mail.log import LogUnavailable, LogUnusable
from mail.log.kafka.access import Access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.topics import (
    TopicState,
    has_fewer_replicas,
    not_writable,
    refuse_unsafe,
    shard_counts_of,
    too_few_brokers,
)
from mail.log.topics import ALL_TOPICS, ShardCounts, Topic
from mail.settings import LogSettings

logger = structlog.get_logger()

POLL_SECONDS = 5.0
_RESUME_SECONDS = 15.0
_UNANSWERED_MAX = 2  # in a row, before it is an outage: a broker that dies costs one
_MISSING_TRIES, _MISSING_SECONDS = 6, 0.5  # before topics are said to be missing: brokers hear of new ones in turn


async def load_topics(
    cluster_info: ClusterInfo, access: Access, settings: LogSettings, *, with_config: bool = True
) -> tuple[ShardCounts, Mapping[Topic, TopicState]]:
    """The partition counts, and the topics. Raises LogUnavailable; LogUnusable for topics that are missing or, where
    their configuration is looked at, unsafe.
    """
    topic_states = await cluster_info.topics(access, with_config=with_config)
    for _ in range(_MISSING_TRIES):
        if len(topic_states) == len(ALL_TOPICS):
            break
        await asyncio.sleep(_MISSING_SECONDS)
        topic_states = await cluster_info.topics(access, with_config=with_config)
    counts = shard_counts_of(topic_states, access, settings)
    if with_config and settings.durability != "dev":
        refuse_unsafe(topic_states, access, settings)
    return counts, topic_states


class TopicWatcher:
    """Of one set of topics. `gone` is called when they are no longer there, or are others; `back` when they are;
    `grown` when `dispatched` has got more partitions.
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
        self.problem: str | None = None  # one line for people
        # Why no mail moves although the topics are there: no broker answers, or a partition takes no writes.
        self.outage: str | None = None
        self._min_in_sync: Mapping[Topic, int] = {}
        self._unanswered = 0  # looks in a row
        self._is_missing = False  # `gone` was called, and `back` has not got through since

    async def load(self) -> None:
        """At start. Raises LogUnusable, LogUnavailable."""
        self.counts, topic_states = await load_topics(self._cluster_info, self._access, self._settings)
        self._update_writability(topic_states)
        if has_fewer_replicas(topic_states, self._settings):
            # For new topics it would be asked for in vain; those that are there work as they are.
            live_brokers = await self._cluster_info.count_brokers()
            if live_brokers < self._settings.replication:
                logger.warning(
                    "more replicas than brokers", reason=too_few_brokers(live_brokers, self._access, self._settings)
                )

    async def watch(self) -> None:
        """For ever. `dispatched` may also get more partitions while we run; new dispatches go there too."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self._check()
                self._unanswered = 0
            except LogUnusable as error:
                self._set_problem(str(error))
            except LogUnavailable as error:  # who appends and reads says so
                self._unanswered += 1
                if self._unanswered >= _UNANSWERED_MAX:
                    self.outage = str(error)
                logger.debug("topics not looked at", reason=str(error))
            except Exception:  # at its next turn
                logger.exception("topics not looked at")

    async def _check(self) -> None:
        if not self._is_missing and await self._are_unchanged():
            return
        # They are missing, or others now, made by somebody else than us perhaps.
        counts, topic_states = await load_topics(self._cluster_info, self._access, self._settings)
        self._update_writability(topic_states)
        self._suspend()
        self.counts = counts
        async with asyncio.timeout(_RESUME_SECONDS):
            await self._on_restored()
        self._is_missing = False
        if self.problem is not None:
            logger.info("topics are there again", prefix=self._access.prefix)
        self.problem = None

    async def _are_unchanged(self) -> bool:
        """As before, but for partitions that `dispatched` has got. One broker may say otherwise for a while: it has
        slept.
        """
        before = self.counts
        for number in range(_MISSING_TRIES):
            if number:
                await asyncio.sleep(_MISSING_SECONDS)
            topic_states = await self._cluster_info.topics(self._access, with_config=False)
            self.outage = not_writable(topic_states, self._min_in_sync)
            try:
                counts = shard_counts_of(topic_states, self._access, self._settings)
            except LogUnusable:
                continue
            if counts.by_queue_id == before.by_queue_id and counts.by_site >= before.by_site:
                self.counts = counts
                if counts.by_site > before.by_site:
                    self._on_grown()
                return True
        return False

    def _update_writability(self, topic_states: Mapping[Topic, TopicState]) -> None:
        """`found` with its configuration."""
        self._min_in_sync = {
            topic: min(int(each.config.get("min.insync.replicas", "1")), each.replication)
            for topic, each in topic_states.items()
        }
        self.outage = not_writable(topic_states, self._min_in_sync)

    def _suspend(self) -> None:
        if not self._is_missing:
            self._is_missing = True
            self.problem = f"topics {self._access.prefix}*: deleted and recreated; reloading"
            self._on_missing()

    def _set_problem(self, line: str) -> None:
        if self.problem != line:
            logger.error("topics are not as they must be, mail stands still", reason=line)
        self._suspend()
        self.problem = line
