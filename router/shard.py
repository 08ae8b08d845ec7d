"""The loop of one router shard: read inputs, look up DNS answers and headers, decide, commit.

Outputs and input offsets are committed atomically; after an unconfirmed commit the queue in memory is discarded and the
shard is rewound and replayed. A message or delivery for which the decision raises an exception is quarantined
(`router/quarantine.py`). A batch processes attempts first, because they end active deliveries, then due deliveries,
then new messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from time import monotonic, perf_counter

import structlog

from mail.backoff import backoff
from mail.directory import Directory
from mail.log import Damaged, Input, LogUnavailable, LogUnusable, RouterShard, ShardLost
from mail.message import DeliveryId, QueueId, Spooled, queue_id_of
from mail.outcome import Failed
from mail.record import (
    Accepted,
    Attempted,
    Bounced,
    DeliveryAttempted,
    Discarded,
    Event,
    FailedByRouter,
    QueueEntry,
    Record,
    Routed,
    WaitCause,
    Waiting,
    state_name,
)
from mail.reply import Reply
from mail.spool import Spool, SpoolUnavailable
from mail.tasks import is_set_within
from router.accounting import BatchAccounting
from router.batch_budget import BatchBudget
from router.clock_step import ClockStep, due_now
from router.content_placement import ContentPlacement
from router.damage import keep_bytes, quarantine_inputs, repair_queue, unusable_keys
from router.decide import Due, Trigger, content_to_quote, decide, entry_of
from router.dedup import RecentQueueIds
from router.mail_queue import QUARANTINE_REASON, MailQueue
from router.metrics import Metrics
from router.quarantine import quarantine
from router.resolve import BatchResolver, domains_to_resolve, read_headers
from router.routing_context import RoutingContext, RoutingPolicy

logger = structlog.get_logger()

IDLE_WAIT = timedelta(seconds=1)  # an idle shard updates its gauges this often
BACKOFF_SECONDS = 0.1  # before a failed batch is repeated, doubled each time
BACKOFF_SECONDS_MAX = 5.0
LOGGED_ADDRESSES_MAX = 20  # addresses in one log line
YIELD_INTERVAL = 200  # records decided or logged between two yields to the event loop


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class RouterResources:
    """Dependencies of the loops of all shards of the process."""

    policy: RoutingPolicy
    batch_size: int
    spool: Spool
    directory: Directory
    batch_resolver: BatchResolver
    metrics: Metrics
    now: Callable[[], datetime] = field(default=utc_now)
    monotonic: Callable[[], float] = field(default=monotonic)


class ShardState:
    """State of a shard's loop that survives a replay of the queue."""

    def __init__(self, shard: RouterShard, router: RouterResources) -> None:
        self.shard = shard
        self.router = router
        self.content_placement = ContentPlacement(router.spool)
        self.budget = BatchBudget(router.batch_size)
        self.recent_queue_ids = RecentQueueIds()
        self.clock_step = ClockStep()


async def process_shard(shard: RouterShard, router: RouterResources, stop: asyncio.Event) -> None:
    """Route the shard's mail until `read` raises ShardLost; `stop` ends the wait after a failed batch."""
    state = ShardState(shard, router)
    pauses = backoff(BACKOFF_SECONDS, BACKOFF_SECONDS_MAX)
    must_rewind = one_by_one = False
    while True:
        try:
            if must_rewind:
                await shard.rewind()
                must_rewind = False
            if one_by_one:
                await _route_one_by_one(state)
                one_by_one = False
            queue = await _replay(state)
            await _correct_retry_times(state, queue)
            logger.debug("shard ready", shard=shard.number, deliveries=len(queue))
            wait = timedelta(0)
            while True:
                wait = await _route_batch(state, queue, wait)
                pauses = backoff(BACKOFF_SECONDS, BACKOFF_SECONDS_MAX)
        except ShardLost:
            return
        except (LogUnavailable, SpoolUnavailable) as error:
            pause = next(pauses)
            logger.warning("routing paused", shard=shard.number, retry_seconds=pause, error=str(error))
        except LogUnusable:
            raise
        except Exception:  # a bug must not stop the mail of the shard
            pause = next(pauses)
            logger.exception("batch failed: its records and due deliveries are decided one by one", shard=shard.number)
            one_by_one = True
        must_rewind = True  # the queue in memory may contain uncommitted records
        if await is_set_within(stop, pause):
            return


