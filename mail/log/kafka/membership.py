"""Consumer group member of one process for one role: it gets shards from the group and reads no records.

The member is subscribed to the group's lead topic and processes the shards of the assigned partitions until they are
revoked or `stop` is set. *Drain before rebalance* (delivery): all shards are revoked before a rebalance, and the group
waits up to `drain_seconds` until they have drained; owners overlap only if the first was paused or cut off for longer
than log.session_timeout, and its open attempts may then be made twice. Otherwise (router) only shards that the new
assignment lacks are revoked, because a stale owner is fenced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError

from mail.log import LogUnavailable, LogUnusable, ShardLost
from mail.log.kafka.access import CLIENT_ERRORS, Access, error_message, is_refusal
from mail.log.kafka.aiokafka_compat.clients import client_of
from mail.log.kafka.aiokafka_compat.member import generation_of, leave_group, member_options
from mail.log.kafka.liveness import MemberLiveness
from mail.log.kafka.timeouts import TIMEOUTS
from mail.log.stopped import STOPPED_SHARDS
from mail.tasks import cancel_tasks
from mail.telemetry.log import REBALANCES, SHARDS, SHARDS_OWNED

logger = structlog.get_logger()

# Request time-out as a share of the session timeout, so that a coordinator that hangs can be replaced in time.
COORDINATOR_SHARE = 0.5


class Shard(Protocol):
    @property
    def number(self) -> int: ...

    @property
    def authorization_error(self) -> str | None:
        """Why the brokers' authorizer refuses reads."""
        ...

    def revoke(self) -> None:
        """Make `read` raise ShardLost, also in a caller that waits in it."""
        ...

    def discard(self) -> None:
        """As `revoke`, but its uncommitted progress is not committed."""
        ...

    async def close(self) -> None:
        """The shard has no owner any more."""
        ...


S = TypeVar("S", bound=Shard)


