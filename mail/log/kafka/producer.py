"""Plain producer for accepted messages and attempts, confirmed by all in-sync replicas; it also decides the log's
condition.

It is not idempotent, because aiokafka's idempotent producer never gives up on a dead broker and later writes records
whose senders got 451; ids make repeats harmless. A failed or overdue append makes the log Down for new mail, and
*probes* (records without a value, which readers skip) to the failed partitions make it Usable again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from time import perf_counter

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition

from mail.log import Condition, Down, Full, LogUnavailable, Usable
from mail.log.codec import encode
from mail.log.kafka.access import BATCH_BYTES, CLIENT_ERRORS, RECORD_BYTES_MAX, Access, error_message
from mail.log.kafka.aiokafka_compat.clients import set_request_seconds, stop_or_abort
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.topics import ACCEPTED, ShardCounts
from mail.record import Record
from mail.settings import LogSettings
from mail.tasks import cancel_tasks
from mail.telemetry.log import PRODUCE_DURATION, PRODUCE_ERRORS

logger = structlog.get_logger()

PROBE_KEY = b"probe"
_PROBES_MAX = 256  # concurrent; a few dozen bytes each
_OVERDUE_SHARE = 0.25  # of the append time-out, after which new mail is refused


class Producer:
    """One plain producer and the condition derived from its appends. Used on the event loop."""

    def __init__(
        self, access: Access, settings: LogSettings, *, linger_ms: int = 0, effect: str = "new mail is refused"
    ) -> None:
        """`linger_ms`: how long a batch waits for more records, where no client waits for it; `effect`: what log lines
        say of a failure.
        """
        self._access = access
        self._settings = settings
        self._linger_ms = linger_ms
        self._effect = effect
        self._timeout = settings.append_timeout.total_seconds()
        self._producer: AIOKafkaProducer | None = None
        self._in_flight: OrderedDict[int, float] = OrderedDict()  # unconfirmed appends, oldest first
        self._last_append_id = 0
        self._down: str | None = None
        self._failed: set[TopicPartition] = set()
        self._probe_task: asyncio.Task[None] | None = None
        self._probe_slots = asyncio.Semaphore(_PROBES_MAX)
        self.appended = 0  # records that this process appended to `accepted`
        self._unrouted = 0  # records in `accepted`: last measurement plus our appends since

    async def start(self) -> None:
        """Raises aiokafka's errors."""
        self._producer = producer = self._access.producer(
            self._timeout,  # time-out of a batch
            acks="all",
            max_batch_size=BATCH_BYTES,
            max_request_size=RECORD_BYTES_MAX,
            linger_ms=self._linger_ms,  # even with 0, the next batch fills while a request is in flight
        )
        set_request_seconds(producer, min(TIMEOUTS.request_seconds, self._timeout))
        await producer.start()

    async def refresh_metadata(self) -> None:
        """The topics were recreated: fetch their partitions."""
        if self._producer is not None:
            await self._producer.client.force_metadata_update()
            partitions_of = self._producer.client.cluster.partitions_for_topic
            # A partition that no longer exists never accepts a probe, and would keep the log Down.
            self._failed = {tp for tp in self._failed if tp.partition in (partitions_of(tp.topic) or ())}

    async def close(self) -> None:
        await cancel_tasks(self._probe_task)
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_or_abort(producer, TIMEOUTS.stop_seconds)

    async def append(self, record: Record, counts: ShardCounts) -> None:
        """Return when the record is confirmed. Raises LogUnavailable."""
        topic, shard, key = self._access.topics.place(record, counts)
        start = perf_counter()
        await self._send(self._access.partition(topic, shard), key.encode(), encode(record))
        PRODUCE_DURATION.observe(perf_counter() - start)
        if topic is ACCEPTED:
            self.appended += 1
            self._unrouted += 1

    async def append_frame(self, partition: TopicPartition, key: str, frame: bytes) -> None:
        """As `append`, for bytes that are no frame."""
        await self._send(partition, key.encode(), frame)

    async def _send(self, partition: TopicPartition, key: bytes, value: bytes | None) -> None:
        producer = self._producer
        if producer is None:
            raise LogUnavailable("the log is closed")
        append_id = self._last_append_id = self._last_append_id + 1
        self._in_flight[append_id] = perf_counter()
        try:
            async with asyncio.timeout(self._timeout + 1.0):  # aiokafka's own time-out is earlier
                confirmation = await producer.send(partition.topic, value, key, partition.partition)
                await confirmation
        except (*CLIENT_ERRORS, AssertionError) as error:
            PRODUCE_ERRORS.inc()
            cause = error_message(error, "Write", partition.topic)
            if isinstance(error, AssertionError):  # by aiokafka
                cause = "the partition does not exist"
            raise LogUnavailable(self._set_down(partition, cause)) from None
        finally:
            del self._in_flight[append_id]

    def condition(self) -> Condition:
        if self._down is not None:
            return Down(self._down)
        if self._in_flight:
            age = perf_counter() - next(iter(self._in_flight.values()))
            if age > self._timeout * _OVERDUE_SHARE:
                return Down(f"an append has not been confirmed for {age:.0f} s")
        if self._unrouted >= self._settings.max_unrouted_messages:
            return Full(f"{self._unrouted} messages wait to be routed")
        return Usable()

    def set_unrouted(self, unrouted: int, appended: int) -> None:
        """Set the number of records in `accepted`, measured when we had appended `appended`."""
        self._unrouted = unrouted + self.appended - appended

    def subtract_routed(self, count: int) -> None:
        self._unrouted = max(0, self._unrouted - count)

    def _set_down(self, partition: TopicPartition, cause: str) -> str:
        """The log is Down until probes work again; returns the reason."""
        if self._down is None:
            event, topic = f"log append failed, {self._effect}", partition.topic
            logger.error(event, topic=topic, partition=partition.partition, error=cause)
        self._down = f"{partition.topic}, partition {partition.partition}: {cause}"
        self._failed.add(partition)
        if self._probe_task is None or self._probe_task.done():
            self._probe_task = asyncio.create_task(self._probe_failed_partitions(), name="log-probe")
        return self._down

    async def _probe_failed_partitions(self) -> None:
        """Probe the failed partitions until all accept writes."""
        while self._failed:
            await asyncio.sleep(TIMEOUTS.retry_seconds)
            # Concurrently: in sequence, every partition that still fails would delay the others by a time-out.
            await asyncio.gather(*map(self.probe, list(self._failed)))
        logger.info("log appends work again")
        self._down = None

    async def probe(self, partition: TopicPartition) -> None:
        """Test whether the partition accepts writes, and update the condition."""
        try:
            async with self._probe_slots:
                await self._send(partition, PROBE_KEY, None)
        except LogUnavailable:  # the condition has the reason
            return
        except Exception:  # otherwise the probes end and the log stays Down
            event = f"probe failed, {self._effect}"
            logger.exception(event, topic=partition.topic, partition=partition.partition)
            return
        self._failed.discard(partition)
