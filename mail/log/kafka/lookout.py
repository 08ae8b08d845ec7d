"""What the cluster says of itself: ends of partitions, marks of groups, topics. Reads no record, belongs to no group.

One admin client and one consumer, opened when first needed and again after an error. Every question has a time limit,
and what fails is LogUnavailable. Next: `mail/log/kafka/history.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from mail.log import LogUnavailable
from mail.log.kafka.access import FAULTS, Access, unavailable
from mail.log.kafka.marks import Mark
from mail.log.kafka.severed import stop_or_cut
from mail.log.kafka.topics import Found, brokers_alive, look
from mail.log.topics import Topic

T = TypeVar("T")
C = TypeVar("C", AIOKafkaAdminClient, AIOKafkaConsumer)

_QUESTION_SECONDS = 15.0
_CLOSE_SECONDS = 2.0
_AGAIN_SECONDS = 0.3
_TRANSACTION = 1  # the kind of coordinator, in FindCoordinator
_NOT_YET = (
    errors.GroupCoordinatorNotAvailableError,
    errors.GroupLoadInProgressError,
    errors.NotCoordinatorForGroupError,
)
# aiokafka: `for_code(response.error_code)` of a response that has none, when a partition has an error.
_FAULTS = (*FAULTS, AttributeError)


class Lookout:
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
                await _close(client)

    async def __aenter__(self) -> Lookout:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- questions

    async def marks(self, group: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Mark]:
        """The committed marks of a group; partitions without one are missing.

        Only an offset of -1 means "none". A coordinator that loads or has moved answers with nothing at all, an error
        that aiokafka does not look at: taken for "none", a shard would begin again at its first record.
        """
        asked = list(partitions)

        async def question(admin: AIOKafkaAdminClient) -> Mapping[TopicPartition, OffsetAndMetadata]:
            found: Mapping[TopicPartition, OffsetAndMetadata]
            try:
                found = await admin.list_consumer_group_offsets(group, partitions=asked)
            except errors.NoError:
                # aiokafka raises the error of the whole answer, which is none, where a partition has one. Kafka 4 gives
                # a partition no other error than that this user may not see its topic.
                raise errors.TopicAuthorizationFailedError(", ".join(sorted({at.topic for at in asked}))) from None
            if any(at not in found for at in asked):
                raise errors.GroupLoadInProgressError(group)
            return found

        found = await self._ask_admin(question) if asked else {}
        return {at: Mark(mark.offset, mark.metadata or "") for at, mark in found.items() if mark.offset >= 0}

    async def ends(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Behind the last committed record."""
        asked = list(partitions)
        return await self._ask(lambda consumer: consumer.end_offsets(asked))

    async def begins(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The first offset that is still there."""
        asked = list(partitions)
        return await self._ask(lambda consumer: consumer.beginning_offsets(asked))

    async def offset_at(self, at: TopicPartition, milliseconds: int) -> int | None:
        """The first offset of this time (since 1970) or later; None when there is none."""
        found = await self._ask(lambda consumer: consumer.offsets_for_times({at: milliseconds}))
        there = found.get(at)
        return None if there is None else int(there.offset)

    async def topics(self, access: Access | None = None, *, with_config: bool = True) -> dict[Topic, Found]:
        """Ours, or those of another access to the same brokers."""
        return await self._ask_admin(lambda admin: look(admin, access or self._access, with_config=with_config))

    async def brokers(self) -> int:
        """How many the cluster counts in."""
        return await self._ask_admin(brokers_alive)

    async def delete_before(self, offsets: Mapping[TopicPartition, int]) -> None:
        """DeleteRecords: what lies below each offset goes."""
        asked = {at: RecordsToDelete(before_offset=offset) for at, offset in offsets.items()}
        names = ", ".join(sorted({at.topic for at in offsets}))
        await self._ask_admin(lambda admin: admin.delete_records(asked), "Delete", names)

    async def find_transactions(self, transactional_id: str) -> None:
        """Ask for the coordinator of a transactional id, which needs not exist."""
        await self._ask_admin(lambda admin: admin.find_coordinator(transactional_id, _TRANSACTION))

    async def groups(self, names: Sequence[str]) -> Mapping[str, tuple[str, int]]:
        """State and number of members of each group. One at a time: aiokafka 0.14 reads the answer of version 3 as if
        it were of version 2, and a second group in it makes it drop the connection.
        """
        found: dict[str, tuple[str, int]] = {}
        for asked in names:
            for response in await self._ask_admin(lambda admin, name=asked: admin.describe_consumer_groups([name])):  # type: ignore[misc]
                for _code, name, state, _kind, _protocol, members, *_ in response.groups:
                    found[name] = (state, len(members))
        return found

    # --- asking

    async def _ask_admin(
        self, question: Callable[[AIOKafkaAdminClient], Awaitable[T]], operation: str = "", name: str = ""
    ) -> T:
        async with self._lock:
            if self._admin is None:
                self._admin = await self._started(self._access.admin())
            return await self._answer(_patiently(question, self._admin), operation, name)

    async def _ask(self, question: Callable[[AIOKafkaConsumer], Awaitable[T]]) -> T:
        async with self._lock:
            if self._consumer is None:
                self._consumer = await self._started(self._access.consumer(isolation_level="read_committed"))
            return await self._answer(question(self._consumer))

    async def _started(self, client: C) -> C:
        try:
            async with asyncio.timeout(_QUESTION_SECONDS):
                await client.start()
        except FAULTS as error:
            await _close(client)
            raise unavailable(self._access.where, error) from None
        except BaseException:
            await _close(client)
            raise
        return client

    async def _answer(self, answer: Awaitable[T], operation: str = "", name: str = "") -> T:
        try:
            async with asyncio.timeout(_QUESTION_SECONDS):
                return await answer
        except _FAULTS as error:
            await self.close()  # what failed once is made anew
            if isinstance(error, AttributeError):
                text = f"{self._access.where}: a partition is missing, or has no leader now"
                raise LogUnavailable(text) from None
            raise unavailable(self._access.where, error, operation, name) from None


async def _close(client: AIOKafkaAdminClient | AIOKafkaConsumer) -> None:
    stop = client.close if isinstance(client, AIOKafkaAdminClient) else client.stop
    await stop_or_cut(stop(), client._client, _CLOSE_SECONDS)


async def _patiently(question: Callable[[AIOKafkaAdminClient], Awaitable[T]], admin: AIOKafkaAdminClient) -> T:
    """Ask again while the cluster makes or moves what it keeps of groups: a new one makes it at the first question."""
    while True:
        try:
            return await question(admin)
        except _NOT_YET:
            await asyncio.sleep(_AGAIN_SECONDS)
