"""Appending outside transactions: what ingress accepts and what delivery reports, confirmed by all replicas in sync.

The producer is plain, not idempotent: aiokafka's idempotent one never gives up on a dead broker, and writes what we
said 451 to; ids make repeats harmless. In charge of the condition too (Usable, Full, Down): an append that fails or is
overdue closes the log for new mail, and a *probe*, a record without a value written to the very partitions that
failed, opens it again. Readers skip probes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import suppress
from time import perf_counter

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition

from mail.log import Condition, Down, Full, LogUnavailable, Usable
from mail.log.codec import encode
from mail.log.kafka.access import BATCH_BYTES, CLIENT_ERRORS, RECORD_BYTES_MAX, REQUEST_SECONDS, Access, error_message
from mail.log.topics import ACCEPTED, Place
from mail.record import Record
from mail.settings import LogSettings
from mail.telemetry.log import PRODUCE_DURATION, PRODUCE_ERRORS

logger = structlog.get_logger()

PROBE_KEY = b"probe"
_PROBE_SECONDS = 1.0
_PROBES_MAX = 256  # at the same time; a few dozen bytes each
_OVERDUE_SHARE = 0.25  # of the append time-out, after which no more new mail is let in
_STOP_SECONDS = 5.0


class Producer:
    """One plain producer and what is known of the log through it. Lives on the event loop."""

    def __init__(self, access: Access, settings: LogSettings, *, linger_ms: int = 0) -> None:
        """`linger_ms`: how long a partition's batch waits for more, where nobody waits for it."""
        self._access = access
        self._settings = settings
        self._linger_ms = linger_ms
        self._timeout = settings.append_timeout.total_seconds()
        self._producer: AIOKafkaProducer | None = None
        self._in_flight: OrderedDict[int, float] = OrderedDict()  # appends under way, the oldest first
        self._last_append_id = 0
        self._down: str | None = None
        self._failed: set[TopicPartition] = set()
        self._probe_task: asyncio.Task[None] | None = None
        self.appended = 0  # records in `accepted`, by us
        self._unrouted = 0  # records in `accepted`: as last measured, plus what we appended since

    async def start(self) -> None:
        """Raises aiokafka's errors."""
        self._producer = producer = self._access.producer(
            self._timeout,  # of a batch, until it is given up
            acks="all",
            max_batch_size=BATCH_BYTES,
            max_request_size=RECORD_BYTES_MAX,
            linger_ms=self._linger_ms,  # even with 0: while a request is under way the next batch fills by itself
        )
        # Of one answer less: a batch that a frozen broker does not answer goes to the next leader within its time, and
        # the question who that is to another broker.
        producer.client._request_timeout_ms = int(min(REQUEST_SECONDS, self._timeout) * 1000)
        await producer.start()

    async def refresh_metadata(self) -> None:
        """The topics are others than those we know: which partitions they have is asked anew."""
        if self._producer is not None:
            await self._producer.client.force_metadata_update()
            known = self._producer.client.cluster.partitions_for_topic
            # What is no more will never take a write, and would keep the log down for ever.
            self._failed = {at for at in self._failed if at.partition in (known(at.topic) or ())}

    async def close(self) -> None:
        if self._probe_task is not None:
            self._probe_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._probe_task
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_producer(producer, _STOP_SECONDS)

    async def append(self, record: Record, at: Place) -> None:
        """Return when the record is confirmed. Raises LogUnavailable."""
        frame = encode(record)
        assert frame is not None
        partition = self._access.partition(at.topic, at.shard)
        began = perf_counter()
        await self._send(partition, at.key.encode(), frame)
        PRODUCE_DURATION.observe(perf_counter() - began)
        if at.topic is ACCEPTED:
            self.appended += 1
            self._unrouted += 1

    async def _send(self, partition: TopicPartition, key: bytes, value: bytes | None) -> None:
        producer = self._producer
        if producer is None:
            raise LogUnavailable("the log is closed")
        self._last_append_id += 1
        append_id = self._last_append_id
        self._in_flight[append_id] = perf_counter()
        try:
            async with asyncio.timeout(self._timeout + 1.0):  # aiokafka gives up by itself before
                sent = await producer.send(partition.topic, value, key, partition.partition)
                await sent
        except (*CLIENT_ERRORS, AssertionError) as error:  # aiokafka asserts that it knows the partition
            PRODUCE_ERRORS.inc()
            cause = (
                "it is not there"
                if isinstance(error, AssertionError)
                else error_message(error, "Write", partition.topic)
            )
            self._set_down(partition, cause)
            raise LogUnavailable(f"{partition.topic}, partition {partition.partition}: {cause}") from None
        finally:
            del self._in_flight[append_id]

    def condition(self) -> Condition:
        if self._down is not None:
            return Down(self._down)
        if self._in_flight:
            overdue = perf_counter() - next(iter(self._in_flight.values()))
            if overdue > self._timeout * _OVERDUE_SHARE:
                return Down(f"an append has not been confirmed for {overdue:.0f} s")
        if self._unrouted >= self._settings.backlog_max:
            return Full(f"{self._unrouted} messages wait to be routed")
        return Usable()

    def set_unrouted(self, unrouted: int, appended: int) -> None:
        """So many waited in `accepted` at a time when we had appended so many."""
        self._unrouted = unrouted + self.appended - appended

    def subtract_routed(self, count: int) -> None:
        self._unrouted = max(0, self._unrouted - count)

    def _set_down(self, partition: TopicPartition, cause: str) -> None:
        if self._down is None:
            logger.error("log does not confirm", topic=partition.topic, partition=partition.partition, reason=cause)
        self._down = f"{partition.topic}, partition {partition.partition}: {cause}"
        self._failed.add(partition)
        if self._probe_task is None or self._probe_task.done():
            self._probe_task = asyncio.create_task(self._probe_failed_partitions(), name="log-probe")

    async def _probe_failed_partitions(self) -> None:
        """Write to what failed until all of it takes writes again."""
        while self._failed:
            await asyncio.sleep(_PROBE_SECONDS)
            # All at once: one after the other, each that still fails would hold up the rest for a time-out.
            semaphore = asyncio.Semaphore(_PROBES_MAX)
            await asyncio.gather(*(self._probe_partition(partition, semaphore) for partition in list(self._failed)))
        logger.info("log confirms again")
        self._down = None

    async def _probe_partition(self, partition: TopicPartition, semaphore: asyncio.Semaphore) -> None:
        try:
            async with semaphore:
                await self._send(partition, PROBE_KEY, None)
        except LogUnavailable:
            return
        except Exception:  # or nobody would probe any more, and nothing would open the log again
            logger.exception("probe failed", topic=partition.topic, partition=partition.partition)
            return
        self._failed.discard(partition)


async def stop_producer(producer: AIOKafkaProducer, seconds: float = 0.0) -> None:
    """Stop a producer, politely for `seconds`, and then for good: what it has not sent it never will.

    `AIOKafkaProducer.stop()` waits for its batches for ever, and cancelling it leaves the sender running, which would
    write later what we said was not written. So the sender is ended by hand.
    """
    stopping = asyncio.ensure_future(producer.stop())
    await asyncio.wait({stopping}, timeout=seconds)
    sender = producer._sender.sender_task
    if not stopping.done():
        stopping.cancel()
        if sender is not None:
            sender.cancel()
            await asyncio.wait({sender}, timeout=1.0)
        with suppress(*CLIENT_ERRORS):
            await asyncio.wait_for(producer.client.close(), 1.0)
    for task in (stopping, sender):
        if task is not None and task.done() and not task.cancelled():
            task.exception()  # seen: nobody needs "exception was never retrieved"
    if not stopping.done():
        await asyncio.wait({stopping}, timeout=1.0)