async def _replay(state: ShardState) -> MailQueue:
    queue = MailQueue()
    damaged: list[Damaged] = []
    async for batch in state.shard.replay():
        for entry in batch:
            if isinstance(entry, Damaged):
                damaged.append(entry)
            else:
                queue.apply(entry)
    context = RoutingContext(state.router.policy, state.router.directory.snapshot)
    repairs = await repair_queue(state.shard, queue, damaged, context, state.router.now())
    if repairs:
        await state.shard.commit(repairs, ())
    if keys := unusable_keys(state.shard, damaged):
        await state.shard.remove_keys(keys)
    state.router.metrics.shard_replayed(state.shard.number, queue)
    return queue


async def _correct_retry_times(state: ShardState, queue: MailQueue) -> None:
    """Set retry times that are too far ahead to now (`router/clock_step.py`)."""
    router = state.router
    corrections = list(due_now(queue.entries(), router.policy.retry, router.now()))
    if corrections:
        logger.warning(
            "retry times too far ahead, deliveries are due now",
            shard=state.shard.number,
            deliveries=len(corrections),
            reason="the clock was ahead, or router.retry_delays was shortened",
        )
    for start in range(0, len(corrections), router.batch_size):
        batch = _Batch(queue, router.now())
        batch.outputs += corrections[start : start + router.batch_size]
        for entry in batch.outputs:
            queue.apply(entry)
        await _commit(state, batch, (), perf_counter())


async def _route_batch(state: ShardState, queue: MailQueue, wait: timedelta) -> timedelta:
    """Process one batch, from reading to the commit. Returns how long the next batch may wait for inputs."""
    router = state.router
    if state.clock_step.is_back(router.now(), router.monotonic()):
        await _correct_retry_times(state, queue)
    inputs = await _read_inputs(state, wait)
    due_count = await _decide_and_commit(state, queue, inputs, router.batch_size)
    if due_count == router.batch_size:
        return timedelta(0)  # more may be due
    next_due = queue.next_due()
    return IDLE_WAIT if next_due is None else min(max(next_due - router.now(), timedelta(0)), IDLE_WAIT)


async def _read_inputs(state: ShardState, wait: timedelta) -> list[Input]:
    """Read the inputs of one commit, in steps, until the batch budget is used."""
    budget, router = state.budget, state.router
    inputs: list[Input] = []
    snapshot = router.directory.snapshot
    budget.reset()
    while limit := budget.read_limit:
        try:
            more = await state.shard.read(limit, timedelta(0) if inputs else wait)
        except ShardLost:
            if not inputs:
                raise
            break  # finish the inputs read so far
        for entry in more:
            if not isinstance(entry.record, Damaged):
                budget.add(entry.record, snapshot, router.policy.alias_depth)
        inputs += more
        if len(more) < limit:
            break
    return inputs


async def _route_one_by_one(state: ShardState) -> None:
    """After a bug: decide and commit each trigger separately, and quarantine the messages and deliveries of those that
    raise. Handles at least as many triggers as the failed batch contained.
    """
    shard, router = state.shard, state.router
    queue = await _replay(state)
    for _ in range(2 * router.batch_size):
        inputs = await shard.read(1, timedelta(0))
        due_ids: list[DeliveryId] = []
        try:
            if await _decide_and_commit(state, queue, inputs, 0 if inputs else 1, due_ids) + len(inputs):
                continue
            return
        except (ShardLost, LogUnavailable, LogUnusable, SpoolUnavailable):
            raise
        except Exception as bug:  # of one message or delivery: the others are routed
            records = [entry.record for entry in inputs if not isinstance(entry.record, Damaged)]
            triggers = [*records, *map(Due, due_ids)]
            queue = await _replay(state)
            batch = _Batch(queue, router.now())
            batch.outputs += keep_bytes(shard, queue, inputs, router.now())
            reason = f"{QUARANTINE_REASON} ({type(bug).__name__}); see its log"
            for trigger in triggers:
                outputs = batch.quarantine(trigger, reason, router.policy)
                logger.exception(_quarantine_event(outputs), shard=shard.number, **_ids_of(trigger))
            await _commit(state, batch, inputs, perf_counter())


