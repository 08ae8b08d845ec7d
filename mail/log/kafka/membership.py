"""Who owns which shard: one member of a consumer group, subscribed to the group's lead topic, reading nothing.

In charge of one process's share of a role's shards: it starts the tending of what the group gives it and ends it when
the group takes it back or `stop` is set. Two manners. *Drain first* (delivery): before a rebalance everything is told
to go, and the group waits, at most `drain_seconds`, until all have gone; so two owners never work at the same time.
*Keep going* (router): only what the next assignment does not have is told to go, after it; a stale owner is fenced,
so nothing pauses that stays. Never here: records, marks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError
from aiokafka.protocol.commit import OffsetCommitRequest

from mail.log import LogUnavailable, LogUnusable, ShardLost
from mail.log.kafka.access import CLIENT_ERRORS, Access, error_message, is_refusal
from mail.log.kafka.liveness import MemberLiveness, leave_group
from mail.log.stopped import STOPPED_SHARDS
from mail.telemetry.log import REBALANCES, SHARDS, SHARDS_OWNED

logger = structlog.get_logger()

HEARTBEAT_SECONDS = 1.0  # how members hear of a rebalance: who hears of it first stands still until the last has
REBALANCE_SECONDS = 20.0  # for every member to come back; one that does not is left out
_MAX_POLL_INTERVAL_MS = 86_400_000  # a member that reads nothing is not idle (aiokafka issue 1187)
_POLL_SECONDS = 1.0
_RESTART_SECONDS = 1.0  # before a shard that was fenced, and is still ours, is tended again
_UNREADABLE_RETRY_SECONDS = 60.0  # before a shard with a record that cannot be read is looked at again
_COMMIT_SECONDS = 3.0  # less than a drain: what is not committed then is made again by the next owner
_PAUSE_CHECK_SECONDS = 0.25  # between two looks at whether this process slept


class Shard(Protocol):
    @property
    def number(self) -> int: ...

    @property
    def refused(self) -> str | None:
        """Why the brokers' authorizer lets nothing be read."""
        ...

    def revoke(self) -> None:
        """From now on `take` raises ShardLost, one that waits included."""
        ...

    def abandon(self) -> None:
        """As `lose`, and nothing it has come to is committed."""
        ...

    async def close(self) -> None:
        """Nobody tends it any more."""
        ...


S = TypeVar("S", bound=Shard)


