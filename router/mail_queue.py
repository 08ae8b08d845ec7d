"""The queue of one shard: a fold of records, with indexes by site, tenant and due time. No I/O.

`apply` alone changes the open entries, live and at replay, so both give the same state. A waiting entry is in
`_not_due` until it is due, then in the FIFO of its site and tenant; stale index items are removed when they are read.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Container, Hashable, Iterable, Iterator
from datetime import datetime
from heapq import heapify, heappop, heappush
from typing import TypeVar, cast

from msgspec.structs import replace

from mail.envelope import Recipient
from mail.message import DeliveryId, Inline, QueueId
from mail.record import (
    STATES,
    Active,
    QueueEntry,
    QueueTombstone,
    Record,
    WaitCause,
    Waiting,
    is_corrupt,
    state_name,
)
from mail.route import MAILBOX_SITE
from router.age import AgeIndex
from router.site_limits import SiteLimits

# Prefix of the reason of a quarantined delivery; stored in records, so it must never change.
QUARANTINE_REASON = "A bug of the router"

INTERNED_MAX = 20_000  # interned values; the table is cleared when it is full

V = TypeVar("V", bound=Hashable)


class _SiteState:
    """Load of one site and its due entries."""

    __slots__ = ("active", "active_bytes", "due_by_tenant", "entries", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries = 0  # open entries in any state
        self.active = 0
        self.active_bytes = 0
        self.due_by_tenant: OrderedDict[str, deque[tuple[datetime, DeliveryId]]] = OrderedDict()  # next tenant first


class MailQueue:
    """The open deliveries of one shard, and its damaged records in quarantine, which are not open deliveries."""

    def __init__(self) -> None:
        self._entries: dict[DeliveryId, QueueEntry] = {}
        self._open_deliveries: dict[QueueId, int] = {}
        self._sites: dict[str, _SiteState] = {}
        self.active = 0  # deliveries
        self.inline_bytes = 0  # content in entries; 0 unless the spool fails
        self._recipients = dict.fromkeys(STATES, 0)
        self.quarantined_deliveries = 0
        self.corrupt_records = 0
        self.age_index = AgeIndex(self._entries)
        self._not_due: list[tuple[datetime, DeliveryId]] = []  # heap
        self._due_sites: OrderedDict[str, _SiteState] = OrderedDict()  # sites with due entries, next site first
        self._interned: dict[Hashable, Hashable] = {}

    # Queries

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> Iterable[QueueEntry]:
        """Every open entry, in no particular order."""
        return self._entries.values()

    def entry(self, delivery_id: DeliveryId) -> QueueEntry | None:
        return self._entries.get(delivery_id)

    def open_deliveries(self, queue_id: QueueId) -> int:
        """Number of open deliveries of the message."""
        return self._open_deliveries.get(queue_id, 0)

    def recipients(self) -> dict[str, int]:
        """Open recipients by state (`STATES`)."""
        return dict(self._recipients)

    @property
    def open_recipients(self) -> int:
        return sum(self._recipients.values())

    def is_below_limits(self, site_name: str, size_bytes: int, limits: SiteLimits) -> bool:
        """Whether one more delivery to the site may become active."""
        site = self._sites.get(site_name)
        active, active_bytes = (site.active, site.active_bytes) if site is not None else (0, 0)
        return limits.allow(active, active_bytes, self.active, size_bytes, is_local=site_name == MAILBOX_SITE)

    # Changes

    def apply(self, record: Record) -> None:
        """Apply one record. Those of other topics change nothing."""
        match record:
            case QueueEntry():
                old = self._entries.get(record.delivery.id)
                if old is not None:
                    self._uncount(old)
                self._insert(record)
            case QueueTombstone():
                removed = self._entries.pop(record.delivery_id, None)
                if removed is not None:
                    self._uncount(removed)
            case _:
                pass

    def _insert(self, entry: QueueEntry) -> None:
        delivery = entry.delivery
        message = delivery.message
        name = delivery.route.site
        if is_corrupt(entry):
            self.corrupt_records += 1
            entry = replace(entry, content=None)  # its bytes are only read from the log
        else:
            queue_id = message.queue_id
            self._open_deliveries[queue_id] = self._open_deliveries.get(queue_id, 0) + 1
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = _SiteState(name)
        site.entries += 1
        self.inline_bytes += _inline_bytes(entry)
        state = entry.state
        self._recipients[state_name(state)] += len(message.envelope.recipients)
        self.quarantined_deliveries += _is_quarantined(entry)
        if isinstance(state, Active):
            self._entries[delivery.id] = entry
            self.active += 1
            site.active += 1
            site.active_bytes += message.size_bytes
        else:
            self._entries[delivery.id] = self._intern_entry(entry)
            if state.cause is not WaitCause.HELD:
                heappush(self._not_due, (state.due, delivery.id))
        self.age_index.add(entry)

    def _uncount(self, entry: QueueEntry) -> None:
        message = entry.delivery.message
        if is_corrupt(entry):
            self.corrupt_records -= 1
        else:
            remaining = self._open_deliveries[message.queue_id] - 1
            if remaining:
                self._open_deliveries[message.queue_id] = remaining
            else:
                del self._open_deliveries[message.queue_id]
        site = self._sites[entry.delivery.route.site]
        site.entries -= 1
        self.inline_bytes -= _inline_bytes(entry)
        self._recipients[state_name(entry.state)] -= len(message.envelope.recipients)
        self.quarantined_deliveries -= _is_quarantined(entry)
        self.age_index.remove(entry)
        if isinstance(entry.state, Active):
            self.active -= 1
            site.active -= 1
            site.active_bytes -= message.size_bytes
        if site.entries == 0:
            del self._sites[site.name]
            self._due_sites.pop(site.name, None)

    # Scheduling

    def next_due(self) -> datetime | None:
        """Due time of the next entry, or None. May be early, never late."""
        return self._not_due[0][0] if self._not_due else None

    def due(self, now: datetime, limits: SiteLimits, limit: int) -> list[DeliveryId]:
        """Up to `limit` waiting entries that may become active now. The call advances the round robin: the caller must
        decide on every returned entry, or discard the queue.
        """
        self._move_due(now)
        selected: dict[DeliveryId, None] = {}
        added_load: dict[str, list[int]] = {}  # what the selected entries add to the load of their site
        candidates = list(self._due_sites.values())
        while candidates and len(selected) < limit:
            next_round: list[_SiteState] = []
            for site in candidates:
                entry = self._first_due(site, selected)
                if entry is None:
                    self._due_sites.pop(site.name, None)
                    continue
                size = entry.delivery.message.size_bytes
                added = added_load.setdefault(site.name, [0, 0])
                if not limits.allow(
                    site.active + added[0],
                    site.active_bytes + added[1],
                    self.active + len(selected),
                    size,
                    is_local=site.name == MAILBOX_SITE,
                ):
                    continue
                added[0] += 1
                added[1] += size
                self._rotate(site)
                selected[entry.delivery.id] = None
                if len(selected) == limit:
                    break
                next_round.append(site)
            candidates = next_round
        return list(selected)

    def _move_due(self, now: datetime) -> None:
        """Move entries due by `now` from `_not_due` to their site."""
        not_due = self._not_due
        while not_due and not_due[0][0] <= now:
            item = heappop(not_due)
            entry = self._entries.get(item[1])
            if entry is None or not _waits_until(entry, item[0]):
                continue
            self.age_index.on_due(item, entry)
            name = entry.delivery.route.site
            site = self._sites[name]
            tenant = entry.delivery.message.tenant
            queue = site.due_by_tenant.get(tenant)
            if queue is None:
                queue = site.due_by_tenant[tenant] = deque()
            queue.append(item)
            self._due_sites[name] = site
        self.age_index.advance(now)

    def _first_due(self, site: _SiteState, selected: Container[DeliveryId]) -> QueueEntry | None:
        """The site's next due entry; removes stale items before it. An entry may be listed twice, because spooling its
        content applies it again.
        """
        while site.due_by_tenant:
            tenant, queue = next(iter(site.due_by_tenant.items()))
            while queue:
                due, delivery_id = queue[0]
                entry = self._entries.get(delivery_id)
                if (
                    entry is not None
                    and delivery_id not in selected
                    and _waits_until(entry, due)
                    and entry.delivery.route.site == site.name
                ):
                    return entry
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
        """Drop stale index items when there are too many. Cheap otherwise."""
        if len(self._not_due) > 2 * len(self._entries) + 1000:
            items = {
                (entry.state.due, entry.delivery.id)
                for entry in self._entries.values()
                if isinstance(entry.state, Waiting) and entry.state.cause is not WaitCause.HELD
            }
            due = {item for site in self._sites.values() for queue in site.due_by_tenant.values() for item in queue}
            self._not_due = list(items - due)
            heapify(self._not_due)
        self.age_index.prune()

    def indexed(self) -> Iterator[DeliveryId]:
        """Every entry the indexes contain: the waiting entries that are not held."""
        for due, delivery_id in set(self._not_due).union(
            *(queue for site in self._sites.values() for queue in site.due_by_tenant.values())
        ):
            entry = self._entries.get(delivery_id)
            if entry is not None and _waits_until(entry, due):
                yield delivery_id

    # Memory

    def _intern_entry(self, entry: QueueEntry) -> QueueEntry:
        """The same entry with common values shared: many similar entries may wait for days."""
        delivery = entry.delivery
        message = delivery.message
        envelope = message.envelope
        client = message.client
        recipients = envelope.recipients
        if len(recipients) <= 4:
            recipients = tuple(self._intern_recipient(recipient) for recipient in recipients)
        return replace(
            entry,
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
            last=self._intern(entry.last),
            last_remote=self._intern(entry.last_remote),
        )

    def _intern_recipient(self, recipient: Recipient) -> Recipient:
        address, replaced = self._intern(recipient.address), self._intern(recipient.replaced)
        return self._intern(replace(recipient, address=address, replaced=replaced))

    def _intern(self, value: V) -> V:
        interned = self._interned
        if len(interned) >= INTERNED_MAX:
            interned.clear()
        return cast(V, interned.setdefault(value, value))


def _waits_until(entry: QueueEntry, due: datetime) -> bool:
    state = entry.state
    return isinstance(state, Waiting) and state.due == due and state.cause is not WaitCause.HELD


def _is_quarantined(entry: QueueEntry) -> bool:
    state = entry.state
    return isinstance(state, Waiting) and state.cause is WaitCause.HELD and state.reason.startswith(QUARANTINE_REASON)


def _inline_bytes(entry: QueueEntry) -> int:
    return len(entry.content.data) if isinstance(entry.content, Inline) else 0