class Membership(Generic[S], ConsumerRebalanceListener):
    """`run` is called once. `commit_offsets` is called before a shard is closed."""

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
        self.authorization_error: str | None = None  # by the brokers' authorizer
        self._liveness = MemberLiveness(session_seconds, asyncio.get_running_loop().time)
        self._generation: int | None = None  # of the assignment that is being processed
        self._stopping = False
        self._suspended = False
        self._changed = asyncio.Event()  # the assignment, `_stopping` or `_suspended`

    @property
    def shards(self) -> Collection[S]:
        """The shards that are processed now."""
        return self._shards.values()

    @property
    def assigned(self) -> frozenset[int]:
        return self._assigned

    @property
    def is_member(self) -> bool:
        """Whether the group still counts this process as a member. After a pause only the group knows."""
        return generation_of(self._consumer) is not None and self._liveness.is_alive

    def suspend(self) -> None:
        """Discard all shards and process none until `resume`, because their topics are missing; stay a member."""
        self._suspended = True
        for shard in self.shards:
            shard.discard()

    def resume(self) -> None:
        self._suspended = False
        self._changed.set()
        self.refresh_metadata()

    def refresh_metadata(self) -> None:
        """The lead topic was recreated, or has more partitions: let the group assign them now."""
        if self._consumer is not None:
            client_of(self._consumer).force_metadata_update()

    def is_assigned(self, tp: TopicPartition) -> bool:
        """Whether this process may commit the partition's offset."""
        return self._consumer is not None and tp in self._consumer.assignment()

    async def run(
        self, process: Callable[[S], Awaitable[None]], stop: asyncio.Event, on_ready: Callable[[], None] | None = None
    ) -> None:
        """As `RouterLog.own_router_shards` and `DeliveryLog.own_delivery_shards`."""
        self._process = process
        self._on_ready = on_ready
        stopped = asyncio.ensure_future(stop.wait())
        pause_task = asyncio.create_task(self._detect_pauses(), name=f"pauses-{self._role}")
        member_task = asyncio.create_task(self._run_member(), name=f"member-{self._role}")
        try:
            ends: set[asyncio.Future[Any]] = {stopped, member_task, self._failed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            self._stopping = True
            self._changed.set()
            await self._stop_shards(None if stop.is_set() else 0.0)
            for future in (self._failed, member_task):
                if future.done():
                    future.result()
        finally:
            self._stopping = True
            self._changed.set()
            await cancel_tasks(stopped, pause_task, member_task)
            await self._stop_shards(0.0)
            if self._failed.done():
                self._failed.exception()
            SHARDS_OWNED.labels(self._role).set(0)
            await self._leave()

    def _new_consumer(self) -> AIOKafkaConsumer:
        return self._access.consumer(
            self._session_seconds * COORDINATOR_SHARE,
            group_id=self._access.group(self._role),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(self._session_seconds * 1000),
            heartbeat_interval_ms=int(min(TIMEOUTS.heartbeat_seconds, self._session_seconds / 3) * 1000),
            rebalance_timeout_ms=int(TIMEOUTS.rebalance_seconds * 1000),
            **member_options(),
        )

    async def _run_member(self) -> None:
        """Join the group, and rejoin with a new consumer when this one has failed."""
        while True:
            consumer = self._consumer = self._new_consumer()
            failure = await self._poll(consumer)
            logger.error("group membership failed: shards revoked, rejoining", role=self._role, error=failure)
            self._assigned = frozenset()
            self._changed.set()
            await self._stop_shards(self._drain_seconds)
            await self._leave(is_hung=True)

    async def _leave(self, *, is_hung: bool = False) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await leave_group(consumer, is_hung=is_hung)

    async def _poll(self, consumer: AIOKafkaConsumer) -> str:
        """Join, and poll the consumer, which raises the group's errors; return why it has failed."""
        while True:
            try:
                await consumer.start()
                self._liveness.attach(consumer)
                break
            except CLIENT_ERRORS as error:
                logger.warning("joining the group failed, retrying", role=self._role, error=error_message(error))
                await asyncio.sleep(TIMEOUTS.poll_seconds)
        consumer.subscribe([self._lead_topic], listener=self)
        while (failure := self._liveness.failure(consumer)) is None:
            try:
                async with asyncio.timeout(2 * TIMEOUTS.poll_seconds):
                    await consumer.getmany(timeout_ms=int(TIMEOUTS.poll_seconds * 1000), max_records=1)
            except TimeoutError:  # during a rebalance it may never return
                pass
            except CLIENT_ERRORS as error:
                reason = error_message(error)
                if reason != self.authorization_error:  # otherwise logged every second
                    logger.warning("polling the group failed, retrying", role=self._role, error=reason)
                self.authorization_error = reason if is_refusal(error) else None
                await asyncio.sleep(TIMEOUTS.poll_seconds)
        return failure

    async def _detect_pauses(self) -> None:
        """A process that paused for longer than log.session_timeout (SIGSTOP, suspended machine) has lost all shards.
        They are revoked here, before dispatches that have not started are delivered twice.
        """
        clock = asyncio.get_running_loop().time
        while True:
            start = clock()
            await asyncio.sleep(TIMEOUTS.pause_check_seconds)
            if (seconds := round(clock() - start, 1)) > self._session_seconds:
                event = "process paused for longer than log.session_timeout, shards revoked"
                logger.warning(event, role=self._role, seconds=seconds)
                for shard in self.shards:
                    shard.revoke()

    # --- callbacks of the group

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        if self._drain_before_rebalance and revoked:
            self._assigned = frozenset()
            self._changed.set()
            await self._stop_shards(self._drain_seconds)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        assert self._consumer is not None
        if assigned:
            self._consumer.pause(*assigned)  # this consumer reads no records
        self._assigned = frozenset(partition.partition for partition in assigned)
        self._generation = generation_of(self._consumer)
        self.authorization_error = None
        self._liveness.record_heartbeat()
        self._changed.set()
        REBALANCES.labels(self._role).inc()
        on_ready, self._on_ready = self._on_ready, None
        if on_ready is not None:
            on_ready()
        SHARDS_OWNED.labels(self._role).set(len(self._assigned))
        SHARDS.labels(self._role).set(len(self._consumer.partitions_for_topic(self._lead_topic) or ()))
        logger.info("shards assigned", role=self._role, shards=sorted(self._assigned))
        for number, shard in self._shards.items():
            if number not in self._assigned:
                shard.revoke()  # its task ends by itself
        for number in self._assigned:
            if number not in self._tasks and not self._stopping:
                self._start_shard(number)

    async def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit as this member, in this generation. Raises ShardLost when the member was excluded, LogUnavailable."""
        if self._consumer is None:
            raise ShardLost("this process has left the group")
        # aiokafka would commit without a generation, and an old offset could replace a newer one.
        if generation_of(self._consumer) != self._generation:
            raise ShardLost("the group no longer counts this process as a member")
        try:
            async with asyncio.timeout(TIMEOUTS.offset_commit_seconds):
                await self._consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            raise ShardLost(error_message(error)) from None
        except CLIENT_ERRORS as error:
            raise LogUnavailable(error_message(error, "Read")) from None

    # --- processing

    def _start_shard(self, number: int) -> None:
        name = f"{self._role}-shard-{number}"
        self._tasks[number] = asyncio.create_task(self._process_shard(number), name=name)

    def _should_process(self, number: int) -> bool:
        """Whether the shard is assigned and this process does not stop."""
        return number in self._assigned and not self._stopping

    async def _process_shard(self, number: int) -> None:
        """Process the shard as long as it is assigned."""
        assert self._process is not None
        try:
            while await self._wait_until_runnable(number):
                shard = self._shards[number] = self._open_shard(number)
                pause = TIMEOUTS.retry_seconds
                try:
                    await self._process(shard)
                except ShardLost:
                    pass  # revoked, or fenced by another owner
                except LogUnusable as error:
                    # An unreadable record stops its shard, but not the process, which would only start again. The shard
                    # is retried, in case an operator has repaired the log.
                    logger.error("shard stopped, its mail waits", role=self._role, shard=number, error=str(error))  # noqa: TRY400
                    STOPPED_SHARDS.record(self._role, number, str(error))
                    pause = TIMEOUTS.unreadable_retry_seconds
                finally:
                    try:
                        if self._commit_offsets is not None:
                            await self._commit_offsets()
                    finally:
                        await shard.close()
                await self._back_off(number, pause)
                STOPPED_SHARDS.resume(self._role, number)
        except Exception as error:  # boundary of the task: `run` raises it
            if not self._failed.done():
                self._failed.set_exception(error)
        finally:
            STOPPED_SHARDS.resume(self._role, number)
            del self._tasks[number]
            self._shards.pop(number, None)
            if self._should_process(number) and not self._failed.done():  # assigned again while it was stopping
                self._start_shard(number)

    async def _wait_until_runnable(self, number: int) -> bool:
        while self._suspended and self._should_process(number):
            self._changed.clear()
            await self._changed.wait()
        return self._should_process(number)

    async def _back_off(self, number: int, seconds: float) -> None:
        """Wait before the shard is processed again, as long as it is assigned."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._should_process(number):
                    self._changed.clear()
                    await self._changed.wait()

    async def _stop_shards(self, seconds: float | None) -> None:
        """Revoke all shards and wait for `seconds` (None: without limit); then cancel the rest."""
        running = set(self._tasks.values())
        for shard in self.shards:
            shard.revoke()
        if running and seconds != 0.0:
            _, running = await asyncio.wait(running, timeout=seconds)
            if running:
                shards = sorted(number for number, task in self._tasks.items() if task in running)
                logger.warning("drain timed out", role=self._role, shards_cancelled=shards)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=TIMEOUTS.stop_seconds)
