"""Write probe of every broker: whether it accepts writes, its latency and its clock offset.

A *probe* is a record without a value, which all readers skip. It goes to `events`, which no role consumes and whose
records expire; in `accepted` a probe counts as unrouted mail until it is read, so only partitions whose append failed
are probed there (`producer.py`). The broker's timestamp (LogAppendTime) must lie between
the request and the response.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition

from mail.log.kafka.access import CLIENT_ERRORS, Access, unavailable
from mail.log.kafka.aiokafka_compat.clients import stop_or_abort
from mail.log.kafka.producer import PROBE_KEY
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.topics import EVENTS

_LOG_APPEND_TIME = 1


@dataclass(frozen=True, slots=True)
class Probe:
    """Result for one broker. `seconds` until the write was confirmed; `clock_offset_seconds`: least difference of its
    clock to ours, negative when it is behind, 0 within the request time; None when the topic has no broker timestamps.
    """

    broker: int
    seconds: float
    clock_offset_seconds: float | None


async def probe_brokers(access: Access) -> list[Probe]:
    """Probe one partition of every broker that leads one. Raises LogUnavailable."""
    producer = access.producer(TIMEOUTS.broker_probe_seconds, acks="all", linger_ms=0)
    topic = access.topic(EVENTS)
    try:
        await producer.start()
        partitions = await producer.partitions_for(topic)
        leaders: dict[int, TopicPartition] = {}
        for number in sorted(partitions):
            tp = TopicPartition(topic, number)
            leader = producer.client.cluster.leader_for_partition(tp)
            if leader is not None and leader >= 0:
                leaders.setdefault(leader, tp)
        await asyncio.gather(*(_send(producer, tp) for tp in leaders.values()))  # connects; not measured
        return [_result(leader, *await _send(producer, tp)) for leader, tp in sorted(leaders.items())]
    except CLIENT_ERRORS as error:
        raise unavailable(topic, error, "Write", topic) from None
    finally:
        await stop_or_abort(producer, 1.0)


async def _send(producer: AIOKafkaProducer, tp: TopicPartition) -> tuple[float, float, Any]:
    """Write a probe; returns the time of the request, the seconds until the response, and aiokafka's metadata."""
    request_time, start = time.time(), time.perf_counter()
    async with asyncio.timeout(TIMEOUTS.broker_probe_seconds + 1.0):
        metadata = await producer.send_and_wait(tp.topic, None, PROBE_KEY, tp.partition)
    return request_time, time.perf_counter() - start, metadata


def _result(leader: int, request_time: float, seconds: float, metadata: Any) -> Probe:
    if metadata.timestamp_type != _LOG_APPEND_TIME:
        return Probe(leader, seconds, None)
    return Probe(leader, seconds, clock_offset(request_time, request_time + seconds, metadata.timestamp / 1000))


def clock_offset(request_time: float, response_time: float, broker_time: float) -> float:
    """Least offset of a clock that showed `broker_time`, truncated to milliseconds, between request and response."""
    if broker_time > response_time:
        return broker_time - response_time
    return min(0.0, broker_time + 0.001 - request_time)
