"""Read-only cluster queries: end offsets, committed offsets, topic descriptions, groups.

One admin client and one consumer, opened on first use and reopened after an error. Every query has a time limit;
failures raise LogUnavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from mail.log.kafka.access import CLIENT_ERRORS, Access, unavailable
from mail.log.kafka.aiokafka_compat.clients import fetch_offsets, load_topics, stop_or_abort
from mail.log.kafka.committed_offset import CommittedOffset
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.kafka.topics import TopicState, count_live_brokers, find_topics
from mail.log.topics import Topic

T = TypeVar("T")
C = TypeVar("C", AIOKafkaAdminClient, AIOKafkaConsumer)

_TRANSACTION = 1  # coordinator type of FindCoordinator
_RETRIABLE = (
    errors.GroupCoordinatorNotAvailableError,
    errors.GroupLoadInProgressError,
    errors.NotCoordinatorForGroupError,
)


class ClusterInfo:
    def __init__(self, access: Access) -> None:
        self._access = access
        self._admin: AIOKafkaAdminClient | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        admin, self._admin = self._admin, None
        consumer, self._consumer = self._consumer, None
        for client in (admin, consumer):
            if client is not None:
                await stop_or_abort(client, TIMEOUTS.close_seconds)

    async def __aenter__(self) -> ClusterInfo:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- queries

    async def committed_offsets(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, CommittedOffset]:
        """Committed offsets of a group, without partitions that have none."""
        if not partitions:
            return {}
        response = await self._call_admin(lambda admin: fetch_offsets(admin, group, partitions))
        return {
            tp: CommittedOffset(committed.offset, committed.metadata or "")
            for tp, committed in response.items()
            if committed.offset >= 0
        }

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """End offsets, after the last committed record."""
        partitions = list(partitions)
        return await self._call_consumer(partitions, lambda consumer: consumer.end_offsets(partitions))

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """First existing offsets."""
        partitions = list(partitions)
        return await self._call_consumer(partitions, lambda consumer: consumer.beginning_offsets(partitions))

    async def offset_for_time(self, tp: TopicPartition, milliseconds: int) -> int | None:
        """First offset with this time (milliseconds since 1970) or later; None when there is none."""
        offsets = await self._call_consumer([tp], lambda consumer: consumer.offsets_for_times({tp: milliseconds}))
        return None if offsets.get(tp) is None else int(offsets[tp].offset)

    async def topics(self, access: Access | None = None, *, with_config: bool = True) -> dict[Topic, TopicState]:
        """The existing topics of `access`; by default of the one that this object uses."""
        return await self._call_admin(lambda admin: find_topics(admin, access or self._access, with_config=with_config))

    async def count_brokers(self) -> int:
        """Number of live brokers in the cluster."""
        return await self._call_admin(count_live_brokers)

    async def delete_records(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Delete the records below each offset."""
        records = {tp: RecordsToDelete(before_offset=offset) for tp, offset in offsets.items()}
        await self._call_admin(lambda admin: admin.delete_records(records), "Delete", _topic_names(offsets))

    async def find_transaction_coordinator(self, transactional_id: str) -> None:
        """Find the coordinator of a transactional id, which need not exist."""
        await self._call_admin(lambda admin: admin.find_coordinator(transactional_id, _TRANSACTION))

    async def describe_groups(self, names: Sequence[str]) -> Mapping[str, tuple[str, int]]:
        """State and number of members of each group."""
        responses = await self._call_admin(lambda admin: admin.describe_consumer_groups(list(names)))
        return {
            group: (state, len(members))
            for response in responses
            for _code, group, state, _kind, _protocol, members, *_ in response.groups
        }

    # --- clients

    async def _call_admin(
        self, request: Callable[[AIOKafkaAdminClient], Awaitable[T]], operation: str = "", name: str = ""
    ) -> T:
        async with self._lock:
            if self._admin is None:
                self._admin = await self._start_client(self._access.admin())
            return await self._with_timeout(_call_with_retry(request, self._admin), operation, name)

    async def _call_consumer(
        self, partitions: Sequence[TopicPartition], request: Callable[[AIOKafkaConsumer], Awaitable[T]]
    ) -> T:
        async def call(consumer: AIOKafkaConsumer) -> T:
            await load_topics(consumer, {tp.topic for tp in partitions})
            return await request(consumer)

        async with self._lock:
            if self._consumer is None:
                self._consumer = await self._start_client(self._access.consumer(isolation_level="read_committed"))
            return await self._with_timeout(call(self._consumer))

    async def _start_client(self, client: C) -> C:
        try:
            async with asyncio.timeout(TIMEOUTS.query_seconds):
                await client.start()
        except BaseException as error:
            await stop_or_abort(client, TIMEOUTS.close_seconds)
            if isinstance(error, CLIENT_ERRORS):
                raise unavailable(self._access.url, error) from None
            raise
        return client

    async def _with_timeout(self, response: Awaitable[T], operation: str = "", name: str = "") -> T:
        try:
            async with asyncio.timeout(TIMEOUTS.query_seconds):
                return await response
        except CLIENT_ERRORS as error:
            await self.close()  # recreated at the next query
            raise unavailable(self._access.url, error, operation, name) from None


def _topic_names(partitions: Iterable[TopicPartition]) -> str:
    return ", ".join(sorted({tp.topic for tp in partitions}))


async def _call_with_retry(request: Callable[[AIOKafkaAdminClient], Awaitable[T]], admin: AIOKafkaAdminClient) -> T:
    """Retry while the coordinator is created or moved; a new cluster creates it at the first request."""
    while True:
        try:
            return await request(admin)
        except _RETRIABLE:
            await asyncio.sleep(TIMEOUTS.coordinator_retry_seconds)
