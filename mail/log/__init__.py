"""Port of the durable message log, with the adapters `memory`, `embedded` (one machine) and `kafka` (a cluster).

An append that returned survives the crash of the process (embedded: also power loss; kafka: also the loss of one
broker; memory: nothing), a shard has one owner at a time (delivery shards on Kafka: see `DeliveryLog`), and an
unconsumed record is never removed. **An input is committed as consumed only when all its outputs are durable, or in
the same commit.** Every adapter passes the contract suite in `tests/contract/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from mail.log.damaged import Damaged as Damaged
from mail.log.topics import CONSUMED_TOPICS, ShardCounts, Topic
from mail.log.topics import Place as Place
from mail.message import DeliveryId, QueueId
from mail.record import Accepted, Attempted, Dispatched, Event, QueueEntry, Record

if TYPE_CHECKING:
    from mail.log.queue_summary import QueueSummary


UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)


class LogUnavailable(Exception):
    """The append was not confirmed, and the record may or may not be written: reply 4xx, keep the input, retry."""


class LogNotAuthorized(LogUnavailable):
    """The log refuses this user. The text names the missing right, which an operator has to grant."""


class ShardLost(Exception):
    """The shard was revoked: the owner finishes what is in flight and returns."""


class LogUnusable(Exception):
    """The log cannot be opened or read, and needs an operator. The text is one line that names the file, topic or key
    and the remedy. Frames of a newer version raise this error: the reader stops and drops nothing. (A damaged record is
    a `Damaged` among the records.)
    """


class LogNotReady(LogUnusable):
    """The brokers cannot be reached or topics are missing. A command ends with this line; a server retries and stays
    unready with this line.
    """


R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Entry(Generic[R_co]):
    """A record with its topic name, shard and offset (offsets rise and are not contiguous)."""

    topic: str
    shard: int
    offset: int
    record: R_co


Input = Entry[Accepted] | Entry[Attempted] | Entry[Damaged]  # of the router


class FoundDispatch(NamedTuple):
    """`is_open`: whether its dispatch or its report is not consumed yet; False if that is unknown."""

    dispatched: Dispatched | None
    is_open: bool


@dataclass(frozen=True, slots=True)
class Usable:
    """The log accepts appends."""


@dataclass(frozen=True, slots=True)
class Full:
    """Free disk space is too low or the backlog too large: new mail gets 452, accepted mail is still delivered."""

    reason: str


@dataclass(frozen=True, slots=True)
class Down:
    """The log does not respond: new mail gets 421."""

    reason: str


Condition = Usable | Full | Down


@dataclass(frozen=True, slots=True)
class Backlog:
    """Unconsumed records by topic, summed over the shards that this process can read."""

    accepted: int = 0
    dispatched: int = 0
    attempted: int = 0

    @classmethod
    def of(cls, count: Callable[[Topic], int]) -> Backlog:
        return cls(**{topic.name: count(topic) for topic in CONSUMED_TOPICS})


class Appender(Protocol):
    """The log as ingress uses it."""

    async def append(self, record: Record) -> None:
        """Return when `record` is durable. Raises LogUnavailable when durability is not confirmed in time.

        Cancelling the caller does not undo the append: shield the call where the difference matters.
        """
        ...

    async def open_tenant(self, tenant: str, /) -> None:
        """Prepare the tenant's topics, if it has its own; called at the first RCPT, before `condition`. Returns after a
        few seconds at most and never fails.
        """
        ...

    def condition(self, tenant: str = "", /) -> Condition:
        """Whether new mail can be accepted; with `tenant`, mail of this tenant. Cheap: called at every MAIL and at the
        first RCPT.
        """
        ...


class RouterShard(Protocol):
    """An owned shard of `accepted`, `attempted`, `queue` and `events`."""

    @property
    def number(self) -> int: ...

    def owns(self, queue_id: QueueId) -> bool:
        """Whether the records of this message belong to the shard."""
        ...

    def replay(self) -> AsyncIterator[Sequence[QueueEntry | Damaged]]:
        """The shard's queue entries in batches: the latest record of each delivery, settled ones left out. A damaged
        one is returned at each replay until its key is written again, or removed by `remove_keys`.
        """
        ...

    async def remove_keys(self, raw_keys: Sequence[bytes]) -> None:
        """Remove queue entries of this shard by their keys as stored: damaged keys, which no record can have. Call it
        once what remains of them is durable. Raises as `commit`.
        """
        ...

    async def read(self, limit: int, wait: timedelta) -> Sequence[Input]:
        """The next inputs, at most `limit`, in order within each topic; empty when none arrived within `wait`.

        Advances the read position, not the committed offset: the next owner reads uncommitted inputs again. Raises
        ShardLost, LogUnavailable (retry), LogUnusable.
        """
        ...

    async def find_dispatches(self, delivery_ids: Collection[DeliveryId]) -> Mapping[DeliveryId, FoundDispatch]:
        """For each delivery its last dispatch that the log still has. Slow, one scan for all: for damaged records."""
        ...

    def history(self, queue_id: QueueId, /) -> AsyncIterator[Event | Damaged]:
        """As `HistoryLog.history`."""
        ...

    async def lost_deliveries(
        self, active: Collection[DeliveryId], damaged: Sequence[Entry[Damaged]]
    ) -> Collection[DeliveryId]:
        """Those of the `active` deliveries whose dispatch or report is among the `damaged` inputs; without inputs,
        those of which the log has neither; none on Kafka, where this is unknown. Slow.
        """
        ...

    async def commit(self, outputs: Sequence[Record], consumed: Sequence[Input]) -> None:
        """Write all `outputs` and commit `consumed` atomically. `consumed` is everything read since the last commit.
        Raises ShardLost or LogUnavailable; the caller then discards its state, calls `rewind()` and replays.
        """
        ...

    async def rewind(self) -> None:
        """Return to the committed offset: uncommitted inputs will be read again."""
        ...


class DeliveryShard(Protocol):
    """An owned shard of `dispatched`."""

    @property
    def number(self) -> int: ...

    @property
    def lost(self) -> asyncio.Event:
        """Set once, when the shard is revoked or the process stops, for an owner that is not waiting in `read`."""
        ...

    async def read(self, limit: int, wait: timedelta | None = None) -> Sequence[Entry[Dispatched] | Entry[Damaged]]:
        """The next unfinished dispatches, one to `limit`, in order; waits for the first. With `wait` it returns empty
        when none arrived in that time; every dispatch present at the first read has then been returned.

        Raises ShardLost, LogUnavailable (retry), LogUnusable.
        """
        ...

    async def finish(self, entry: Entry[Dispatched] | Entry[Damaged], attempted: Attempted | Damaged) -> None:
        """Append `attempted`, then record `entry` as finished; entries may finish in any order. On return `attempted`
        is durable. After a crash a finished entry may be attempted again, but an attempt is never lost. The bytes of a
        damaged dispatch are appended to `attempted` as they are: the router puts them into quarantine.

        Raises LogUnavailable (retry: ids make repeats harmless), ShardLost.
        """
        ...


RouterShardProcessor = Callable[[RouterShard], Awaitable[None]]
DeliveryShardProcessor = Callable[[DeliveryShard], Awaitable[None]]
OnReady = Callable[[], None]


class RouterLog(Protocol):
    """The log as the router uses it."""

    async def own_router_shards(
        self, process: RouterShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
    ) -> None:
        """Run `process(shard)` for every shard while this process owns it; return after `stop` is set and every
        `process` returned. `on_ready()` is called once, when this process has joined the owners, with or without a
        shard.

        When a shard is revoked or `stop` is set, `read` raises ShardLost; `process` then finishes what is in flight and
        returns. An exception from `process` ends this call. After `process` returned, a write through its shard raises
        ShardLost.
        """
        ...


class DeliveryLog(Protocol):
    """The log as delivery uses it."""

    async def own_delivery_shards(
        self, process: DeliveryShardProcessor, stop: asyncio.Event, on_ready: OnReady | None = None
    ) -> None:
        """As `RouterLog.own_router_shards`, for shards of `dispatched`. After ShardLost, `finish` still works during
        the drain time, and the next owner starts after the drain. Owners overlap only if the first was paused or cut
        off for longer than log.session_timeout; its open attempts may then be made twice.
        """
        ...


class TopicFollower(Protocol):
    """A compacted topic, as every role may read it."""

    def follow(self, topic: Topic, /) -> AsyncIterator[Sequence[Any]]:
        """First the last record of each key, in one sequence, which is empty if there is none; then records and
        tombstones as they become durable. Of several changes of one key some may be left out, never the last. A damaged
        record is `Damaged`. It ends only by an error: LogUnavailable (follow again), LogUnusable.
        """
        ...


class HistoryLog(Protocol):
    """Queries for `trace`, `queue` and the metrics; not used by the mail flow."""

    def history(self, queue_id: QueueId) -> AsyncIterator[Event | Damaged]:
        """The events of one message, oldest first; empty when it is unknown or older than the retention of `events`."""
        ...

    def queue_entries(self, queue_id: QueueId | None = None) -> AsyncIterator[QueueEntry]:
        """The queue entries of all shards, or of one message (reading only its own records where possible), without
        damaged ones.
        """
        ...

    async def summarize_queue(self, summary: QueueSummary) -> None:
        """Add the queue entries of all shards. Raises LogUnavailable, LogUnusable."""
        ...

    async def unrouted_messages(self, queue_id: QueueId) -> Sequence[Accepted]:
        """The message's `Accepted` record if the router has not consumed it yet."""
        ...

    async def backlog(self) -> Backlog: ...


