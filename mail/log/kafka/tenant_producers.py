"""Appends for dedicated tenants: each has topics of its own, and a producer of its own, so that nothing is shared.

A tenant's topics have the log's prefix and the tenant's name before theirs ("mail.acme.accepted"). Its
tenant_producer is opened
with its first recipient, on topics as safe as those a start demands: not at start, since there may be many tenants, and
a process talks to all brokers for each. What ails one tenant's topics is LogUnavailable for its messages, at once where
it is known, and for nobody else's.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from mail.log import Condition, Down, LogUnavailable, LogUnusable, Usable
from mail.log.kafka.access import CLIENT_ERRORS, Access, error_message
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.history import KafkaHistoryReader
from mail.log.kafka.producer import Producer
from mail.log.kafka.topic_watcher import load_topics
from mail.log.kafka.topics import refuse_unsafe, shard_counts_of
from mail.log.topics import ShardCounts, place, tenant_prefix
from mail.record import Accepted
from mail.settings import LogSettings

logger = structlog.get_logger()

_RETRY_SECONDS = 5.0  # before topics that were missing are looked for again
_OPEN_SECONDS_MAX = 30.0  # then the brokers do not answer
_OPEN_WAIT_SECONDS = (
    3.0  # that a recipient waits for a tenant_producer, which takes a tenth of a second where all is well
)

TenantProducer = tuple[Producer, ShardCounts]


class TenantProducers:
    """The tenants' producers of one process."""

    def __init__(self, access: Access, settings: LogSettings) -> None:
        self._access = access
        # The settings say how many shards the shared topics have; a tenant's have what they have.
        self._settings = settings.model_copy(update={"shards": 0, "delivery_shards": 0})
        self._producers: dict[str, TenantProducer] = {}
        self._opening: dict[str, tuple[float, asyncio.Task[None]]] = {}  # since when
        self._failures: dict[str, tuple[float, str]] = {}

    async def open(self, tenant: str) -> None:
        """Open the tenant's lane unless it is open, or failed a moment ago; wait for that, but not long."""
        if tenant in self._producers or self._recent_failure(tenant) is not None:
            return
        since, task = self._start_opening(tenant)
        left = since + _OPEN_WAIT_SECONDS - asyncio.get_running_loop().time()
        await asyncio.wait({task}, timeout=max(0.0, left))

    async def append(self, tenant: str, record: Accepted) -> None:
        """Return when the record is confirmed. Raises LogUnavailable."""
        if tenant not in self._producers and self._recent_failure(tenant) is None:
            _, task = self._start_opening(tenant)
            await asyncio.wait({task})
        condition = self.condition(tenant)
        if isinstance(condition, Down):  # or each of its messages would hold a session and its bytes for a time-out
            raise LogUnavailable(condition.reason)
        tenant_producer = self._producers.get(tenant)
        if tenant_producer is None:
            raise LogUnavailable(f"tenant {tenant}: the log is closed")
        producer, counts = tenant_producer
        await producer.append(record, place(record, counts))

    def condition(self, tenant: str) -> Condition:
        """Usable while nobody has asked."""
        tenant_producer = self._producers.get(tenant)
        if tenant_producer is not None:
            now = tenant_producer[0].condition()
            return Down(f"tenant {tenant}: {now.reason}") if isinstance(now, Down) else now
        reason = self._recent_failure(tenant)
        if reason is None and tenant in self._opening:
            reason = f"tenant {tenant}: its topics have not answered yet"
        return Usable() if reason is None else Down(reason)

    async def measure_backlog(self, cluster_info: ClusterInfo) -> None:
        """See how much of what was appended is routed, and whether the topics are there."""
        for tenant, (producer, counts) in list(self._producers.items()):
            appended = producer.appended
            access = self._tenant_access(tenant)
            try:
                current, _ = await load_topics(cluster_info, access, self._settings, with_config=False)
                if current.by_queue_id != counts.by_queue_id:
                    await self._close_producer(
                        tenant
                    )  # they were made anew: with the next recipient they are looked at
                    continue
                backlog = await KafkaHistoryReader(access, cluster_info, counts).backlog()
            except LogUnusable as error:
                await self._close_producer(tenant)
                self._record_failure(tenant, str(error))
            except LogUnavailable as error:  # at the next turn; the others are measured
                logger.debug("backlog not measured", tenant=tenant, reason=str(error))
            else:
                producer.set_unrouted(backlog.accepted, appended)

    def _recent_failure(self, tenant: str) -> str | None:
        """What ailed the tenant's topics a moment ago."""
        since, reason = self._failures.get(tenant, (float("-inf"), ""))
        return reason if asyncio.get_running_loop().time() - since < _RETRY_SECONDS else None

    def _tenant_access(self, tenant: str) -> Access:
        return replace(self._access, prefix=tenant_prefix(self._access.prefix, tenant), tenant=tenant)

    def _start_opening(self, tenant: str) -> tuple[float, asyncio.Task[None]]:
        opening = self._opening.get(tenant)
        if opening is None:
            task = asyncio.create_task(self._open_producer(tenant), name=f"lane of {tenant}")
            opening = self._opening[tenant] = asyncio.get_running_loop().time(), task
            task.add_done_callback(lambda _: self._opening.pop(tenant, None))
        return opening

    async def _open_producer(self, tenant: str) -> None:
        access, settings = self._tenant_access(tenant), self._settings
        producer = Producer(access, settings)
        is_open = False
        try:
            async with asyncio.timeout(_OPEN_SECONDS_MAX):
                async with ClusterInfo(access) as cluster_info:
                    topic_states = await cluster_info.topics()
                counts = shard_counts_of(topic_states, access, settings)
                if settings.durability != "dev":
                    refuse_unsafe(topic_states, access, settings)
                await producer.start()
            is_open = True
        except (LogUnavailable, LogUnusable) as error:
            self._record_failure(tenant, str(error))
        except CLIENT_ERRORS as error:
            self._record_failure(tenant, error_message(error))
        except Exception as error:  # a bug; without a reason every message would only find the lane shut
            logger.exception("lane not opened", tenant=tenant)
            self._record_failure(tenant, f"a bug of ours ({type(error).__name__})")
        finally:
            if not is_open:
                await producer.close()
        if is_open:
            self._failures.pop(tenant, None)
            self._producers[tenant] = producer, counts

    def _record_failure(self, tenant: str, text: str) -> None:
        """Said once, for as long as nothing else is wrong."""
        reason = f"tenant {tenant}: {text}"
        if self._failures.get(tenant, (0.0, ""))[1] != reason:
            logger.error("no topics for a dedicated tenant", tenant=tenant, reason=text)
        self._failures[tenant] = asyncio.get_running_loop().time(), reason

    async def _close_producer(self, tenant: str) -> None:
        tenant_producer = self._producers.pop(tenant, None)
        if tenant_producer is not None:
            await tenant_producer[0].close()

    async def close(self) -> None:
        opening = [task for _, task in self._opening.values()]
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for tenant in list(self._producers):
            await self._close_producer(tenant)
