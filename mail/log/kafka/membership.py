"""Who owns which shard: one member of a consumer group, subscribed to the group's lead topic, reading nothing.

In charge of one process's share of a role's shards: it starts the tending of what the group gives it and ends it when
the group takes it back or `stop` is set. Two manners. *Drain first* (delivery): before a rebalance everything is told
to go, and the group waits, at most `drain_seconds`, until all have gone; so two owners never work at the same time.
*Keep going* (router): only what the next assignment does not have is told to go, after it; a stale owner is fenced,
so nothing pauses that stays. Never here: records, marks. Next: `mail/log/kafka/hearing.py`.
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
from mail.log.kafka.access import FAULTS, Access, is_refusal, reason
from mail.log.kafka.hearing import Hearing, leave
from mail.log.stopped import STOPPED_SHARDS
from mail.telemetry.log import REBALANCES, SHARDS, SHARDS_OWNED

log = structlog.get_logger()

HEARTBEAT_SECONDS = 1.0  # how members hear of a rebalance: who hears of it first stands still until the last has
REBALANCE_SECONDS = 20.0  # for every member to come back; one that does not is left out
_A_DAY_MS = 86_400_000  # a member that reads nothing is not idle (aiokafka issue 1187)
_POLL_SECONDS = 1.0
_AGAIN_SECONDS = 1.0  # before a shard that was fenced, and is still ours, is tended again
_STOPPED_SECONDS = 60.0  # before a shard with a record that cannot be read is looked at again
_COMMIT_SECONDS = 3.0  # less than a drain: what is not committed then is made again by the next owner
_BEAT_SECONDS = 0.25  # between two looks at whether this process slept


class Shard(Protocol):
    @property
    def number(self) -> int: ...

    @property
    def refused(self) -> str | None:
        """Why the brokers' authorizer lets nothing be read."""
        ...

    def lose(self) -> None:
        """From now on `take` raises ShardLost, one that waits included."""
        ...

    def forget(self) -> None:
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
        lead: str,
        session_seconds: float,
        make: Callable[[int], S],
        drain_first: bool,
        drain_seconds: float,
        settle: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._access = access
        self._role = role
        self._lead = lead
        self._session_seconds = session_seconds
        self._make = make
        self._drain_first = drain_first
        self._drain_seconds = drain_seconds
        self._settle = settle
        self._tend: Callable[[S], Awaitable[None]] | None = None
        self._joined: Callable[[], None] | None = None
        self._assigned: frozenset[int] = frozenset()
        self._shards: dict[int, S] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._consumer: AIOKafkaConsumer | None = None
        self.refused: str | None = None  # by the brokers' authorizer
        join_seconds = REBALANCE_SECONDS + 5.0  # a join waits at the coordinator until every member has come
        self._hearing = Hearing(session_seconds, join_seconds, asyncio.get_running_loop().time)
        self._generation = OffsetCommitRequest.DEFAULT_GENERATION_ID  # that gave us the shards we tend
        self._stopping = False
        self._held = False
        self._changed = asyncio.Event()  # what is assigned, whether we stop, or are held

    @property
    def shards(self) -> Collection[S]:
        """Those that are tended now."""
        return self._shards.values()

    @property
    def numbers(self) -> frozenset[int]:
        return self._assigned

    @property
    def is_member(self) -> bool:
        """Whether the group counts us in: it has heard us within a session. After a long sleep it has to be asked."""
        is_counted_in = self._generation_now() != OffsetCommitRequest.DEFAULT_GENERATION_ID
        return is_counted_in and self._hearing.is_fresh

    def hold(self) -> None:
        """Put all shards down, and tend none until `release`: their topics are gone. We stay a member."""
        self._held = True
        for shard in self.shards:
            shard.forget()

    def release(self) -> None:
        self._held = False
        self._changed.set()

    def look_again(self) -> None:
        """The lead topic has more partitions: the group is to hear of them now."""
        if self._consumer is not None:
            self._consumer._client.force_metadata_update()

    def holds(self, at: TopicPartition) -> bool:
        """Whether a mark of this partition is ours to commit."""
        return self._consumer is not None and at in self._consumer.assignment()

    def _generation_now(self) -> int:
        coordinator = getattr(self._consumer, "_coordinator", None)
        return OffsetCommitRequest.DEFAULT_GENERATION_ID if coordinator is None else int(coordinator.generation)

    async def own(
        self, tend: Callable[[S], Awaitable[None]], stop: asyncio.Event, joined: Callable[[], None] | None = None
    ) -> None:
        """As `RouterLog.route` and `DeliveryLog.deliver` say."""
        self._tend = tend
        self._joined = joined
        stopped = asyncio.ensure_future(stop.wait())
        polling: asyncio.Task[None] | None = None
        watching = asyncio.create_task(self._watch_sleep(), name=f"sleep-{self._role}")
        try:
            polling = asyncio.create_task(self._belong(), name=f"member-{self._role}")
            ends: set[asyncio.Future[Any]] = {stopped, polling, self._failed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            self._stopping = True
            self._changed.set()
            await self._let_go(frozenset(self._tasks), None if stop.is_set() else 0.0)
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
            await self._let_go(frozenset(self._tasks), 0.0)
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
            max_poll_interval_ms=_A_DAY_MS,
        )

    async def _belong(self) -> None:
        """Be a member, and become one anew when this one is a member in name only."""
        while True:
            consumer = self._consumer = self._new_consumer()
            await self._poll(consumer)
            log.error("membership has died, made anew", role=self._role)
            self._assigned = frozenset()
            self._changed.set()
            await self._let_go(frozenset(self._tasks), self._drain_seconds)
            await self._leave(hangs=True)

    async def _leave(self, *, hangs: bool = False) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await leave(consumer, hangs=hangs)

    async def _poll(self, consumer: AIOKafkaConsumer) -> None:
        """Join, and stay inside the consumer, where errors of the group come up; return when it is dead."""
        backoff = _POLL_SECONDS
        while True:
            try:
                await consumer.start()
                self._hearing.listen(consumer)
                break
            except FAULTS as error:
                log.warning("group cannot be joined yet", role=self._role, reason=reason(error))
                await asyncio.sleep(backoff)
        consumer.subscribe([self._lead], listener=self)
        while not self._hearing.is_over(consumer):
            try:
                polling = consumer.getmany(timeout_ms=int(_POLL_SECONDS * 1000), max_records=1)
                with suppress(TimeoutError):  # in a rebalance it returns after it, if ever, and nobody would look
                    await asyncio.wait_for(polling, 2 * _POLL_SECONDS)
            except FAULTS as error:
                why = reason(error)
                if why != self.refused:  # or every second
                    log.warning("group has a problem", role=self._role, reason=why)
                self.refused = why if is_refusal(error) else None
                await asyncio.sleep(backoff)

    async def _watch_sleep(self) -> None:
        """Who slept for longer than a session (SIGSTOP, a paused machine) has lost all shards, and is told so a moment
        after it begins to work again: what it had taken and not begun is for others now.
        """
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            await asyncio.sleep(_BEAT_SECONDS)
            slept = clock() - began
            if slept > self._session_seconds:
                log.warning("slept for longer than a session", role=self._role, seconds=round(slept, 1))
                for shard in self.shards:
                    shard.lose()

    # --- what the group says

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        if self._drain_first and revoked:
            self._assigned = frozenset()
            self._changed.set()
            await self._let_go(frozenset(self._tasks), self._drain_seconds)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        assert self._consumer is not None
        if assigned:
            self._consumer.pause(*assigned)  # this consumer is a member, not a reader
        self._assigned = frozenset(partition.partition for partition in assigned)
        self._generation = self._generation_now()
        self.refused = None
        self._hearing.heard()
        self._changed.set()
        REBALANCES.labels(self._role).inc()
        joined, self._joined = self._joined, None
        if joined is not None:
            joined()
        SHARDS_OWNED.labels(self._role).set(len(self._assigned))
        SHARDS.labels(self._role).set(len(self._consumer.partitions_for_topic(self._lead) or ()))
        log.info("shards assigned", role=self._role, shards=sorted(self._assigned))
        for number in frozenset(self._tasks) - self._assigned:
            if number in self._shards:
                self._shards[number].lose()  # and goes by itself
        for number in self._assigned:
            if number not in self._tasks and not self._stopping:
                self._tasks[number] = asyncio.create_task(self._tend_one(number), name=f"{self._role}-shard-{number}")

    async def commit(self, marks: dict[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit as this member, in this generation. Raises ShardLost when the group has gone on without it,
        LogUnavailable.
        """
        if self._consumer is None:
            raise ShardLost("we have left the group")
        # A member that was left out commits without a generation, and an empty group takes that: an old mark over a
        # newer one.
        if self._generation_now() != self._generation:
            raise ShardLost("the group has gone on without us")
        try:
            await asyncio.wait_for(self._consumer.commit(marks), _COMMIT_SECONDS)
        except (CommitFailedError, IllegalStateError) as error:
            raise ShardLost(reason(error)) from None
        except FAULTS as error:
            raise LogUnavailable(reason(error, "Read")) from None

    # --- tending

    async def _tend_one(self, number: int) -> None:
        """Tend the shard as long as the group says that it is ours."""
        assert self._tend is not None
        try:
            while await self._is_to_be_tended(number):
                shard = self._shards[number] = self._make(number)
                pause = _AGAIN_SECONDS
                try:
                    await self._tend(shard)
                except ShardLost:
                    pass  # told to go, or fenced by another owner
                except LogUnusable as error:
                    # One record that cannot be read stops its shard, and neither the others nor the process: ending it
                    # would only start it again. It is looked at again, for whoever mends it.
                    log.error("shard stopped", role=self._role, shard=number, reason=str(error))  # noqa: TRY400
                    STOPPED_SHARDS.stop(self._role, number, str(error))
                    pause = _STOPPED_SECONDS
                finally:
                    try:
                        if self._settle is not None:
                            await self._settle()
                    finally:
                        await shard.close()
                if number in self._assigned and not self._stopping:
                    await self._rest(number, pause)
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
                self._tasks[number] = asyncio.create_task(self._tend_one(number), name=f"{self._role}-shard-{number}")

    async def _is_to_be_tended(self, number: int) -> bool:
        while self._held and number in self._assigned and not self._stopping:
            self._changed.clear()
            await self._changed.wait()
        return number in self._assigned and not self._stopping

    async def _rest(self, number: int, seconds: float) -> None:
        """Wait before tending again, but not when there is nothing to wait for any more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while number in self._assigned and not self._stopping:
                    self._changed.clear()
                    await self._changed.wait()

    async def _let_go(self, numbers: frozenset[int], seconds: float | None) -> None:
        """Tell them to go and wait for `seconds` (None: as long as it takes); who has not gone then is cancelled."""
        tasks = {self._tasks[number] for number in numbers if number in self._tasks}
        if not tasks:
            return
        for number in numbers:
            if number in self._shards:
                self._shards[number].lose()
        late = tasks
        if seconds != 0.0:
            _, late = await asyncio.wait(tasks, timeout=seconds)
            if late:
                log.warning("drain over", role=self._role, shards=len(late))
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=5.0)
