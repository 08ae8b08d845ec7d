"""The log on Apache Kafka: any number of processes of every role, joined by nothing else, behind the Log port.

In charge of putting the parts together for one process: who appends (`producing`), who owns which shard
(`membership`), what a shard does (`router_shard`, `delivery_shard`), and what people read (`history`). It promises what
the port promises, on topics that `topics.py` finds safe: an append that returned is on two nodes at least; a stale
owner commits nothing; what is unconsumed is never removed. Next: `mail/log/kafka/access.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import structlog
from aiokafka import TopicPartition

from mail.log import Backlog, Condition, Down, Joined, LogNotReady, LogUnavailable, LogUnusable, Tend, TendDelivery
from mail.log.kafka.access import FAULTS, Access, make_access
from mail.log.kafka.committing import Committing
from mail.log.kafka.delivery_shard import KafkaDeliveryShard
from mail.log.kafka.history import DELIVERY, ROUTER, KafkaHistorian
from mail.log.kafka.history import KafkaHistory as KafkaHistory
from mail.log.kafka.lanes import Lanes
from mail.log.kafka.leftovers import expect_leftovers
from mail.log.kafka.lookout import Lookout
from mail.log.kafka.marks import Mark
from mail.log.kafka.membership import Membership
from mail.log.kafka.presence import Presence
from mail.log.kafka.producing import Producing
from mail.log.kafka.reaching import explain, reach_any
from mail.log.kafka.router_shard import KafkaRouterShard
from mail.log.kafka.transacting import Transactor
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, ShardCounts, place
from mail.message import QueueId
from mail.record import Accepted, Attempted, Event, Pending, Record
from mail.settings import LogSettings

log = structlog.get_logger()

# For what is past its final dot, before the group gives the shard to somebody else. All members wait for the slowest
# drain, and one hears of the rebalance a heartbeat later than another: with 8 s and 3 s mail stood for up to 12 s.
_DRAIN_SECONDS = 6.0
_OPEN_AGAIN_SECONDS = 2.0  # while brokers or topics are missing at start
_PURGE_LEAST = 1  # records below a mark, before it is worth a request
# The next hop has the message, and only the router waits for the report. Fewer requests: docs/performance-kafka.md.
_REPORT_LINGER_MS = 10


class KafkaLog:
    """The Log port. `dedicated(tenant)` says whether a tenant's messages have topics of their own; `tenant` is the one
    whose own topics these are. Raises LogUnusable for certificates that cannot be read, ValueError for the URL.
    """

    def __init__(
        self, settings: LogSettings, dedicated: Callable[[str], bool] = lambda _tenant: False, tenant: str = ""
    ) -> None:
        self._settings = settings
        self._access: Access = make_access(settings, tenant)
        self._dedicated = dedicated
        self._producing = Producing(self._access, settings)
        self._reporting = Producing(self._access, settings, linger_ms=_REPORT_LINGER_MS)
        self._lanes = Lanes(self._access, settings)
        self._lookout = Lookout(self._access)
        self._presence = Presence(
            self._lookout, self._access, settings, gone=self._hold, back=self._release, grown=self._share_out
        )
        self._router: Membership[KafkaRouterShard] | None = None
        self._delivery: Membership[KafkaDeliveryShard] | None = None
        self._committing: Committing | None = None
        self._watching: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._not_ready = "the log is being opened"  # why, until it is
        self._oldest: datetime | None = None

    @property
    def counts(self) -> ShardCounts:
        return self._presence.counts

    # --- life

    async def start(self) -> None:
        """Where brokers or topics are missing the log is Down, and opened as soon as they are there."""
        expect_leftovers()
        if self._access.certificates is not None:
            self._renewing = asyncio.create_task(self._access.certificates.watch(), name="log-certificates")
        try:
            await self._open()
        except LogNotReady as error:
            self._wait_for(error)
            self._opening = asyncio.create_task(self._open_later(), name="log-opening")
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        try:
            await reach_any(self._access)
            await self._presence.look()
            await self._producing.start()
            await self._reporting.start()
        except BaseException as error:
            await self._let_go()
            if isinstance(error, (LogUnavailable, *FAULTS)):
                raise LogNotReady(await explain(self._access, error)) from None
            raise
        self._watching = asyncio.create_task(self._presence.watch(), name="log-topics")
        self._opened.set()

    async def _open_later(self) -> None:
        while not self._opened.is_set():
            await asyncio.sleep(_OPEN_AGAIN_SECONDS)
            try:
                await self._open()
                log.info("log is usable", url=self._access.where)
            except LogUnusable as error:
                self._wait_for(error)
            except Exception:  # at the next turn
                log.exception("log not opened")

    def _wait_for(self, error: LogUnusable) -> None:
        if self._not_ready != str(error):
            log.error("log cannot be used yet", reason=str(error))
        self._not_ready = str(error)

    async def _is_open(self, stop: asyncio.Event) -> bool:
        """Wait until the log is open; False when `stop` was set before."""
        waiting = {asyncio.ensure_future(event.wait()) for event in (self._opened, stop)}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        return self._opened.is_set()

    async def close(self) -> None:
        for task in (self._opening, self._watching, self._renewing):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._opening = self._watching = self._renewing = None
        await self._let_go()
        await self._lanes.close()
        await self._access.silent.close()

    async def _let_go(self) -> None:
        await self._producing.close()
        await self._reporting.close()
        await self._lookout.close()

    def _hold(self) -> None:
        """The topics are gone, and what shards remember of them counts no more."""
        for member in (self._router, self._delivery):
            if member is not None:
                member.hold()

    def _share_out(self) -> None:
        if self._delivery is not None:
            self._delivery.look_again()

    async def _release(self) -> None:
        await asyncio.gather(self._producing.look_again(), self._reporting.look_again())
        for member in (self._router, self._delivery):
            if member is not None:
                member.release()

    def _refuse_missing(self) -> None:
        if not self._opened.is_set():
            raise LogUnavailable(self._not_ready)
        if self._presence.trouble is not None:
            raise LogUnavailable(self._presence.trouble)

    async def purge(self) -> None:
        """DeleteRecords below the committed marks, of the shards this process owns. Of `events` the brokers remove
        whole segments, by age; what is past its age and still there is no longer shown.
        """
        self._refuse_missing()
        self._oldest = datetime.now(UTC) - self._settings.events_kept
        before: dict[TopicPartition, int] = {}
        for role, topics, owned in (
            (ROUTER, (ACCEPTED, ATTEMPTED), self._router),
            (DELIVERY, (DISPATCHED,), self._delivery),
        ):
            if owned is None or not owned.numbers:
                continue
            partitions = [self._access.partition(t, n) for t in topics for n in sorted(owned.numbers)]
            marks = await self._lookout.marks(self._access.group(role), partitions)
            mine = {at: mark.low for at, mark in marks.items()}
            begins = await self._lookout.begins(mine)
            before |= {at: low for at, low in mine.items() if low - begins.get(at, low) >= _PURGE_LEAST}
        if before:
            await self._lookout.delete_before(before)
            log.debug("purged", partitions=len(before))

    # --- Appender

    async def append(self, record: Record) -> None:
        if isinstance(record, Accepted) and self._dedicated(record.message.tenant):
            await self._lanes.append(record.message.tenant, record)
        else:
            self._refuse_missing()
            await self._producing.append(record, place(record, self.counts))

    async def prepare(self, tenant: str, /) -> None:
        if self._dedicated(tenant):
            await self._lanes.prepare(tenant)

    def condition(self, tenant: str = "", /) -> Condition:
        if not self._opened.is_set():
            return Down(self._not_ready)
        if tenant and self._dedicated(tenant):
            return self._lanes.condition(tenant)
        if self._presence.trouble is not None:
            return Down(self._presence.trouble)
        reporting = self._reporting.condition()
        return reporting if isinstance(reporting, Down) else self._producing.condition()

    def worker_condition(self) -> Condition:
        condition = self.condition()
        outages = [self._presence.outage]
        if self._router is not None:
            outages += [shard.outage for shard in self._router.shards]
        if self._committing is not None:
            outages.append(self._committing.outage)
        for member in (self._router, self._delivery):
            if member is not None:
                outages += [member.refused, *(shard.refused for shard in member.shards)]
        outage = next(filter(None, outages), None)
        return condition if outage is None or isinstance(condition, Down) else Down(outage)

    def warnings(self) -> Sequence[str]:
        return self._access.certificates.warnings() if self._access.certificates is not None else ()

    async def reload(self) -> None:
        if self._access.certificates is not None:
            await self._access.certificates.reload()

    async def _report(self, record: Attempted) -> None:
        self._refuse_missing()
        await self._reporting.append(record, place(record, self.counts))

    # --- RouterLog

    async def route(self, tend: Tend, stop: asyncio.Event, joined: Joined | None = None) -> None:
        if not await self._is_open(stop):
            return
        member: Membership[KafkaRouterShard]
        self._router = member = Membership(
            self._access,
            role=ROUTER,
            lead=self._access.topic(ACCEPTED),
            session_seconds=self._settings.session_timeout.total_seconds(),
            make=lambda number: self._router_shard(number, lambda: member.is_member),
            drain_first=False,
            drain_seconds=_DRAIN_SECONDS,
        )
        if self._presence.trouble is not None:
            member.hold()
        await member.own(tend, stop, joined)

    def _router_shard(self, number: int, may_open: Callable[[], bool]) -> KafkaRouterShard:
        return KafkaRouterShard(
            self._access,
            number,
            counts=lambda: self.counts,
            transactor=Transactor(
                self._access,
                f"{self._access.group(ROUTER)}-{number}",
                self._access.group(ROUTER),
                self._settings.append_timeout.total_seconds(),
            ),
            committed=self._marks_of_router,
            consumed=self._producing.routed,
            may_open=may_open,
        )

    async def _marks_of_router(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        marks = await self._lookout.marks(self._access.group(ROUTER), partitions)
        return {at: marks[at].low if at in marks else None for at in partitions}

    # --- DeliveryLog

    async def deliver(self, tend: TendDelivery, stop: asyncio.Event, joined: Joined | None = None) -> None:
        if not await self._is_open(stop):
            return
        member: Membership[KafkaDeliveryShard]
        self._committing = committing = Committing(
            lambda: [shard for shard in member.shards if member.holds(shard.partition)],
            lambda marks: member.commit(marks),
        )

        def make(number: int) -> KafkaDeliveryShard:
            return KafkaDeliveryShard(
                self._access,
                number,
                append=self._report,
                committed=self._mark_of_delivery,
                finished=committing.finished,
                may_begin=lambda: member.is_member and not committing.is_behind,
            )

        self._delivery = member = Membership(
            self._access,
            role=DELIVERY,
            lead=self._access.topic(DISPATCHED),
            session_seconds=self._settings.session_timeout.total_seconds(),
            make=make,
            drain_first=True,
            drain_seconds=_DRAIN_SECONDS,
            settle=committing.settle,
        )
        if self._presence.trouble is not None:
            member.hold()
        running = asyncio.create_task(committing.run(), name="marks")
        owning = asyncio.create_task(member.own(tend, stop, joined), name="owning")
        try:
            await asyncio.wait({running, owning}, return_when=asyncio.FIRST_COMPLETED)
            await (running if running.done() else owning)  # neither ends without the other, unless by a bug
        finally:
            owning.cancel()
            await asyncio.gather(owning, return_exceptions=True)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _mark_of_delivery(self, at: TopicPartition) -> Mark | None:
        return (await self._lookout.marks(self._access.group(DELIVERY), [at])).get(at)

    # --- HistoryLog

    def _historian(self) -> KafkaHistorian:
        self._refuse_missing()
        return KafkaHistorian(self._access, self._lookout, self.counts, self._oldest)

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        async for event in self._historian().history(queue_id):
            yield event

    async def open_lines(self, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        async for line in self._historian().open_lines(queue_id):
            yield line

    async def oldest_unconsumed(self) -> datetime | None:
        return await self._historian().oldest_unconsumed()

    async def waiting_inputs(self, queue_id: QueueId) -> Sequence[Accepted]:
        return await self._historian().waiting_inputs(queue_id)

    async def backlog(self) -> Backlog:
        self._refuse_missing()
        appended = self._producing.appended
        backlog = await self._historian().backlog()
        self._producing.measured(backlog.accepted, appended)
        await self._lanes.measure(self._lookout)
        return backlog
