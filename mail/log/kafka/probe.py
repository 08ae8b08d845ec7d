"""Write probe of every broker: whether it accepts writes, its latency and its clock offset.

A *probe* is a record without a value, which all readers skip. It goes to `events`, which no role consumes and whose
records expire; in `accepted` it would count as unrouted mail. The broker's timestamp (LogAppendTime) must lie between
the request and the response.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition

from mail.log.kafka.access import CLIENT_ERRORS, Access, unavailable
from mail.log.kafka.producer import PROBE_KEY, stop_producer
from mail.log.topics import EVENTS

_PROBE_SECONDS = 6.0
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
    producer = access.producer(_PROBE_SECONDS, acks="all", linger_ms=0)
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
        await stop_producer(producer, 1.0)


async def _send(producer: AIOKafkaProducer, tp: TopicPartition) -> tuple[float, float, Any]:
    began, started = time.time(), time.perf_counter()
    async with asyncio.timeout(_PROBE_SECONDS + 1.0):
        written = await producer.send_and_wait(tp.topic, None, PROBE_KEY, tp.partition)
    return began, time.perf_counter() - started, written


def _result(leader: int, began: float, seconds: float, written: Any) -> Probe:
    if written.timestamp_type != _LOG_APPEND_TIME:
        return Probe(leader, seconds, None)
    return Probe(leader, seconds, clock_offset(began, began + seconds, written.timestamp / 1000))


def clock_offset(asked: float, answered: float, theirs: float) -> float:
    """Least offset of a clock that showed `theirs`, truncated to milliseconds, between `asked` and `answered`."""
    if theirs > answered:
        return theirs - answered
    return min(0.0, theirs + 0.001 - asked)
