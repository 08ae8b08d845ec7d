"""Tends one shard: take inputs, look up the facts, decide, commit. The loop has no opinion about mail.

It promises the law of DESIGN section 2: outputs and input marks go in one commit, and the state in memory never
survives a commit that was not confirmed: it is thrown away, the shard rewound and replayed. A bug that one fact brings
out stops neither the shard nor the process: that fact is put aside (`router/putaside.py`). The order within a batch:
attempts first (they make room), then what is due, then new mail. New mail beyond a site's window is spooled
(`router/bodies.py`). Leaving it in `accepted` for a second instead was tried: it saved little and was not kept, since
it makes one busy site everybody's delay. Next: `router/decide.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from time import perf_counter

import structlog

from mail.directory import Directory
from mail.log import Entry, LogUnavailable, LogUnusable, RouterShard, ShardLost
from mail.message import DeliveryId, QueueId, Spooled
from mail.outcome import Failed
from mail.record import Accepted, Attempted, Bounced, Event, Record, Refused, Routed, Tried
from mail.reply import Reply
from mail.service import stopped_within
from mail.spool import Spool, SpoolUnavailable
from router.bodies import Bodies
from router.decide import Due, Fact, decide, quotes
from router.mailqueue import QUARANTINE, MailQueue
from router.metrics import Metrics
from router.portion import Portion
from router.putaside import put_aside
from router.recent import Recent
from router.resolve import Questions, domains_in_question, read_headers
from router.tally import Tally
from router.world import Policy, World

log = structlog.get_logger()

IDLE_WAIT = timedelta(seconds=1)  # an idle shard looks up this often: gauges, stop
BACKOFF_FIRST = 0.1  # seconds before a failed batch is tried again, doubled each time
BACKOFF_MAX = 5.0
SHOWN_MAX = 20  # addresses in one line of the log
TURN = 200  # records decided on, or told of, before others have their turn


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Tools:
    """What a shard's loop works with."""

    policy: Policy
    batch: int
    spool: Spool
    directory: Directory
    questions: Questions
    metrics: Metrics
    now: Callable[[], datetime] = field(default=utc_now)


class _Ours:
    """What a shard's loop keeps while it owns the shard, whatever becomes of the queue in memory."""

    def __init__(self, shard: RouterShard, tools: Tools) -> None:
        self.shard = shard
        self.tools = tools
        self.bodies = Bodies(tools.spool)
        self.portion = Portion(tools.batch)
        self.recent = Recent()


async def tend(shard: RouterShard, tools: Tools, stop: asyncio.Event) -> None:
    """Route the shard's mail until it is lost or `stop` is set."""
    ours = _Ours(shard, tools)
    backoff = BACKOFF_FIRST
    must_rewind = bug = False
    while True:
        try:
            if must_rewind:
                await shard.rewind()
                must_rewind = False
            if bug:
                await _route_singly(ours)
                bug = False
            queue = await _replay(ours)
            log.debug("shard ready", shard=shard.number, deliveries=len(queue))
            wait = timedelta(0)
            while True:
                wait = await _route_batch(ours, queue, wait)
                backoff = BACKOFF_FIRST
        except ShardLost:
            return
        except (LogUnavailable, SpoolUnavailable) as error:
            log.warning("routing pauses", shard=shard.number, seconds=backoff, reason=str(error))
        except LogUnusable:
            raise
        except Exception:
            log.exception("a bug in this batch: its facts are decided one by one", shard=shard.number)
            bug = True
        must_rewind = True  # the queue in memory may know what the log does not
        if await stopped_within(stop, backoff):
            return
        backoff = min(2 * backoff, BACKOFF_MAX)


async def _replay(ours: _Ours) -> MailQueue:
    queue = MailQueue()
    async for batch in ours.shard.replay():
        for line in batch:
            queue.apply(line)
    ours.tools.metrics.opened(ours.shard.number, queue)
    return queue


