"""The Log port: where records are durable, in order, and shared between the roles.

One port for one machine (embedded) and for a cluster (Kafka). It promises: an append that returned survives the death
of any node; a shard has one owner at a time; **an input is marked consumed only after, or in the same commit as,
everything that follows from it is durable** (the law of DESIGN section 2); nothing unconsumed is ever removed. It
knows records, shards and marks, and nothing about mail. Adapters: `memory`, `embedded`, `kafka`. The contract
suite in `tests/contract/` holds for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

from mail.log.topics import Place as Place
from mail.log.topics import ShardCounts
from mail.message import QueueId
from mail.record import Accepted, Attempted, Dispatched, Event, Pending, Record


class LogUnavailable(Exception):
    """The log did not confirm. The records may or may not be written: answer 4xx, keep the input, try again."""


class LogNotAuthorized(LogUnavailable):
    """The log refuses this user; the text names the right that is missing. An operator has to give it."""


class ShardLost(Exception):
    """This shard is no longer ours, or is being taken back: finish what is in flight and return."""


class LogUnusable(Exception):
    """The log cannot be opened or read at all, and trying again will not help; the text is one line for people
    that names the file, topic or key and says what to do. Unknown frame versions end here: stop, never drop."""


class LogNotReady(LogUnusable):
    """The log cannot be used yet: its brokers cannot be reached, or its topics are missing. A command ends with this
    line; a server waits for the log, unready with this line.
    """


R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Entry(Generic[R_co]):
    """A record as it stands in the log: its topic's name, shard and offset (rising, with gaps)."""

    topic: str
    shard: int
    offset: int
    record: R_co


@dataclass(frozen=True, slots=True)
class Usable:
    """The log takes appends."""


@dataclass(frozen=True, slots=True)
class Full:
    """The log works, but the disk or the backlog is over its mark: new mail gets 452, old mail flows."""

    reason: str


@dataclass(frozen=True, slots=True)
class Down:
    """The log does not answer: new mail gets 421."""

    reason: str


Condition = Usable | Full | Down


@dataclass(frozen=True, slots=True)
class Backlog:
    """Records not yet consumed, by topic, summed over the shards this process can see."""

    accepted: int
    dispatched: int
    attempted: int


class Appender(Protocol):
    """What ingress needs."""

    async def append(self, record: Record) -> None:
        """Return when `record` is durable. Raises LogUnavailable when that is not known in time.

        Cancelling the caller does not undo the append: shield it where the difference matters.
        """
        ...

    async def open_tenant(self, tenant: str, /) -> None:
        """Get ready for this tenant's mail, which may go to topics of its own: asked at the first RCPT, before
        `condition`. Returns at once where there is nothing to do, after a few seconds at most, and never fails.
        """
        ...

    def condition(self, tenant: str = "", /) -> Condition:
        """Whether new mail can be taken now; with `tenant`, of this one, which may have topics of its own. Cheap: asked
        at every MAIL, and at the first RCPT.
        """
        ...


class RouterShard(Protocol):
    """One shard of `accepted` + `attempted` + `queue` + `events`, owned."""

    @property
    def number(self) -> int: ...

    def replay(self) -> AsyncIterator[Sequence[Pending]]:
        """Every open queue line of this shard as it is now, in batches; each delivery once, tombstones gone."""
        ...

    async def read(self, limit: int, wait: timedelta) -> Sequence[Entry[Accepted] | Entry[Attempted]]:
        """The next inputs, at most `limit`, each topic in its order; empty when none came within `wait`.

        Moves the read position, not the mark. What was taken and never committed is taken again by the next owner.
        Raises ShardLost, LogUnavailable (try again), LogUnusable.
        """
        ...

    async def commit(
        self,
        outputs: Sequence[Record],
        consumed: Sequence[Entry[Accepted] | Entry[Attempted]],
    ) -> None:
        """Make all `outputs` durable and mark `consumed` consumed: both or neither. `consumed` is all that was taken
        since the last commit. Raises ShardLost or LogUnavailable: then throw the state away, `rewind()` and replay.
        """
        ...

    async def rewind(self) -> None:
        """Go back to the mark: what was taken and not committed will be taken again."""
        ...


