"""Calls that aiokafka's public API lacks, and ends of its clients within a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, OffsetAndMetadata, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest

from mail.log.kafka.timeouts import TIMEOUTS


def task_error(task: asyncio.Future[Any]) -> BaseException | None:
    """The error that ended a task, if one did."""
    return task.exception() if task.done() and not task.cancelled() else None


def client_of(owner: AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient) -> AIOKafkaClient:
    """The client that makes the connections.
    Upstream: none; it is public in a producer only. Remove with the workarounds that need it.
    """
    return owner.client if isinstance(owner, AIOKafkaProducer) else owner._client


def set_request_seconds(producer: AIOKafkaProducer, seconds: float) -> None:
    """Set a request time-out that is shorter than that of a batch, before the start. A batch that a frozen broker does
    not confirm then goes to the next leader within its own time-out, and another broker is asked which one that is.
    Upstream: aiokafka issue 632 (open). Remove when a producer has `delivery_timeout_ms`.
    """
    producer.client._request_timeout_ms = int(seconds * 1000)


async def load_topics(consumer: AIOKafkaConsumer, topics: Collection[str]) -> None:
    """Fetch the leaders of the topics' partitions. Otherwise the first request finds none, and aiokafka sleeps for
    0.1 s per topic.
    Upstream: none found. Remove when `end_offsets` requests metadata without a pause.
    """
    await consumer._client.set_topics(topics)


async def describe_topics(
    admin: AIOKafkaAdminClient, names: Sequence[str], broker: int | None = None
) -> list[dict[str, Any]]:
    """Metadata of these topics at `broker`, or at any. aiokafka's `describe_topics` creates missing topics with one
    partition and one replica where `auto.create.topics.enable = true` (Kafka's default), and cannot ask one broker.
    Upstream: none found. Remove when it has both options.
    """
    response = await admin._send_request(MetadataRequest(names, allow_auto_topic_creation=False), broker)
    descriptions: list[dict[str, Any]] = response.to_object()["topics"]
    return descriptions


async def fetch_offsets(
    admin: AIOKafkaAdminClient, group: str, partitions: Sequence[TopicPartition]
) -> Mapping[TopicPartition, OffsetAndMetadata]:
    """Committed offsets of these partitions; -1: none. Raises GroupLoadInProgressError where aiokafka returns an empty
    answer: of a coordinator that is loading or has moved. As "none" it would restart a shard at its first record.
    Upstream: none found. Remove when `list_consumer_group_offsets` raises the errors of the answer and of partitions.
    """
    offsets: Mapping[TopicPartition, OffsetAndMetadata]
    try:
        offsets = await admin.list_consumer_group_offsets(group, partitions=list(partitions))
    except errors.NoError:
        # aiokafka raises the error of the whole answer (none) when a partition has an error. Kafka 4 returns only one
        # error for a partition: this user may not describe its topic.
        topics = ", ".join(sorted({tp.topic for tp in partitions}))
        raise errors.TopicAuthorizationFailedError(topics) from None
    if any(tp not in offsets for tp in partitions):
        raise errors.GroupLoadInProgressError(group)
    return offsets


async def stop_or_abort(
    owner: AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient,
    seconds: float = 0.0,
    tasks: Iterable[asyncio.Task[Any] | None] = (),
) -> None:
    """Stop gracefully within `seconds`, then end all connections, its tasks and `tasks`; unsent batches are never
    written. A producer's `stop` waits for its batches without limit, and cancelling it leaves the sender running, which
    would later write records that were reported as not written. An error in a task keeps connections open.
    Upstream: aiokafka issue 1101 (open). Remove when `stop` has a time limit, ends all tasks and never raises.
    """
    client = client_of(owner)
    sender = owner._sender.sender_task if isinstance(owner, AIOKafkaProducer) else None
    stopping = asyncio.ensure_future(owner.close() if isinstance(owner, AIOKafkaAdminClient) else owner.stop())
    try:
        await asyncio.wait({stopping}, timeout=seconds)
    finally:
        ending = {task for task in (stopping, sender, client._sync_task, *tasks) if task is not None}
        for task in ending:
            task.cancel()
        _abort_connections(client)
    await asyncio.wait(ending, timeout=TIMEOUTS.cancel_seconds)
    _abort_connections(client)  # a task may have made another one before it ended
    await asyncio.sleep(0)  # the sockets are closed in the loop's next turn
    for task in ending:
        task_error(task)  # retrieved, so that asyncio does not log it


def _abort_connections(client: AIOKafkaClient) -> None:
    """Close connections without waiting for a broker that does not read what was sent."""
    for connection in client._conns.values():
        if connection._writer is not None:
            connection._writer.transport.abort()
        connection.close()


def sender_error(producer: AIOKafkaProducer) -> BaseException | None:
    """The error that ended the sender, for which a call only timed out.
    Upstream: aiokafka issue 1101 (open). Remove when every waiting call raises the sender's error.
    """
    sender = producer._sender.sender_task
    return None if sender is None else task_error(sender)
