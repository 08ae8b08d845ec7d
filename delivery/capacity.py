"""What the workers of a process share: how much may be in flight, and the news that there is room again.

In charge of `delivery.in_flight` and `in_flight_bytes`, which bound the process however many shards it owns, and of
moving content that waits for a slow site into the spool when memory is full. A worker holds a `Seat` for its shard;
what ends at one shard may let another's begin. Never takes, carries or reports. Next: `delivery/worker.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

import structlog

from delivery.inflight import InFlight, Parked
from mail.log import Entry
from mail.message import Inline
from mail.record import Dispatched
from mail.route import ToMailbox
from mail.settings import DeliverySettings
from mail.spool import Spool
from mail.telemetry.delivery import THROTTLE

log = structlog.get_logger()

# What an entry may hold in memory at most: [spool] inline_max by default, or the largest that was seen.
_LARGEST_INLINE_BYTES = 256 * 1024
_UNLOADED_AT_ONCE = 100
_SPOOL_SECONDS = 1.0  # before a spool that failed is asked again
_NO_WAIT_SECONDS = 0.001
PARKED_MAX = 5000  # of one shard
MAILBOX_SITE = ToMailbox("").site


class Capacity:
    """One for a process."""

    def __init__(self, settings: DeliverySettings, spool: Spool, *, parked_max: int = PARKED_MAX) -> None:
        # A site gets as many as keep its connections busy; mailboxes have places of their own, half as many as all
        # sites together: however slow the world is, mail for our own people is not.
        half = max(1, settings.in_flight // 2)
        share = max(1, min(half, 2 * settings.connections_per_site))
        self.inflight: InFlight[Seat, Entry[Dispatched]] = InFlight(
            count=settings.in_flight,
            size_bytes=settings.in_flight_bytes,
            parked=parked_max,
            share_of=lambda _: share,
            apart={MAILBOX_SITE: half},
            chosen=lambda site: "://" in site,  # a relay; the sites of exchangers are whatever senders write to
        )
        self._spool = spool
        self._waiting: set[Seat] = set()  # seats whose workers wait for room
        self._making_room: asyncio.Task[None] | None = None
        self.largest_bytes = _LARGEST_INLINE_BYTES

    async def close(self) -> None:
        if self._making_room is not None:
            self._making_room.cancel()
            await asyncio.wait({self._making_room})

    def join(self, begin: Callable[[Job], None]) -> Seat:
        """A seat for a shard; `begin` is called with each of its entries when it may start."""
        seat = Seat(self, begin)
        self.inflight.join(seat)
        return seat

    def leave(self, seat: Seat) -> None:
        self._waiting.discard(seat)
        self.inflight.leave(seat)
        self.changed()

    def add(self, seat: Seat, entry: Entry[Dispatched], since: float | None = None) -> None:
        dispatched = entry.record
        content = dispatched.content
        held = len(content.data) if isinstance(content, Inline) else 0
        self.largest_bytes = max(self.largest_bytes, held)
        size = held or dispatched.delivery.message.size_bytes
        self.inflight.add(
            seat, entry, dispatched.delivery.route.site, held, size, monotonic() if since is None else since
        )

    def start(self) -> None:
        """Let begin what may, whosever it is."""
        now = monotonic()
        for job in self.inflight.start():
            if now - job.since > _NO_WAIT_SECONDS:
                THROTTLE.observe(now - job.since)
            job.owner.begin(job)
        if self.inflight.cramped and self._making_room is None:
            self._making_room = asyncio.create_task(self._make_room(), name="make-room")

    async def _make_room(self) -> None:
        """What waits for a slow site holds the memory into which another site's content would have to be read."""
        try:
            while self.inflight.cramped and self.inflight.holds_parked:
                if not await self.unload():
                    await asyncio.sleep(_SPOOL_SECONDS)
        finally:
            self._making_room = None

    def watch(self, seat: Seat) -> None:
        self._waiting.add(seat)

    def changed(self) -> None:
        """Something ended: others may start, and more may be taken."""
        self.start()
        for seat in self._waiting:
            seat.news.set()
        self._waiting.clear()

    async def unload(self) -> bool:
        """Move content that waits for a slow site into the spool; False when there is none, or the spool fails."""
        jobs = self.inflight.unload(_UNLOADED_AT_ONCE)
        if not jobs:
            return False
        entries = [job.item for job in jobs]
        contents = [entry.record.content for entry in entries]
        ok = False
        try:
            kept = await asyncio.gather(
                *(self._spool.keep(content.data) for content in contents if isinstance(content, Inline)),
                return_exceptions=True,
            )
            for place, result in enumerate(kept):
                if isinstance(result, BaseException):
                    log.warning("spool unavailable", error=str(result))
                else:
                    ok = True
                    entries[place] = replace(entries[place], record=replace(entries[place].record, content=result))
        finally:  # also when the one who asked is given up: they may be others'
            for job, entry in zip(jobs, entries, strict=True):
                if self.inflight.is_here(job.owner):
                    self.add(job.owner, entry, job.since)
            self.start()
        if ok:
            self.changed()
        return ok


class Seat:
    """A shard's place in the capacity, from the beginning of its worker to its drain."""

    def __init__(self, capacity: Capacity, begin: Callable[[Job], None]) -> None:
        self._capacity = capacity
        self.begin = begin
        self.news = asyncio.Event()  # since `watch`: there may be room

    def add(self, entry: Entry[Dispatched]) -> None:
        """Park what was taken; `start` lets it begin."""
        self._capacity.add(self, entry)

    def start(self) -> None:
        self._capacity.start()

    def linger(self, job: Job, *, answered: bool) -> None:
        """It is carried, and waits for the spool before it can be reported: its place may be another's."""
        if self._capacity.inflight.linger(job, answered=answered):
            self._capacity.changed()

    def done(self, job: Job, *, answered: bool) -> None:
        """`answered`: its site has, and soon: it may have more."""
        self._capacity.inflight.done(job, answered=answered)
        self._capacity.changed()

    def room(self) -> int:
        """How many the shard may take now."""
        return self._capacity.inflight.room(self, self._capacity.largest_bytes)

    def watch(self) -> None:
        """From now on, tell by `news` when there may be room."""
        self.news.clear()
        self._capacity.watch(self)

    async def make_room(self) -> bool:
        """Try to; False when what is there has to be waited for."""
        # Only bytes can be moved out of the way; too many deliveries have to be waited for.
        return self._capacity.inflight.has_places(self) and await self._capacity.unload()

    def leave(self) -> None:
        """Let go of what has not begun: the shard's next owner takes it again."""
        self._capacity.leave(self)


Job = Parked[Seat, Entry[Dispatched]]
