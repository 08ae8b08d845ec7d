"""The queue of one shard: a fold of records. Pure.

Only `apply` changes what the queue is, live and at replay alike, so both come to the same state (a test asserts it).
Beside the open lines it keeps what the decision needs without searching: what each site and the shard have in hand,
and who waits. A waiting line lies in `_later` until it is due, then in the turn of its site and tenant, first come
first served; both indexes hold ids only and are cleaned when they are read, not when a line changes.
A slow site costs a look per batch, and never stands in another's way. Next: `router/decide.py`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Container, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from heapq import heapify, heappop, heappush
from typing import TypeVar, assert_never, cast

from mail.envelope import Recipient
from mail.message import DeliveryId, Inline, QueueId
from mail.record import (
    STATES,
    Accepted,
    Attempted,
    Dispatched,
    Event,
    InHand,
    Pending,
    Record,
    Settled,
    Waiting,
    Why,
    state_name,
)
from mail.route import ToMailbox
from router.age import Ages
from router.window import Limits

LOCAL = ToMailbox("").site
# The reason of a quarantined delivery begins so, in the records of every version.
QUARANTINE = "A bug of the router"

# Shared values beyond this many are forgotten and collected anew: the table stays small beside the queue.
SHARED_MAX = 20_000

V = TypeVar("V", bound=Hashable)


class _Site:
    """What one site has in hand, and whose turn it is among those that are due."""

    __slots__ = ("in_hand", "in_hand_bytes", "lines", "name", "turns")

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines = 0  # open ones, of any state
        self.in_hand = 0
        self.in_hand_bytes = 0
        self.turns: OrderedDict[str, deque[tuple[datetime, DeliveryId]]] = OrderedDict()  # by tenant


@dataclass(frozen=True, slots=True)
class Load:
    """What a site has open and in hand."""

    lines: int
    in_hand: int
    in_hand_bytes: int


class MailQueue:
    """The open deliveries of one shard."""

    def __init__(self) -> None:
        self._lines: dict[DeliveryId, Pending] = {}
        self._messages: dict[QueueId, int] = {}  # open deliveries of each
        self._sites: dict[str, _Site] = {}
        self._in_hand = 0
        self.inline_bytes = 0  # content in lines: there is some only while the spool fails
        self._recipients = dict.fromkeys(STATES, 0)
        self.quarantined = 0  # deliveries
        self._ages = Ages(self._lines)
        self._later: list[tuple[datetime, DeliveryId]] = []  # heap
        self._ready: OrderedDict[str, _Site] = OrderedDict()  # sites where somebody is due
        self._shared: dict[Hashable, Hashable] = {}

    # What it is

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self) -> Iterable[Pending]:
        """Every open line, in no particular order."""
        return self._lines.values()

    def line(self, delivery_id: DeliveryId) -> Pending | None:
        return self._lines.get(delivery_id)

    def open_deliveries(self, queue_id: QueueId) -> int:
        """How many deliveries of the message are open."""
        return self._messages.get(queue_id, 0)

    @property
    def in_hand(self) -> int:
        return self._in_hand

    def recipients(self) -> dict[str, int]:
        """Open recipients by state (`STATES`)."""
        return dict(self._recipients)

    @property
    def open_recipients(self) -> int:
        return sum(self._recipients.values())

    def oldest(self) -> dict[str, float]:
        """When the oldest message of each state was received (seconds since 1970), where there is one."""
        return self._ages.oldest()

    def runnable_recipients(self) -> int:
        """Recipients that could be delivered now: active, throttled, and deferred whose due time has come. "Now" is
        the time that `due` was asked for last.
        """
        return self._ages.runnable_recipients

    def oldest_runnable(self) -> float | None:
        """Since when the delivery that has been runnable for the longest time is runnable (seconds since 1970)."""
        return self._ages.oldest_runnable()

    def loads(self) -> dict[str, Load]:
        """Every site with open lines."""
        return {name: Load(site.lines, site.in_hand, site.in_hand_bytes) for name, site in self._sites.items()}

    def has_room(self, site_name: str, size_bytes: int, limits: Limits) -> bool:
        """May one more delivery to the site be in hand?"""
        site = self._sites.get(site_name)
        if site is None:
            return limits.allow(0, 0, self._in_hand, size_bytes, is_local=site_name == LOCAL)
        return limits.allow(site.in_hand, site.in_hand_bytes, self._in_hand, size_bytes, is_local=site_name == LOCAL)

    # How it changes

    def apply(self, record: Record) -> None:
        """Fold one record in. Records that are not queue lines change nothing."""
        match record:
            case Pending():
                old = self._lines.get(record.delivery.id)
                if old is None:
                    queue_id = record.delivery.message.queue_id
                    self._messages[queue_id] = self._messages.get(queue_id, 0) + 1
                else:
                    self._uncount(old)
                self._put(record)
            case Settled():
                gone = self._lines.pop(record.delivery_id, None)
                if gone is not None:
                    self._uncount(gone)
                    queue_id = gone.delivery.message.queue_id
                    left = self._messages[queue_id] - 1
                    if left:
                        self._messages[queue_id] = left
                    else:
                        del self._messages[queue_id]
            case Accepted() | Dispatched() | Attempted() | Event():
                pass
            case _:
                assert_never(record)

    def _put(self, line: Pending) -> None:
        delivery = line.delivery
        message = delivery.message
        name = delivery.route.site
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = _Site(name)
        site.lines += 1
        self.inline_bytes += _inline_bytes(line)
        state = line.state
        self._recipients[state_name(state)] += len(message.envelope.recipients)
        self.quarantined += _is_quarantined(line)
        if isinstance(state, InHand):
            self._lines[delivery.id] = line
            self._in_hand += 1
            site.in_hand += 1
            site.in_hand_bytes += message.size_bytes
        else:
            self._lines[delivery.id] = self._lean(line)
            if state.why is not Why.HOLD:
                heappush(self._later, (state.due, delivery.id))
        self._ages.put(line)

    def _uncount(self, line: Pending) -> None:
        message = line.delivery.message
        site = self._sites[line.delivery.route.site]
        site.lines -= 1
        self.inline_bytes -= _inline_bytes(line)
        self._recipients[state_name(line.state)] -= len(message.envelope.recipients)
        self.quarantined -= _is_quarantined(line)
        self._ages.drop(line)
        if isinstance(line.state, InHand):
            self._in_hand -= 1
            site.in_hand -= 1
            site.in_hand_bytes -= message.size_bytes
        if site.lines == 0:
            del self._sites[site.name]
            self._ready.pop(site.name, None)

    # Who is next

    def next_due(self) -> datetime | None:
        """When the first line that is not due yet will be; None when there is none. May be early, never late."""
        return self._later[0][0] if self._later else None

    def due(self, now: datetime, limits: Limits, most: int) -> list[DeliveryId]:
        """Up to `most` waiting lines that may go in hand now. Each answer moves the turn on: what is returned is to be
        decided on, or the queue thrown away.
        """
        self._wake(now)
        picked: dict[DeliveryId, None] = {}
        extra: dict[str, list[int]] = {}  # what the picked ones will add to their site's hand
        turn = list(self._ready.values())
        while turn and len(picked) < most:
            again: list[_Site] = []
            for site in turn:
                line = self._first(site, picked)
                if line is None:
                    self._ready.pop(site.name, None)
                    continue
                size = line.delivery.message.size_bytes
                more = extra.setdefault(site.name, [0, 0])
                if not limits.allow(
                    site.in_hand + more[0],
                    site.in_hand_bytes + more[1],
                    self._in_hand + len(picked),
                    size,
                    is_local=site.name == LOCAL,
                ):
                    continue
                more[0] += 1
                more[1] += size
                self._take_turn(site)
                picked[line.delivery.id] = None
                if len(picked) == most:
                    break
                again.append(site)
            turn = again
        return list(picked)

    def _wake(self, now: datetime) -> None:
        """Move what is due by `now` from `_later` to the turns of its site."""
        later = self._later
        while later and later[0][0] <= now:
            entry = heappop(later)
            line = self._lines.get(entry[1])
            if line is None or not _waits_since(line, entry[0]):
                continue
            self._ages.came_due(entry, line)
            name = line.delivery.route.site
            site = self._sites[name]
            tenant = line.delivery.message.tenant
            queue = site.turns.get(tenant)
            if queue is None:
                queue = site.turns[tenant] = deque()
            queue.append(entry)
            self._ready[name] = site
        self._ages.now(now)

    def _first(self, site: _Site, picked: Container[DeliveryId]) -> Pending | None:
        """The line whose turn it is at the site, once everything out of date is gone from the front. A line may stand
        there twice: one that was spooled was folded in twice.
        """
        while site.turns:
            tenant, queue = next(iter(site.turns.items()))
            while queue:
                due, delivery_id = queue[0]
                line = self._lines.get(delivery_id)
                if (
                    line is not None
                    and delivery_id not in picked
                    and _waits_since(line, due)
                    and line.delivery.route.site == site.name
                ):
                    return line
                queue.popleft()
            del site.turns[tenant]
        return None

    def _take_turn(self, site: _Site) -> None:
        """Round robin: the tenant that was served goes to the end."""
        tenant, queue = next(iter(site.turns.items()))
        queue.popleft()
        if queue:
            site.turns.move_to_end(tenant)
        else:
            del site.turns[tenant]
        self._ready.move_to_end(site.name)

    def tidy(self) -> None:
        """Drop index entries that are out of date when they outnumber the lines. Cheap unless there is much to drop."""
        if len(self._later) > 2 * len(self._lines) + 1000:
            entries = {
                (line.state.due, line.delivery.id)
                for line in self._lines.values()
                if isinstance(line.state, Waiting) and line.state.why is not Why.HOLD
            }
            ready = {entry for site in self._sites.values() for queue in site.turns.values() for entry in queue}
            self._later = list(entries - ready)
            heapify(self._later)
        self._ages.tidy()

    def waiting(self) -> Iterator[DeliveryId]:
        """Every line an index can find again: what waits, and is not on hold."""
        for due, delivery_id in set(self._later).union(
            *(queue for site in self._sites.values() for queue in site.turns.values())
        ):
            line = self._lines.get(delivery_id)
            if line is not None and _waits_since(line, due):
                yield delivery_id

    # What it costs

    def _lean(self, line: Pending) -> Pending:
        """The same line with its common parts shared: a waiting line may stay for days, beside many alike."""
        delivery = line.delivery
        message = delivery.message
        envelope = message.envelope
        client = message.client
        recipients = envelope.recipients
        if len(recipients) <= 4:
            recipients = tuple(self._lean_recipient(recipient) for recipient in recipients)
        return replace(
            line,
            delivery=replace(
                delivery,
                route=self._share(delivery.route),
                message=replace(
                    message,
                    tenant=self._share(message.tenant),
                    client=None
                    if client is None
                    else replace(
                        client,
                        ip=self._share(client.ip),
                        helo=self._share(client.helo),
                        protocol=self._share(client.protocol),
                    ),
                    envelope=replace(
                        envelope,
                        reverse_path=self._share(envelope.reverse_path),
                        recipients=self._share(recipients),
                    ),
                ),
            ),
            last=self._share(line.last),
            last_remote=self._share(line.last_remote),
        )

    def _lean_recipient(self, recipient: Recipient) -> Recipient:
        address = self._share(recipient.address)
        return self._share(replace(recipient, address=address, original=self._share(recipient.original)))

    def _share(self, value: V) -> V:
        shared = self._shared
        if len(shared) >= SHARED_MAX:
            shared.clear()
        return cast(V, shared.setdefault(value, value))


def _waits_since(line: Pending, due: datetime) -> bool:
    state = line.state
    return isinstance(state, Waiting) and state.due == due and state.why is not Why.HOLD


def _is_quarantined(line: Pending) -> bool:
    state = line.state
    return isinstance(state, Waiting) and state.why is Why.HOLD and state.reason.startswith(QUARANTINE)


def _inline_bytes(line: Pending) -> int:
    return len(line.content.data) if isinstance(line.content, Inline) else 0
