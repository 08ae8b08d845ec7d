"""Kafka log: the Log port on Apache Kafka, for any number of processes of every role.

`KafkaLog` wires one process's parts: `producer` appends, `membership` assigns shards, `router_shard` and
`delivery_shard` process them, `history` answers queries. An append that returned is on at least two brokers, provided
that the topics pass the checks in `topics`. A fenced owner commits nothing, and an unconsumed record is never removed.
"""

# When a broker hangs: `circuit_breaker` keeps clients from connecting to it; `producer.condition` becomes Down after an
# overdue append, and new mail gets 421; a router commit fails after `timeouts.transaction_commit_seconds`, and the
# shard is rewound; `membership` joins its group again when `liveness` misses heartbeats; a `partition_reader` that
# receives nothing is reopened.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from typing import Any

import structlog
from aiokafka import TopicPartition

from mail.log import (
    Backlog,
    Condition,
    DeliveryShardProcessor,
    Down,
    LogNotReady,
    LogUnavailable,
    LogUnusable,
    OnReady,
    RouterShardProcessor,
)
from mail.log.damaged import Damaged, report_shards
from mail.log.kafka.access import CLIENT_ERRORS, Access, make_access
from mail.log.kafka.aiokafka_compat.log_filter import install_log_filter
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.decode import follow
from mail.log.kafka.delivery_shard import KafkaDeliveryShard
from mail.log.kafka.diagnose import explain_failure, require_broker
from mail.log.kafka.history import HistoryQueries, KafkaHistoryReader
from mail.log.kafka.history import KafkaHistory as KafkaHistory
from mail.log.kafka.membership import Membership
from mail.log.kafka.offset_committer import OffsetCommitter
from mail.log.kafka.producer import Producer
from mail.log.kafka.router_shard import KafkaRouterShard
from mail.log.kafka.tenant_producers import TenantProducers
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.kafka.topic_watcher import TopicWatcher
from mail.log.topics import (
    ACCEPTED,
    ATTEMPTED,
    DELIVERY,
    DISPATCHED,
    EVENTS,
    ROUTER,
    TOPICS,
    ShardCounts,
    Topic,
    Topics,
)
from mail.record import Accepted, Attempted, Record
from mail.settings import LogSettings
from mail.tasks import background, cancel_tasks, periodically

logger = structlog.get_logger()

# Attempt records are batched, because only the router waits for them. Measured: docs/reports/performance.md.
_REPORT_LINGER_MS = 10