class DeliveryShard(Protocol):
    """One shard of `dispatched`, owned."""

    @property
    def number(self) -> int: ...

    @property
    def lost(self) -> asyncio.Event:
        """Set, once and for ever, when the shard is taken back or is to stop: for who is too busy to `take`."""
        ...

    async def read(self, limit: int, wait: timedelta | None = None) -> Sequence[Entry[Dispatched]]:
        """The next dispatches, one to `limit`, in order, without those already finished; waits for the first. With
        `wait` it is empty when none came within that, and then everything that was there at the first take has been
        given.

        Raises ShardLost, LogUnavailable (try again), LogUnusable.
        """
        ...

    async def finish(self, entry: Entry[Dispatched], attempted: Attempted) -> None:
        """Append `attempted`, then mark `entry` done, in any order of entries. On return `attempted` is durable; the
        mark
        survives a crash or the attempt is made again, never the other way round.

        Raises LogUnavailable (call again: ids make repeats harmless), ShardLost.
        """
        ...


RouterShardProcessor = Callable[[RouterShard], Awaitable[None]]
DeliveryShardProcessor = Callable[[DeliveryShard], Awaitable[None]]
OnReady = Callable[[], None]


class RouterLog(Protocol):
    """What the router needs."""

    async def own_router_shards(
        self, process: RouterShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
    ) -> None:
        """Run `process(shard)` for every shard this process owns, while it owns it; return after `stop` is set and all
        tends returned. `on_ready()` is called once, when this process is among the owners, with or without a shard.

        When a shard is taken back or `stop` is set, its `take` raises ShardLost; tend then finishes what is in flight
        and
        returns. An exception out of tend ends route() with it. Once tend has returned, nothing more is written through
        its shard: ShardLost.
        """
        ...


class DeliveryLog(Protocol):
    """What delivery needs."""

    async def own_delivery_shards(
        self, process: DeliveryShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
    ) -> None:
        """As `RouterLog.route`, for shards of `dispatched`. After ShardLost, `finish` still works for a drain time, and
        the next owner begins after that: at no instant two tend the same.
        """
        ...


class HistoryLog(Protocol):
    """What trace, the queue view and the metrics read; never part of the flow."""

    def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        """The events of one message, oldest first; empty when it is unknown or older than `events` is kept."""
        ...

    def pending_deliveries(self, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        """Every open queue line, of all shards; or those of one message, without reading the others where that can be
        helped.
        """
        ...

    async def unrouted_messages(self, queue_id: QueueId) -> Sequence[Accepted]:
        """The message's `Accepted` if the router has not consumed it yet: accepted a moment ago."""
        ...

    async def backlog(self) -> Backlog: ...


class Log(Appender, RouterLog, DeliveryLog, HistoryLog, Protocol):
    """A whole log, as the roof opens it."""

    @property
    def counts(self) -> ShardCounts: ...

    async def start(self) -> None:
        """Open, lock, recover. Raises LogUnusable; a log that is only not ready is waited for, Down."""
        ...

    def worker_condition(self) -> Condition:
        """As `condition()`, and Down too while routers and delivery processes cannot work: no broker answers, or a
        partition takes no writes. Cheap: asked by readiness probes.
        """
        ...

    def warnings(self) -> Sequence[str]:
        """What an operator should see to before it stops the log: a certificate that expires soon. For /readyz."""
        ...

    async def reload(self) -> None:
        """Read files again that the settings name (certificates). What cannot be used is logged and changes nothing."""
        ...

    async def oldest_unconsumed(self) -> datetime | None:
        """When the message was received that the first record which is not consumed is about (`received_time`), the
        earliest of all shards of `accepted`, `dispatched` and `attempted`; None when nothing waits. Whatever such
        records name in the spool is hardly older than that. Raises LogUnavailable, LogUnusable.
        """
        ...

    async def purge(self) -> None:
        """Remove what is consumed and what is past its topic's age. Never anything else."""
        ...

    async def close(self) -> None:
        """Flush and let go. Idempotent."""
        ...