async def _decide_and_commit(
    state: ShardState,
    queue: MailQueue,
    inputs: Sequence[Input],
    due_max: int,
    due_ids: list[DeliveryId] | None = None,
) -> int:
    """Decide on `inputs` and due deliveries, and commit. Returns how many were due, at most `due_max`; their ids
    are added to `due_ids` before the decisions.
    """
    started = perf_counter()
    router = state.router
    now = router.now()
    batch = _Batch(queue, now)
    damaged = [entry for entry in inputs if isinstance(entry.record, Damaged)]
    if damaged:
        batch.outputs += await quarantine_inputs(state.shard, queue, damaged, router.policy, now)
    attempted = [entry.record for entry in inputs if isinstance(entry.record, Attempted)]
    accepted = [entry.record for entry in inputs if isinstance(entry.record, Accepted)]
    router.metrics.add_consumed(accepted=len(accepted), attempted=len(attempted))
    accepted = _without_duplicates(accepted, state.recent_queue_ids, batch.accounting)
    context = RoutingContext(router.policy, router.directory.snapshot)
    for report in attempted:
        await batch.decide(report, context)
    due = [Due(delivery_id) for delivery_id in queue.due(now, router.policy.limits, due_max)] if due_max else []
    if due_ids is not None:
        due_ids += [trigger.delivery_id for trigger in due]
    context = await _look_up(queue, accepted, due, context, router, now)
    triggers: list[Trigger] = [*due, *accepted]
    for trigger in triggers:
        await batch.decide(trigger, context)
    if batch.outputs or inputs:
        await _commit(state, batch, inputs, started)
    else:
        router.metrics.add_batch(state.shard.number, batch.accounting, queue, 0.0)
    return len(due)


async def _commit(state: ShardState, batch: _Batch, inputs: Sequence[Input], started: float) -> None:
    shard, router = state.shard, state.router
    await state.content_placement.offload(batch.outputs, batch.queue)
    await shard.commit(batch.outputs, inputs)
    state.recent_queue_ids.add(
        (e.record.message.queue_id for e in inputs if isinstance(e.record, Accepted)), router.now()
    )
    try:
        router.metrics.add_batch(shard.number, batch.accounting, batch.queue, perf_counter() - started)
        await _log_events(batch.outputs)
    except Exception:  # the commit is done: an error in metrics or logging must not repeat the batch
        logger.exception("metrics or log lines of a committed batch failed", shard=shard.number)
    batch.queue.prune()


async def _look_up(
    queue: MailQueue,
    accepted: Sequence[Accepted],
    due: Sequence[Due],
    context: RoutingContext,
    router: RouterResources,
    now: datetime,
) -> RoutingContext:
    """`context` with the DNS answers and headers that the decisions on these triggers need."""
    entries = [entry for trigger in due if (entry := queue.entry(trigger.delivery_id)) is not None]
    domains = domains_to_resolve(accepted, entries, context)
    if domains:
        context = replace(context, answers=await router.batch_resolver.resolve(domains))
    triggers: list[Trigger] = [*due, *(trigger for trigger in accepted if isinstance(trigger.content, Spooled))]
    quoted = dict(
        source for trigger in triggers if (source := content_to_quote(queue, trigger, context, now)) is not None
    )
    if quoted:
        context = replace(context, headers=await read_headers(router.spool, quoted))
    return context