class Membership(Generic[S], ConsumerRebalanceListener):
    """Runs once: `own`. `settle` is called before a shard is closed, to commit what it has come to."""

    def __init__(
        self,
        access: Access,
        *,
        role: str,
        lead_topic: str,
        session_seconds: float,
        open_shard: Callable[[int], S],
        drain_before_rebalance: bool,
        drain_seconds: float,
        commit_offsets: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._access = access
        self._role = role
        self._lead_topic = lead_topic
        self._session_seconds = session_seconds
        self._open_shard = open_shard
        self._drain_before_rebalance = drain_before_rebalance
        self._drain_seconds = drain_seconds
        self._commit_offsets = commit_offsets
        self._process: Callable[[S], Awaitable[None]] | None = None
        self._on_ready: Callable[[], None] | None = None
        self._assigned: frozenset[int] = frozenset()
        self._shards: dict[int, S] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._consumer: AIOKafkaConsumer | None = None
        self.refused: str | None = None  # by the brokers' authorizer
        join_seconds = REBALANCE_SECONDS + 5.0  # a join waits at the coordinator until every member has come
        self._liveness = MemberLiveness(session_seconds, join_seconds, asyncio.get_running_loop().time)
        self._generation = OffsetCommitRequest.DEFAULT_GENERATION_ID  # that gave us the shards we process
        self._stopping = False
        self._suspended = False
        self._changed = asyncio.Event()  # what is assigned, whether we stop, or are held

    @property
    def shards(self) -> Collection[S]:
        """Those that are tended now."""
        return self._shards.values()

    @property
    def assigned(self) -> frozenset[int]:
        return self._assigned

    @property
    def is_member(self) -> bool:
        """Whether the group counts us in: it has heard us within a session. After a long sleep it has to be asked."""
        is_counted_in = self._current_generation() != OffsetCommitRequest.DEFAULT_GENERATION_ID
        return is_counted_in and self._liveness.is_alive

    def suspend(self) -> None:
        """Put all shards down, and tend none until `release`: their topics are gone. We stay a member."""
        self._suspended = True
        for shard in self.shards:
            shard.abandon()

    def resume(self) -> None:
        self._suspended = False
        self._changed.set()

    def refresh_metadata(self) -> None:
        """The lead topic has more partitions: the group is to hear of them now."""
        if self._consumer is not None:
            self._consumer._client.force_metadata_update()

    def is_assigned(self, at: TopicPartition) -> bool:
        """Whether a mark of this partition is ours to commit."""
        return self._consumer is not None and at in self._consumer.assignment()

    def _current_generation(self) -> int:
        coordinator = getattr(self._consumer, "_coordinator", None)
        return OffsetCommitRequest.DEFAULT_GENERATION_ID if coordinator is None else int(coordinator.generation)

    async def run(
        self, process: Callable[[S], Awaitable[None]], stop: asyncio.Event, on_ready: Callable[[], None] | None = None
    ) -> None:
        """As `RouterLog.route` and `DeliveryLog.deliver` say."""
        self._process = process
        self._on_ready = on_ready
        stopped = asyncio.ensure_future(stop.wait())
        polling: asyncio.Task[None] | None = None
        watching = asyncio.create_task(self._detect_pauses(), name=f"sleep-{self._role}")
        try:
            polling = asyncio.create_task(self._run_member(), name=f"member-{self._role}")
            ends: set[asyncio.Future[Any]] = {stopped, polling, self._failed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            self._stopping = True
            self._changed.set()
            await self._stop_shards(frozenset(self._tasks), None if stop.is_set() else 0.0)
            for ended in (self._failed, polling):
                if ended.done():
                    ended.result()
        finally:
            self._stopping = True
            self._changed.set()
            stopped.cancel()
            watching.cancel()
            if polling is not None:
                polling.cancel()
                await asyncio.gather(polling, return_exceptions=True)
            await self._stop_shards(frozenset(self._tasks), 0.0)
            if self._failed.done():
                self._failed.exception()
            SHARDS_OWNED.labels(self._role).set(0)
            await self._leave()

    def _new_consumer(self) -> AIOKafkaConsumer:
        # The assignor keeps its memory in its class: each member gets a class of its own.
        assignor = type("StickyAssignor", (StickyPartitionAssignor,), {})
        return self._access.consumer(
            self._session_seconds / 2,  # a coordinator that hangs is given up, and the next one found, within a session
            group_id=self._access.group(self._role),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=(assignor,),
            session_timeout_ms=int(self._session_seconds * 1000),
            heartbeat_interval_ms=int(min(HEARTBEAT_SECONDS, self._session_seconds / 3) * 1000),
            rebalance_timeout_ms=int(REBALANCE_SECONDS * 1000),
            max_poll_interval_ms=_MAX_POLL_INTERVAL_MS,
        )

    async def _run_member(self) -> None:
        """Be a member, and become one anew when this one is a member in name only."""
        while True:
            consumer = self._consumer = self._new_consumer()
            await self._poll(consumer)
            logger.error("membership has died, made anew", role=self._role)
            self._assigned = frozenset()
            self._changed.set()
            await self._stop_shards(frozenset(self._tasks), self._drain_seconds)
            await self._leave(is_hung=True)

    async def _leave(self, *, is_hung: bool = False) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await leave_group(consumer, is_hung=is_hung)

    async def _poll(self, consumer: AIOKafkaConsumer) -> None:
        """Join, and stay inside the consumer, where errors of the group come up; return when it is dead."""
        backoff = _POLL_SECONDS
        while True:
            try:
                await consumer.start()
                self._liveness.attach(consumer)
                break
            except CLIENT_ERRORS as error:
                logger.warning("group cannot be joined yet", role=self._role, reason=error_message(error))
                await asyncio.sleep(backoff)
        consumer.subscribe([self._lead_topic], listener=self)
        while not self._liveness.has_failed(consumer):
            try:
                polling = consumer.getmany(timeout_ms=int(_POLL_SECONDS * 1000), max_records=1)
                with suppress(TimeoutError):  # in a rebalance it returns after it, if ever, and nobody would look
                    await asyncio.wait_for(polling, 2 * _POLL_SECONDS)
            except CLIENT_ERRORS as error:
                why = error_message(error)
                if why != self.refused:  # or every second
                    logger.warning("group has a problem", role=self._role, reason=why)
                self.refused = why if is_refusal(error) else None
                await asyncio.sleep(backoff)

    async def _detect_pauses(self) -> None:
        """Who slept for longer than a session (SIGSTOP, a paused machine) has lost all shards, and is told so a moment
        after it begins to work again: what it had taken and not begun is for others now.
        """
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            await asyncio.sleep(_PAUSE_CHECK_SECONDS)
            slept = clock() - began
            if slept > self._session_seconds:
                logger.warning("slept for longer than a session", role=self._role, seconds=round(slept, 1))
                for shard in self.shards:
                    shard.revoke()

    # --- what the group says

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        if self._drain_before_rebalance and revoked:
            self._assigned = frozenset()
            self._changed.set()
            await self._stop_shards(frozenset(self._tasks), self._drain_seconds)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        assert self._consumer is not None
        if assigned:
            self._consumer.pause(*assigned)  # this consumer is a member, not a reader
        self._assigned = frozenset(partition.partition for partition in assigned)
        self._generation = self._current_generation()
        self.refused = None
        self._liveness.record_heartbeat()
        self._changed.set()
        REBALANCES.labels(self._role).inc()
        on_ready, self._on_ready = self._on_ready, None
        if on_ready is not None:
            on_ready()
        SHARDS_OWNED.labels(self._role).set(len(self._assigned))
        SHARDS.labels(self._role).set(len(self._consumer.partitions_for_topic(self._lead_topic) or ()))
        logger.info("shards assigned", role=self._role, shards=sorted(self._assigned))
        for number in frozenset(self._tasks) - self._assigned:
            if number in self._shards:
                self._shards[number].revoke()  # and goes by itself
        for number in self._assigned:
            if number not in self._tasks and not self._stopping:
                self._tasks[number] = asyncio.create_task(
                    self._process_shard(number), name=f"{self._role}-shard-{number}"
                )

    async def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit as this member, in this generation. Raises ShardLost when the group has gone on without it,
        LogUnavailable.
        """
        if self._consumer is None:
            raise ShardLost("we have left the group")
        # A member that was left out commits without a generation, and an empty group takes that: an old mark over a
        # newer one.
        if self._current_generation() != self._generation:
            raise ShardLost("the group has gone on without us")
        try:
            await asyncio.wait_for(self._consumer.commit(offsets), _COMMIT_SECONDS)
        except (CommitFailedError, IllegalStateError) as error:
            raise ShardLost(error_message(error)) from None
        except CLIENT_ERRORS as error:
            raise LogUnavailable(error_message(error, "Read")) from None

    # --- tending

    async def _process_shard(self, number: int) -> None:
        """Tend the shard as long as the group says that it is ours."""
        assert self._process is not None
        try:
            while await self._wait_until_runnable(number):
                shard = self._shards[number] = self._open_shard(number)
                pause = _RESTART_SECONDS
                try:
                    await self._process(shard)
                except ShardLost:
                    pass  # told to go, or fenced by another owner
                except LogUnusable as error:
                    # One record that cannot be read stops its shard, and neither the others nor the process: ending it
                    # would only start it again. It is looked at again, for whoever mends it.
                    logger.error("shard stopped", role=self._role, shard=number, reason=str(error))  # noqa: TRY400
                    STOPPED_SHARDS.stop(self._role, number, str(error))
                    pause = _UNREADABLE_RETRY_SECONDS
                finally:
                    try:
                        if self._commit_offsets is not None:
                            await self._commit_offsets()
                    finally:
                        await shard.close()
                if number in self._assigned and not self._stopping:
                    await self._back_off(number, pause)
                STOPPED_SHARDS.resume(self._role, number)
        except Exception as error:
            if not self._failed.done():
                self._failed.set_exception(error)
        finally:
            STOPPED_SHARDS.resume(self._role, number)
            del self._tasks[number]
            self._shards.pop(number, None)
            if number in self._assigned and not self._stopping and not self._failed.done():
                # Taken back and given again while it was going: the next owner is this process too.
                self._tasks[number] = asyncio.create_task(
                    self._process_shard(number), name=f"{self._role}-shard-{number}"
                )

    async def _wait_until_runnable(self, number: int) -> bool:
        while self._suspended and number in self._assigned and not self._stopping:
            self._changed.clear()
            await self._changed.wait()
        return number in self._assigned and not self._stopping

    async def _back_off(self, number: int, seconds: float) -> None:
        """Wait before tending again, but not when there is nothing to wait for any more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while number in self._assigned and not self._stopping:
                    self._changed.clear()
                    await self._changed.wait()

    async def _stop_shards(self, numbers: frozenset[int], seconds: float | None) -> None:
        """Tell them to go and wait for `seconds` (None: as long as it takes); who has not gone then is cancelled."""
        tasks = {self._tasks[number] for number in numbers if number in self._tasks}
        if not tasks:
            return
        for number in numbers:
            if number in self._shards:
                self._shards[number].revoke()
        late = tasks
        if seconds != 0.0:
            _, late = await asyncio.wait(tasks, timeout=seconds)
            if late:
                logger.warning("drain over", role=self._role, shards=len(late))
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=5.0)
