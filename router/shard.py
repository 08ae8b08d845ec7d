"""Tends one shard: take inputs, look up the facts, decide, commit. The loop has no opinion about mail.

It promises the law of DESIGN section 2: outputs and input marks go in one commit, and the state in memory never
survives a commit that was not confirmed: it is thrown away, the shard rewound and replayed. The order within a batch:
attempts first (they make room), then what is due, then new mail. New mail beyond a site's window is spooled, all of a
batch in one flush. Leaving it in `accepted` for a second instead was tried: it saved little and was not kept, since it
makes one busy site everybody's delay. Next: `router/decide.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from time import perf_counter

import structlog

from mail.directory import Directory
from mail.log import LogUnavailable, RouterShard, ShardLost
from mail.message import Inline, Spooled
from mail.outcome import Failed
from mail.record import Accepted, Attempted, Bounced, Dispatched, Event, Pending, Record, Refused, Routed, Tried
from mail.reply import Reply
from mail.spool import Spool, SpoolUnavailable
from router.decide import Due, Fact, decide, quotes
from router.mailqueue import MailQueue
from router.resolve import Questions, domains_in_question, read_headers
from router.tally import Tally
from router.world import Policy, World

log = structlog.get_logger()

IDLE_WAIT = timedelta(seconds=1)  # an idle shard looks up this often: gauges, stop
BACKOFF_FIRST = 0.1  # seconds before a failed batch is tried again, doubled each time
BACKOFF_MAX = 5.0
SHOWN_MAX = 20  # addresses in one line of the log
COPIES_BYTES = 8 << 20  # that one commit may hold of contents it holds already


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Tools:
    """What a shard's loop works with. `publish` gets each batch's tally after its commit, and the queue."""

    policy: Policy
    batch: int
    spool: Spool
    directory: Directory
    questions: Questions
    publish: Callable[[int, Tally, MailQueue, float], None]
    now: Callable[[], datetime] = field(default=utc_now)


async def tend(shard: RouterShard, tools: Tools, stop: asyncio.Event) -> None:
    """Route the shard's mail until it is lost or `stop` is set."""
    backoff = BACKOFF_FIRST
    must_rewind = False
    while True:
        try:
            if must_rewind:
                await shard.rewind()
                must_rewind = False
            queue = await _replay(shard)
            log.debug("shard ready", shard=shard.number, deliveries=len(queue))
            wait = timedelta(0)
            while True:
                wait = await _route_batch(shard, queue, tools, wait)
                backoff = BACKOFF_FIRST
        except ShardLost:
            return
        except (LogUnavailable, SpoolUnavailable) as error:
            log.warning("routing pauses", shard=shard.number, seconds=backoff, reason=str(error))
            must_rewind = True  # the queue in memory may know what the log does not
        if await _stopped(stop, backoff):
            return
        backoff = min(2 * backoff, BACKOFF_MAX)


async def _replay(shard: RouterShard) -> MailQueue:
    queue = MailQueue()
    async for batch in shard.replay():
        for line in batch:
            queue.apply(line)
    return queue


async def _route_batch(shard: RouterShard, queue: MailQueue, tools: Tools, wait: timedelta) -> timedelta:
    """One batch, from the inputs to the commit. Returns how long the next one may wait for inputs."""
    entries = await shard.take(tools.batch, wait)
    began = perf_counter()
    now = tools.now()
    batch = _Batch(queue, now)
    attempted = [entry.record for entry in entries if isinstance(entry.record, Attempted)]
    accepted = [entry.record for entry in entries if isinstance(entry.record, Accepted)]
    world = World(tools.policy, tools.directory.snapshot)
    for report in attempted:
        batch.decide(report, world)
    due = [Due(delivery_id) for delivery_id in queue.due(now, tools.policy.limits, tools.batch)]
    world = await _look_up(queue, accepted, due, world, tools, now)
    facts: list[Fact] = [*due, *accepted]
    for fact in facts:
        batch.decide(fact, world)
    if batch.outputs or entries:
        await batch.spool_bodies(tools.spool)
        await shard.commit(batch.outputs, entries)
        tools.publish(shard.number, batch.tally, queue, perf_counter() - began)
        _log_history(batch.outputs)
        queue.tidy()
    else:
        tools.publish(shard.number, batch.tally, queue, 0.0)
    if len(due) == tools.batch:
        return timedelta(0)  # more may be due
    next_due = queue.next_due()
    return IDLE_WAIT if next_due is None else min(max(next_due - tools.now(), timedelta(0)), IDLE_WAIT)


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
        self._queue = queue
        self._now = now
        self.outputs: list[Record] = []
        self.tally = Tally()

    def decide(self, fact: Fact, world: World) -> None:
        queue = self._queue
        line = None if isinstance(fact, Accepted) else queue.line(fact.delivery_id)
        first = len(self.outputs)
        for record in decide(queue, fact, world, self._now):
            queue.apply(record)
            self.outputs.append(record)
        self.tally.note(fact, line, self.outputs[first:], self._now)

    async def spool_bodies(self, spool: Spool) -> None:
        """A queue line never carries a body: what waits with inline content has it moved to the spool. So has what
        would ride in too many records at once (a letter to many sites). Contents kept together share a flush.
        """
        waiting: list[tuple[int, Pending, bytes]] = []
        riding: dict[int, list[tuple[int, Dispatched, bytes]]] = {}  # by identity: a message's deliveries share theirs
        for place, record in enumerate(self.outputs):
            if isinstance(record, Pending) and isinstance(record.content, Inline):
                waiting.append((place, record, record.content.data))
            elif isinstance(record, Dispatched) and isinstance(record.content, Inline):
                riding.setdefault(id(record.content.data), []).append((place, record, record.content.data))
        contents = {id(data): data for _, _, data in waiting}
        too_many: list[tuple[int, Dispatched, bytes]] = []
        room = COPIES_BYTES
        for riders in riding.values():
            data = riders[0][2]
            copies = (len(riders) - 1) * len(data)
            if copies > room:
                too_many += riders
                contents[id(data)] = data
            else:
                room -= copies
        if not contents:
            return
        kept = dict(zip(contents, await asyncio.gather(*map(spool.keep, contents.values())), strict=True))
        for place, dispatched, data in too_many:
            self.outputs[place] = replace(dispatched, content=kept[id(data)])
        for place, line, data in waiting:
            lean = replace(line, content=kept[id(data)])
            self._queue.apply(lean)
            self.outputs[place] = lean


def _log_history(outputs: Sequence[Record]) -> None:
    """One line per delivery that was made, and per report, with the last reply it is about."""
    failure: Reply | None = None
    for record in outputs:
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


async def _stopped(stop: asyncio.Event, seconds: float) -> bool:
    """Wait; True when `stop` was set meanwhile."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return False
    return True
