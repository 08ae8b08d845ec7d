"""The queue of one shard: a fold of records, with indexes by site, tenant and due time. Pure.

`apply` alone changes the open lines, live and at replay, so both give the same state. A waiting line is in `_not_due`
until it is due, then in the FIFO of its site and tenant; stale index entries are removed when they are read.
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
    Active,
    Attempted,
    Dispatched,
    Event,
    Pending,
    Record,
    Settled,
    WaitCause,
    Waiting,
    state_name,
)
from mail.route import ToMailbox
from router.age import AgeIndex
from router.site_limits import SiteLimits

LOCAL_SITE = ToMailbox("").site
# Prefix of the reason of a quarantined delivery; stored in records, so it must never change.
QUARANTINE_REASON = "A bug of the router"

INTERNED_MAX = 20_000  # interned values; the table is cleared when it is full

V = TypeVar("V", bound=Hashable)


class _SiteState:
    """Load of one site and its due lines."""

    __slots__ = ("active", "active_bytes", "due_by_tenant", "lines", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines = 0  # open lines in any state
        self.active = 0
        self.active_bytes = 0
        self.due_by_tenant: OrderedDict[str, deque[tuple[datetime, DeliveryId]]] = OrderedDict()  # next tenant first


@dataclass(frozen=True, slots=True)
class SiteLoad:
    """Open lines and active deliveries of a site."""

    lines: int
    active: int
    active_bytes: int


class MailQueue:
    """The open deliveries of one shard."""

    def __init__(self) -> None:
        self._lines: dict[DeliveryId, Pending] = {}
        self._open_deliveries: dict[QueueId, int] = {}
        self._sites: dict[str, _SiteState] = {}
        self.active = 0  # deliveries
        self.inline_bytes = 0  # content in lines; 0 unless the spool fails
        self._recipients = dict.fromkeys(STATES, 0)
        self.quarantined_deliveries = 0
        self.age_index = AgeIndex(self._lines)
        self._not_due: list[tuple[datetime, DeliveryId]] = []  # heap
        self._due_sites: OrderedDict[str, _SiteState] = OrderedDict()  # sites with due lines, next site first
        self._interned: dict[Hashable, Hashable] = {}

    # Queries

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self) -> Iterable[Pending]:
        """Every open line, in no particular order."""
        return self._lines.values()

    def line(self, delivery_id: DeliveryId) -> Pending | None:
        return self._lines.get(delivery_id)

    def open_deliveries(self, queue_id: QueueId) -> int:
        """Number of open deliveries of the message."""
        return self._open_deliveries.get(queue_id, 0)

    def recipients(self) -> dict[str, int]:
        """Open recipients by state (`STATES`)."""
        return dict(self._recipients)

    @property
    def open_recipients(self) -> int:
        return sum(self._recipients.values())

    def site_loads(self) -> dict[str, SiteLoad]:
        """Every site with open lines."""
        return {name: SiteLoad(site.lines, site.active, site.active_bytes) for name, site in self._sites.items()}

    def has_free_slot(self, site_name: str, size_bytes: int, limits: SiteLimits) -> bool:
        """Whether one more delivery to the site may become active."""
        site = self._sites.get(site_name)
        active, active_bytes = (site.active, site.active_bytes) if site is not None else (0, 0)
        return limits.allow(active, active_bytes, self.active, size_bytes, is_local=site_name == LOCAL_SITE)

    # Changes

    def apply(self, record: Record) -> None:
        """Apply one record. Records that are not queue lines change nothing."""
        match record:
            case Pending():
                old = self._lines.get(record.delivery.id)
                if old is None:
                    queue_id = record.delivery.message.queue_id
                    self._open_deliveries[queue_id] = self._open_deliveries.get(queue_id, 0) + 1
                else:
                    self._uncount(old)
                self._insert(record)
            case Settled():
                removed = self._lines.pop(record.delivery_id, None)
                if removed is not None:
                    self._uncount(removed)
                    queue_id = removed.delivery.message.queue_id
                    remaining = self._open_deliveries[queue_id] - 1
                    if remaining:
                        self._open_deliveries[queue_id] = remaining
                    else:
                        del self._open_deliveries[queue_id]
            case Accepted() | Dispatched() | Attempted() | Event():
                pass
            case _:
                assert_never(record)

    def _insert(self, line: Pending) -> None:
        delivery = line.delivery
        message = delivery.message
        name = delivery.route.site
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = _SiteState(name)
        site.lines += 1
        self.inline_bytes += _inline_bytes(line)
        state = line.state
        self._recipients[state_name(state)] += len(message.envelope.recipients)
        self.quarantined_deliveries += _is_quarantined(line)
        if isinstance(state, Active):
            self._lines[delivery.id] = line
            self.active += 1
            site.active += 1
            site.active_bytes += message.size_bytes
        else:
            self._lines[delivery.id] = self._intern_line(line)
            if state.cause is not WaitCause.HELD:
                heappush(self._not_due, (state.due, delivery.id))
        self.age_index.add(line)

    def _uncount(self, line: Pending) -> None:
        message = line.delivery.message
        site = self._sites[line.delivery.route.site]
        site.lines -= 1
        self.inline_bytes -= _inline_bytes(line)
        self._recipients[state_name(line.state)] -= len(message.envelope.recipients)
        self.quarantined_deliveries -= _is_quarantined(line)
        self.age_index.remove(line)
        if isinstance(line.state, Active):
            self.active -= 1
            site.active -= 1
            site.active_bytes -= message.size_bytes
        if site.lines == 0:
            del self._sites[site.name]
            self._due_sites.pop(site.name, None)

    # Scheduling

    def next_due(self) -> datetime | None:
        """Due time of the next line, or None. May be early, never late."""
        return self._not_due[0][0] if self._not_due else None

    def due(self, now: datetime, limits: SiteLimits, limit: int) -> list[DeliveryId]:
        """Up to `limit` waiting lines that may become active now. The call advances the round robin: the caller must
        decide on every returned line, or discard the queue.
        """
        self._move_due(now)
        selected: dict[DeliveryId, None] = {}
        added_load: dict[str, list[int]] = {}  # what the selected lines add to the load of their site
        candidates = list(self._due_sites.values())
        while candidates and len(selected) < limit:
            next_round: list[_SiteState] = []
            for site in candidates:
                line = self._first_due(site, selected)
                if line is None:
                    self._due_sites.pop(site.name, None)
                    continue
                size = line.delivery.message.size_bytes
                added = added_load.setdefault(site.name, [0, 0])
                if not limits.allow(
                    site.active + added[0],
                    site.active_bytes + added[1],
                    self.active + len(selected),
                    size,
                    is_local=site.name == LOCAL_SITE,
                ):
                    continue
                added[0] += 1
                added[1] += size
                self._rotate(site)
                selected[line.delivery.id] = None
                if len(selected) == limit:
                    break
                next_round.append(site)
            candidates = next_round
        return list(selected)

    def _move_due(self, now: datetime) -> None:
        """Move lines due by `now` from `_not_due` to their site."""
        not_due = self._not_due
        while not_due and not_due[0][0] <= now:
            entry = heappop(not_due)
            line = self._lines.get(entry[1])
            if line is None or not _waits_until(line, entry[0]):
                continue
            self.age_index.on_due(entry, line)
            name = line.delivery.route.site
            site = self._sites[name]
            tenant = line.delivery.message.tenant
            queue = site.due_by_tenant.get(tenant)
            if queue is None:
                queue = site.due_by_tenant[tenant] = deque()
            queue.append(entry)
            self._due_sites[name] = site
        self.age_index.advance(now)

    def _first_due(self, site: _SiteState, selected: Container[DeliveryId]) -> Pending | None:
        """The site's next due line; removes stale entries before it. A line may be listed twice, because spooling its
        content applies it again.
        """
        while site.due_by_tenant:
            tenant, queue = next(iter(site.due_by_tenant.items()))
            while queue:
                due, delivery_id = queue[0]
                line = self._lines.get(delivery_id)
                if (
                    line is not None
                    and delivery_id not in selected
                    and _waits_until(line, due)
                    and line.delivery.route.site == site.name
                ):
                    return line
                queue.popleft()
            del site.due_by_tenant[tenant]
        return None

    def _rotate(self, site: _SiteState) -> None:
        """Round robin: move the served tenant to the end."""
        tenant, queue = next(iter(site.due_by_tenant.items()))
        queue.popleft()
        if queue:
            site.due_by_tenant.move_to_end(tenant)
        else:
            del site.due_by_tenant[tenant]
        self._due_sites.move_to_end(site.name)

    def prune(self) -> None:
        """Drop stale index entries when there are too many. Cheap otherwise."""
        if len(self._not_due) > 2 * len(self._lines) + 1000:
            entries = {
                (line.state.due, line.delivery.id)
                for line in self._lines.values()
                if isinstance(line.state, Waiting) and line.state.cause is not WaitCause.HELD
            }
            due = {entry for site in self._sites.values() for queue in site.due_by_tenant.values() for entry in queue}
            self._not_due = list(entries - due)
            heapify(self._not_due)
        self.age_index.prune()

    def indexed(self) -> Iterator[DeliveryId]:
        """Every line the indexes contain: the waiting lines that are not held."""
        for due, delivery_id in set(self._not_due).union(
            *(queue for site in self._sites.values() for queue in site.due_by_tenant.values())
        ):
            line = self._lines.get(delivery_id)
            if line is not None and _waits_until(line, due):
                yield delivery_id

    # Memory

    def _intern_line(self, line: Pending) -> Pending:
        """The same line with common values shared: many similar lines may wait for days."""
        delivery = line.delivery
        message = delivery.message
        envelope = message.envelope
        client = message.client
        recipients = envelope.recipients
        if len(recipients) <= 4:
            recipients = tuple(self._intern_recipient(recipient) for recipient in recipients)
        return replace(
            line,
            delivery=replace(
                delivery,
                route=self._intern(delivery.route),
                message=replace(
                    message,
                    tenant=self._intern(message.tenant),
                    client=None
                    if client is None
                    else replace(
                        client,
                        ip=self._intern(client.ip),
                        helo=self._intern(client.helo),
                        protocol=self._intern(client.protocol),
                    ),
                    envelope=replace(
                        envelope, reverse_path=self._intern(envelope.reverse_path), recipients=self._intern(recipients)
                    ),
                ),
            ),
            last=self._intern(line.last),
            last_remote=self._intern(line.last_remote),
        )

    def _intern_recipient(self, recipient: Recipient) -> Recipient:
        address = self._intern(recipient.address)
        return self._intern(replace(recipient, address=address, original=self._intern(recipient.original)))

    def _intern(self, value: V) -> V:
        interned = self._interned
        if len(interned) >= INTERNED_MAX:
            interned.clear()
        return cast(V, interned.setdefault(value, value))


def _waits_until(line: Pending, due: datetime) -> bool:
    state = line.state
    return isinstance(state, Waiting) and state.due == due and state.cause is not WaitCause.HELD


def _is_quarantined(line: Pending) -> bool:
    state = line.state
    return isinstance(state, Waiting) and state.cause is WaitCause.HELD and state.reason.startswith(QUARANTINE_REASON)


def _inline_bytes(line: Pending) -> int:
    return len(line.content.data) if isinstance(line.content, Inline) else 0