async def _route_batch(ours: _Ours, queue: MailQueue, wait: timedelta) -> timedelta:
    """One batch, from the inputs to the commit. Returns how long the next one may wait for inputs."""
    tools = ours.tools
    entries = await _take(ours, wait)
    due = await _decide_and_commit(ours, queue, entries, tools.batch)
    if due == tools.batch:
        return timedelta(0)  # more may be due
    next_due = queue.next_due()
    return IDLE_WAIT if next_due is None else min(max(next_due - tools.now(), timedelta(0)), IDLE_WAIT)


async def _take(ours: _Ours, wait: timedelta) -> list[Entry[Accepted] | Entry[Attempted]]:
    """The inputs of one commit: a few at a time, until what follows from them is enough."""
    portion, tools = ours.portion, ours.tools
    entries: list[Entry[Accepted] | Entry[Attempted]] = []
    snapshot = tools.directory.snapshot
    portion.begin()
    while step := portion.step:
        try:
            more = await ours.shard.take(step, timedelta(0) if entries else wait)
        except ShardLost:
            if not entries:
                raise
            break  # what is in hand is finished
        for entry in more:
            portion.add(entry.record, snapshot, tools.policy.alias_depth)
        entries += more
        if len(more) < step:
            break
    return entries


async def _route_singly(ours: _Ours) -> None:
    """After a bug: one fact at a time, each in a commit of its own; one that cannot be decided on is put aside. As many
    as may have been in the batch that failed, then the usual way again.
    """
    shard, tools = ours.shard, ours.tools
    queue = await _replay(ours)
    for _ in range(2 * tools.batch):
        entries = await shard.take(1, timedelta(0))
        due: list[DeliveryId] = []
        try:
            if await _decide_and_commit(ours, queue, entries, 0 if entries else 1, due) + len(entries):
                continue
            return
        except (ShardLost, LogUnavailable, LogUnusable, SpoolUnavailable):
            raise
        except Exception as bug:
            facts = [*(entry.record for entry in entries), *map(Due, due)]
            log.exception("put aside", shard=shard.number, facts=[_name_of(fact) for fact in facts])
            queue = await _replay(ours)
            batch = _Batch(queue, tools.now())
            for fact in facts:
                batch.put_aside(fact, f"{QUARANTINE} ({type(bug).__name__}); see its log", tools.policy)
            await _commit(ours, batch, entries, perf_counter())


async def _decide_and_commit(
    ours: _Ours,
    queue: MailQueue,
    entries: Sequence[Entry[Accepted] | Entry[Attempted]],
    due_max: int,
    picked: list[DeliveryId] | None = None,
) -> int:
    """From the inputs to the commit. Returns how many were due, at most `due_max`; `picked` learns which, before
    they are decided on.
    """
    began = perf_counter()
    tools = ours.tools
    now = tools.now()
    batch = _Batch(queue, now)
    attempted = [entry.record for entry in entries if isinstance(entry.record, Attempted)]
    accepted = [entry.record for entry in entries if isinstance(entry.record, Accepted)]
    tools.metrics.consumed(accepted=len(accepted), attempted=len(attempted))
    accepted = _without_repeats(accepted, ours.recent, batch.tally)
    world = World(tools.policy, tools.directory.snapshot)
    for report in attempted:
        await batch.decide(report, world)
    due = [Due(delivery_id) for delivery_id in queue.due(now, tools.policy.limits, due_max)] if due_max else []
    if picked is not None:
        picked += [fact.delivery_id for fact in due]
    world = await _look_up(queue, accepted, due, world, tools, now)
    facts: list[Fact] = [*due, *accepted]
    for fact in facts:
        await batch.decide(fact, world)
    if batch.outputs or entries:
        await _commit(ours, batch, entries, began)
    else:
        tools.metrics.committed(ours.shard.number, batch.tally, queue, 0.0)
    return len(due)