class _Batch:
    """The outputs of one batch, applied to the queue as they are decided."""

    def __init__(self, queue: MailQueue, now: datetime) -> None:
        self.queue = queue
        self._now = now
        self.outputs: list[Record] = []
        self.accounting = BatchAccounting()

    async def decide(self, trigger: Trigger, context: RoutingContext) -> None:
        queue = self.queue
        entry = entry_of(queue, trigger)
        first = len(self.outputs)
        for record in decide(queue, trigger, context, self._now):
            queue.apply(record)
            self.outputs.append(record)
            if len(self.outputs) % YIELD_INTERVAL == 0:
                await asyncio.sleep(0)
        self.accounting.add_decision(trigger, entry, self.outputs[first:], self._now)

    def quarantine(self, trigger: Trigger, reason: str, policy: RoutingPolicy) -> Sequence[Record]:
        """Quarantine the message or delivery of a trigger for which `decide` raised. Returns the records of it."""
        entry = entry_of(self.queue, trigger)
        first = len(self.outputs)
        for record in quarantine(self.queue, trigger, reason, policy, self._now):
            self.queue.apply(record)
            self.outputs.append(record)
        try:
            self.accounting.add_decision(trigger, entry, self.outputs[first:], self._now)
        except Exception:  # the bug may be in the accounting, whose metrics then lack this decision
            logger.exception("decision not counted in the ledger")
        return self.outputs[first:]


def _without_duplicates(
    accepted: Sequence[Accepted], recent: RecentQueueIds, accounting: BatchAccounting
) -> list[Accepted]:
    """`accepted` without duplicate appends, in this batch or recently committed."""
    first: dict[QueueId, Accepted] = {}
    for record in accepted:
        queue_id = record.message.queue_id
        if queue_id in recent or queue_id in first:
            accounting.duplicates += 1
        else:
            first[queue_id] = record
    return list(first.values())


def _ids_of(trigger: Trigger) -> dict[str, str]:
    """The fields of a log line that identify the message or delivery of a trigger."""
    match trigger:
        case Accepted():
            return {"queue_id": trigger.message.queue_id}
        case Attempted() | Due():
            return {"queue_id": queue_id_of(trigger.delivery_id), "delivery_id": trigger.delivery_id}


def _quarantine_event(outputs: Sequence[Record]) -> str:
    """The log line about what `quarantine` did."""
    states = [record.state for record in outputs if isinstance(record, QueueEntry)]
    if any(isinstance(state, Waiting) and state.cause is WaitCause.HELD for state in states):
        return "quarantined, delivery held"
    if outputs:
        return "attempt report not processed, undelivered recipients deferred"
    return "duplicate or outdated input not processed"


async def _log_events(outputs: Sequence[Record]) -> None:
    """Log one line per new delivery and per DSN, the latter with the last reply that caused it."""
    failure: Reply | None = None
    for number, record in enumerate(outputs, 1):
        if number % YIELD_INTERVAL == 0:
            await asyncio.sleep(0)
        if not isinstance(record, Event):
            continue
        detail = record.detail
        if isinstance(detail, Routed):
            logger.info(
                "routed",
                queue_id=record.queue_id,
                delivery_id=detail.delivery_id,
                site=detail.route.site,
                recipients=len(detail.recipients),
                **({} if detail.waiting is None else {"state": state_name(detail.waiting)}),
            )
        elif isinstance(detail, DeliveryAttempted | FailedByRouter):
            replies = (outcome.reply for outcome in reversed(detail.outcomes) if isinstance(outcome, Failed))
            failure = next(replies, failure)
        elif isinstance(detail, Bounced | Discarded):
            logger.info(
                "bounced" if isinstance(detail, Bounced) else "discarded",
                queue_id=record.queue_id,
                to=[str(address) for address in detail.recipients[:LOGGED_ADDRESSES_MAX]],
                recipients=len(detail.recipients),
                **({} if failure is None else {"reply": str(failure)}),
                **({"dsn": detail.dsn} if isinstance(detail, Bounced) else {"reason": detail.reason.value}),
            )