class KafkaLog(HistoryQueries):
    """The Log port. `dedicated(tenant)` tells whether a tenant's messages have their own topics; `tenant` is the owner
    of this log's topics. Raises LogUnusable for certificates that cannot be read, ValueError for the URL.
    """

    def __init__(
        self,
        settings: LogSettings,
        dedicated: Callable[[str], bool] = lambda _tenant: False,
        tenant: str = "",
        topics: Topics = TOPICS,
    ) -> None:
        self._settings = settings
        self._access: Access = make_access(settings, tenant, topics)
        self._dedicated = dedicated
        self._producer = Producer(self._access, settings)
        self._report_producer = Producer(
            self._access, settings, linger_ms=_REPORT_LINGER_MS, effect="queued mail and reports of attempts wait"
        )
        self._tenant_producers = TenantProducers(self._access, settings)
        self._cluster_info = ClusterInfo(self._access)
        self._topic_watcher = TopicWatcher(
            self._cluster_info,
            self._access,
            settings,
            on_missing=self._suspend_shards,
            on_restored=self._resume_shards,
            on_grown=self._refresh_partitions,
        )
        self._router: Membership[KafkaRouterShard] | None = None
        self._delivery: Membership[KafkaDeliveryShard] | None = None
        self._offset_committer: OffsetCommitter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._opened = asyncio.Event()
        self._not_ready = "the log is being opened"  # reason, until the log is open
        self._oldest_event: datetime | None = None

    @property
    def counts(self) -> ShardCounts:
        return self._topic_watcher.counts

    # --- life cycle

    async def start(self) -> None:
        """If brokers or topics are missing, the log is Down and opens as soon as they are available."""
        install_log_filter()
        if self._access.certificates is not None:
            self._tasks.append(asyncio.create_task(self._access.certificates.watch(), name="log-certificates"))
        try:
            await self._open()
        except LogNotReady as error:
            self._set_not_ready(error)
            self._tasks.append(asyncio.create_task(self._retry_open(), name="log-opening"))
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        try:
            await require_broker(self._access)
            await self._topic_watcher.load()
            await self._producer.start()
            await self._report_producer.start()
        except BaseException as error:
            await self._close_clients()
            if isinstance(error, (LogUnavailable, *CLIENT_ERRORS)):
                raise LogNotReady(await explain_failure(self._access, error)) from None
            raise
        self._tasks.append(asyncio.create_task(self._topic_watcher.watch(), name="log-topics"))
        self._opened.set()

    async def _retry_open(self) -> None:
        while not self._opened.is_set():
            await asyncio.sleep(TIMEOUTS.open_retry_seconds)
            try:
                await self._open()
                logger.info("log is usable", url=self._access.url)
            except LogUnusable as error:
                self._set_not_ready(error)
            except Exception:  # retried
                logger.exception("opening the log failed, retrying")

    def _set_not_ready(self, error: LogUnusable) -> None:
        if self._not_ready != str(error):
            logger.error("log not usable yet, retrying", error=str(error))
        self._not_ready = str(error)

    async def _wait_open(self, stop: asyncio.Event) -> bool:
        """Wait until the log is open; False when `stop` was set first."""
        tasks = {asyncio.ensure_future(event.wait()) for event in (self._opened, stop)}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        return self._opened.is_set()

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        await cancel_tasks(*tasks)
        await self._close_clients()
        await self._tenant_producers.close()
        await self._access.circuit_breaker.close()

    async def _close_clients(self) -> None:
        await self._producer.close()
        await self._report_producer.close()
        await self._cluster_info.close()

    @property
    def _memberships(self) -> Sequence[Membership[KafkaRouterShard] | Membership[KafkaDeliveryShard]]:
        return [member for member in (self._router, self._delivery) if member is not None]

    def _suspend_shards(self) -> None:
        for member in self._memberships:
            member.suspend()

    def _refresh_partitions(self) -> None:
        if self._delivery is not None:
            self._delivery.refresh_metadata()

    async def _resume_shards(self) -> None:
        await asyncio.gather(self._producer.refresh_metadata(), self._report_producer.refresh_metadata())
        for member in self._memberships:
            member.resume()

    def _require_topics(self) -> None:
        if not self._opened.is_set():
            raise LogUnavailable(self._not_ready)
        if self._topic_watcher.problem is not None:
            raise LogUnavailable(self._topic_watcher.problem)

    async def purge(self) -> None:
        """DeleteRecords below the committed offsets of this process's shards. The brokers remove whole segments of
        `events` by age; older events that still exist are hidden.
        """
        self._require_topics()
        self._oldest_event = datetime.now(UTC) - self._settings.events_retention
        consumed: dict[TopicPartition, int] = {}
        for role, member in ((ROUTER, self._router), (DELIVERY, self._delivery)):
            if member is None or not member.assigned:
                continue
            partitions = [
                self._access.partition(topic, n)
                for topic in self._access.topics.consumed_by(role)
                for n in sorted(member.assigned)
            ]
            committed = await self._cluster_info.committed_offsets(self._access.group(role), partitions)
            beginnings = await self._cluster_info.beginning_offsets(committed)
            consumed |= {tp: offset for tp, (offset, _) in committed.items() if offset > beginnings.get(tp, offset)}
        if consumed:
            await self._cluster_info.delete_records(consumed)
            logger.debug("consumed records purged", partitions=len(consumed))

    # --- Appender

    async def append(self, record: Record) -> None:
        if isinstance(record, Accepted) and self._dedicated(record.message.tenant):
            await self._tenant_producers.append(record.message.tenant, record)
        else:
            self._require_topics()
            await self._producer.append(record, self.counts)

    async def open_tenant(self, tenant: str, /) -> None:
        if self._dedicated(tenant):
            await self._tenant_producers.open(tenant)

    def condition(self, tenant: str = "", /) -> Condition:
        if not self._opened.is_set():
            return Down(self._not_ready)
        if tenant and self._dedicated(tenant):
            return self._tenant_producers.condition(tenant)
        if self._topic_watcher.problem is not None:
            return Down(self._topic_watcher.problem)
        condition = self._report_producer.condition()
        return condition if isinstance(condition, Down) else self._producer.condition()

    def worker_condition(self) -> Condition:
        condition = self.condition()
        outages = [self._topic_watcher.outage]
        if self._router is not None:
            outages += [shard.outage for shard in self._router.shards]
        if self._offset_committer is not None:
            outages.append(self._offset_committer.outage)
        for member in self._memberships:
            outages += [member.authorization_error, *(shard.authorization_error for shard in member.shards)]
        outage = next(filter(None, outages), None)
        return condition if outage is None or isinstance(condition, Down) else Down(outage)

    def warnings(self) -> Sequence[str]:
        return self._access.certificates.warnings() if self._access.certificates is not None else ()

    async def reload(self) -> None:
        if self._access.certificates is not None:
            await self._access.certificates.reload()

    async def _append_report(self, record: Attempted | Damaged) -> None:
        self._require_topics()
        if isinstance(record, Damaged):
            for shard in report_shards(record, self.counts):
                partition = self._access.partition(ATTEMPTED, shard)
                await self._report_producer.append_frame(partition, record.key, record.frame)
        else:
            await self._report_producer.append(record, self.counts)

    # --- RouterLog

    async def own_router_shards(
        self, process: RouterShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
    ) -> None:
        if not await self._wait_open(stop):
            return
        member: Membership[KafkaRouterShard]
        self._router = member = Membership(
            self._access,
            role=ROUTER,
            lead_topic=self._access.topic(ACCEPTED),
            session_seconds=self._settings.session_timeout.total_seconds(),
            open_shard=lambda number: self._router_shard(number, lambda: member.is_member),
            drain_before_rebalance=False,
            drain_seconds=TIMEOUTS.drain_seconds,
        )
        if self._topic_watcher.problem is not None:
            member.suspend()
        numbers = count()
        probe = periodically(
            TIMEOUTS.idle_write_seconds, lambda: self._probe_events(next(numbers)), "brokers not probed, retrying"
        )
        async with background(probe):
            await member.run(process, stop, on_ready)

    async def _probe_events(self, number: int) -> None:
        """Test whether brokers accept writes, on one partition after another: the shards of a router without mail
        write nothing that would show it.
        """
        if self._topic_watcher.problem is None:
            partition = self._access.partition(EVENTS, number % self.counts.by_queue_id)
            await self._report_producer.probe(partition)

    def _router_shard(self, number: int, may_open: Callable[[], bool]) -> KafkaRouterShard:
        return KafkaRouterShard(
            self._access,
            number,
            self._cluster_info,
            self._settings.append_timeout.total_seconds(),
            counts=lambda: self.counts,
            on_routed=self._producer.subtract_routed,
            may_open=may_open,
        )

    # --- DeliveryLog

    async def own_delivery_shards(
        self, process: DeliveryShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
    ) -> None:
        if not await self._wait_open(stop):
            return
        member: Membership[KafkaDeliveryShard]
        self._offset_committer = offset_committer = OffsetCommitter(
            lambda: [shard for shard in member.shards if member.is_assigned(shard.partition)],
            lambda committed: member.commit(committed),
        )

        def open_shard(number: int) -> KafkaDeliveryShard:
            return KafkaDeliveryShard(
                self._access,
                number,
                self._cluster_info,
                append=self._append_report,
                on_finished=offset_committer.count_finished,
                may_read=lambda: member.is_member and not offset_committer.is_behind,
            )

        self._delivery = member = Membership(
            self._access,
            role=DELIVERY,
            lead_topic=self._access.topic(DISPATCHED),
            session_seconds=self._settings.session_timeout.total_seconds(),
            open_shard=open_shard,
            drain_before_rebalance=True,
            drain_seconds=TIMEOUTS.drain_seconds,
            commit_offsets=offset_committer.commit,
        )
        if self._topic_watcher.problem is not None:
            member.suspend()
        async with background(offset_committer.run()):
            await member.run(process, stop, on_ready)

    # --- TopicFollower

    async def follow(self, topic: Topic, /) -> AsyncIterator[Sequence[Any]]:
        self._require_topics()
        async for records in follow(self._access, topic, self.counts):
            yield records

    # --- HistoryLog

    @asynccontextmanager
    async def history_reader(self) -> AsyncIterator[KafkaHistoryReader]:
        self._require_topics()
        yield KafkaHistoryReader(self._access, self._cluster_info, self.counts, self._oldest_event)

    async def backlog(self) -> Backlog:
        appended = self._producer.appended
        backlog = await super().backlog()
        self._producer.set_unrouted(backlog.accepted, appended)
        await self._tenant_producers.measure_backlog(self._cluster_info)
        return backlog