async def _commit(
    ours: _Ours, batch: _Batch, entries: Sequence[Entry[Accepted] | Entry[Attempted]], began: float
) -> None:
    shard, tools = ours.shard, ours.tools
    await ours.bodies.settle(batch.outputs, batch.queue)
    await shard.commit(batch.outputs, entries)
    ours.recent.add((e.record.message.queue_id for e in entries if isinstance(e.record, Accepted)), tools.now())
    try:  # it is done, whatever goes wrong in telling of it
        tools.metrics.committed(shard.number, batch.tally, batch.queue, perf_counter() - began)
        await _log_history(batch.outputs)
    except Exception:
        log.exception("not told", shard=shard.number)
    batch.queue.tidy()


async def _look_up(
    queue: MailQueue, accepted: Sequence[Accepted], due: Sequence[Due], world: World, tools: Tools, now: datetime
) -> World:
    """The world with all that the decisions on these facts may ask for."""
    lines = [line for fact in due if (line := queue.line(fact.delivery_id)) is not None]
    domains = domains_in_question(accepted, lines, world)
    if domains:
        world = replace(world, answers=await tools.questions.ask(domains))
    facts: list[Fact] = [*due, *(fact for fact in accepted if isinstance(fact.content, Spooled))]
    sources = dict(source for fact in facts if (source := quotes(queue, fact, world, now)) is not None)
    if sources:
        world = replace(world, headers=await read_headers(tools.spool, sources))
    return world


class _Batch:
    """The outputs of one batch, folded into the queue as they are decided."""

    def __init__(self, queue: MailQueue, now: datetime) -> None:
        self.queue = queue
        self._now = now
        self.outputs: list[Record] = []
        self.tally = Tally()

    async def decide(self, fact: Fact, world: World) -> None:
        queue = self.queue
        line = None if isinstance(fact, Accepted) else queue.line(fact.delivery_id)
        first = len(self.outputs)
        for record in decide(queue, fact, world, self._now):
            queue.apply(record)
            self.outputs.append(record)
            if len(self.outputs) % TURN == 0:
                await asyncio.sleep(0)
        self.tally.note(fact, line, self.outputs[first:], self._now)

    def put_aside(self, fact: Fact, reason: str, policy: Policy) -> None:
        """What `decide` could not do."""
        line = None if isinstance(fact, Accepted) else self.queue.line(fact.delivery_id)
        first = len(self.outputs)
        for record in put_aside(self.queue, fact, reason, policy, self._now):
            self.queue.apply(record)
            self.outputs.append(record)
        with suppress(Exception):  # perhaps that is where the bug is
            self.tally.note(fact, line, self.outputs[first:], self._now)


def _without_repeats(accepted: Sequence[Accepted], recent: Recent, tally: Tally) -> list[Accepted]:
    """Those that were not taken a moment ago, or twice in this batch: the same append, made twice."""
    first: dict[QueueId, Accepted] = {}
    for fact in accepted:
        queue_id = fact.message.queue_id
        if queue_id in recent or queue_id in first:
            tally.duplicates += 1
        else:
            first[queue_id] = fact
    return list(first.values())


def _name_of(fact: Fact) -> str:
    return fact.message.queue_id if isinstance(fact, Accepted) else fact.delivery_id


async def _log_history(outputs: Sequence[Record]) -> None:
    """One line per delivery that was made, and per report, with the last reply it is about."""
    failure: Reply | None = None
    for number, record in enumerate(outputs, 1):
        if number % TURN == 0:
            await asyncio.sleep(0)
        if not isinstance(record, Event):
            continue
        what = record.what
        if isinstance(what, Routed):
            log.info(
                "routed",
                queue_id=record.queue_id,
                delivery_id=what.delivery_id,
                site=what.route.site,
                recipients=len(what.recipients),
                **({} if what.waits is None else {"waits": what.waits.why.value}),
            )
        elif isinstance(what, Tried | Refused):
            failure = next((each.reply for each in reversed(what.outcomes) if isinstance(each, Failed)), failure)
        elif isinstance(what, Bounced):
            log.info(
                "bounced",
                queue_id=record.queue_id,
                to=[str(address) for address in what.recipients[:SHOWN_MAX]],
                recipients=len(what.recipients),
                **({} if failure is None else {"reply": str(failure)}),
                **({"no_report": "the sender is <>"} if what.dsn is None else {"dsn": what.dsn}),
            )