class Log(Appender, RouterLog, DeliveryLog, TopicFollower, HistoryLog, Protocol):
    """The whole log, as the process wiring opens it."""

    @property
    def counts(self) -> ShardCounts: ...

    async def start(self) -> None:
        """Open, lock, recover. Raises LogUnusable. A log that is only not ready stays Down and is retried."""
        ...

    def worker_condition(self) -> Condition:
        """As `condition()`, and also Down while routers and delivery processes cannot work: no broker answers, or a
        partition refuses writes. Cheap: every `/readyz` calls it.
        """
        ...

    def warnings(self) -> Sequence[str]:
        """Warnings for /readyz about what will stop the log: a certificate that expires soon."""
        ...

    async def reload(self) -> None:
        """Reload the files that the settings name (certificates). An unusable file is logged and changes nothing."""
        ...

    async def oldest_unconsumed(self) -> datetime | None:
        """The earliest `received_time` of the first unconsumed record of every shard of `accepted`, `dispatched` and
        `attempted`; None when there is none. Unconsumed records refer to no spooled content that is much older. Of a
        damaged record it is `UNKNOWN_TIME`, the earliest time. Raises LogUnavailable, LogUnusable.
        """
        ...

    async def purge(self) -> None:
        """Remove consumed records and those older than their topic's retention, and nothing else."""
        ...

    async def close(self) -> None:
        """Flush and close. Idempotent."""
        ...
