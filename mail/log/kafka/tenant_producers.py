"""Producers of dedicated tenants, one per tenant, each for topics of its own ("mail.acme.accepted").

A tenant's producer opens at its first recipient, not at start, because there may be many tenants and each costs
connections to all brokers. Its topics must pass the checks that a start requires. A failure is LogUnavailable for the
tenant's own messages only, immediately once it is known.
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
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.kafka.topic_watcher import load_topics
from mail.log.kafka.topics import refuse_unsafe, shard_counts_of
from mail.log.topics import ShardCounts, tenant_prefix
from mail.record import Accepted
from mail.settings import LogSettings
from mail.tasks import cancel_tasks

logger = structlog.get_logger()

TenantProducer = tuple[Producer, ShardCounts]


class TenantProducers:
    """The tenants' producers of one process."""

    def __init__(self, access: Access, settings: LogSettings) -> None:
        self._access = access
        # The settings give the shards of the shared topics; a tenant's topics may have another number.
        self._settings = settings.model_copy(update={"shards": 0, "delivery_shards": 0})
        self._producers: dict[str, TenantProducer] = {}
        self._opening: dict[str, tuple[float, asyncio.Task[None]]] = {}  # start time
        self._failures: dict[str, tuple[float, str]] = {}  # time and reason

    async def open(self, tenant: str) -> None:
        """Open the tenant's producer unless it is open or failed recently; wait for it for a few seconds at most."""
        if tenant in self._producers or self._recent_failure(tenant) is not None:
            return
        start, task = self._start_opening(tenant)
        remaining = start + TIMEOUTS.tenant_open_wait_seconds - asyncio.get_running_loop().time()
        await asyncio.wait({task}, timeout=max(0.0, remaining))

    async def append(self, tenant: str, record: Accepted) -> None:
        """Return when the record is confirmed. Raises LogUnavailable."""
        if tenant not in self._producers and self._recent_failure(tenant) is None:
            _, task = self._start_opening(tenant)
            await asyncio.wait({task})
        condition = self.condition(tenant)
        if isinstance(condition, Down):  # otherwise each message would hold a session and its bytes until a time-out
            raise LogUnavailable(condition.reason)
        if tenant not in self._producers:
            raise LogUnavailable(f"tenant {tenant}: the log is closed")
        producer, counts = self._producers[tenant]
        await producer.append(record, counts)

    def condition(self, tenant: str) -> Condition:
        """Usable before the first recipient."""
        if tenant in self._producers:
            condition = self._producers[tenant][0].condition()
            return Down(f"tenant {tenant}: {condition.reason}") if isinstance(condition, Down) else condition
        reason = self._recent_failure(tenant)
        if reason is None and tenant in self._opening:
            reason = f"tenant {tenant}: its topics have not responded yet"
        return Usable() if reason is None else Down(reason)

    async def measure_backlog(self, cluster_info: ClusterInfo) -> None:
        """Measure the unrouted messages of each tenant, and check that its topics exist."""
        for tenant, (producer, counts) in list(self._producers.items()):
            appended = producer.appended
            access = self._tenant_access(tenant)
            try:
                current, _ = await load_topics(cluster_info, access, self._settings, with_config=False)
                if current.by_queue_id != counts.by_queue_id:
                    await self._close_producer(tenant)  # the topics were recreated; the next recipient opens them
                    continue
                backlog = await KafkaHistoryReader(access, cluster_info, counts).backlog()
            except LogUnusable as error:
                await self._close_producer(tenant)
                self._record_failure(tenant, str(error))
            except LogUnavailable as error:  # retried at the next measurement; the others are measured
                logger.debug("backlog not measured", tenant=tenant, error=str(error))
            else:
                producer.set_unrouted(backlog.accepted, appended)

    def _recent_failure(self, tenant: str) -> str | None:
        time, reason = self._failures.get(tenant, (float("-inf"), ""))
        return reason if asyncio.get_running_loop().time() - time < TIMEOUTS.tenant_retry_seconds else None

    def _tenant_access(self, tenant: str) -> Access:
        return replace(self._access, prefix=tenant_prefix(self._access.prefix, tenant), tenant=tenant)

    def _start_opening(self, tenant: str) -> tuple[float, asyncio.Task[None]]:
        if tenant not in self._opening:
            task = asyncio.create_task(self._open_producer(tenant), name=f"producer of {tenant}")
            self._opening[tenant] = asyncio.get_running_loop().time(), task
            task.add_done_callback(lambda _: self._opening.pop(tenant, None))
        return self._opening[tenant]

    async def _open_producer(self, tenant: str) -> None:
        access, settings = self._tenant_access(tenant), self._settings
        producer = Producer(access, settings)
        try:
            async with asyncio.timeout(TIMEOUTS.tenant_open_seconds):
                async with ClusterInfo(access) as cluster_info:
                    topic_states = await cluster_info.topics()
                counts = shard_counts_of(topic_states, access, settings)
                if settings.durability != "dev":
                    refuse_unsafe(topic_states, access, settings)
                await producer.start()
            self._producers[tenant] = producer, counts
            self._failures.pop(tenant, None)
        except (LogUnavailable, LogUnusable) as error:
            self._record_failure(tenant, str(error))
        except CLIENT_ERRORS as error:
            self._record_failure(tenant, error_message(error))
        except Exception as error:  # boundary of the task
            logger.exception("opening a tenant's producer failed, its new mail is refused", tenant=tenant)
            self._record_failure(tenant, f"internal error ({type(error).__name__})")
        finally:
            if tenant not in self._producers:
                await producer.close()

    def _record_failure(self, tenant: str, text: str) -> None:
        """Record a failure, and log it if the reason is new."""
        reason = f"tenant {tenant}: {text}"
        if self._failures.get(tenant, (0.0, ""))[1] != reason:
            logger.error("topics of a dedicated tenant not usable, its new mail is refused", tenant=tenant, error=text)
        self._failures[tenant] = asyncio.get_running_loop().time(), reason

    async def _close_producer(self, tenant: str) -> None:
        tenant_producer = self._producers.pop(tenant, None)
        if tenant_producer is not None:
            await tenant_producer[0].close()

    async def close(self) -> None:
        await cancel_tasks(*(task for _, task in self._opening.values()))
        for tenant in list(self._producers):
            await self._close_producer(tenant)
