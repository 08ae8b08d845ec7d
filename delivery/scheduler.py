"""Scheduler of a process: which queued deliveries start, by the windows of their sites and by three budgets. No I/O.

Deliveries are queued by site and started round robin. Mailboxes and remote sites have separate slots; unproven sites
together have half of the remote slots and of the memory. The memory budget is for queued content and content in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from delivery.site_window import UNPROVEN_START, SiteWindows
from mail.route import MAILBOX_SITE

O = TypeVar("O")  # noqa: E741  owner: a worker
T = TypeVar("T")

AWAITING_SPOOL_FACTOR = 4  # deliveries that may wait for the spool, as a multiple of the slots


class Item(NamedTuple, Generic[O, T]):
    """A delivery: `queued_bytes` are in memory while it is queued, `in_flight_bytes` while it is in flight."""

    owner: O
    entry: T
    site: str
    queued_bytes: int
    in_flight_bytes: int
    queued_at: float = 0.0  # monotonic seconds; kept when it is queued again


@dataclass(slots=True)
class _Site(Generic[O, T]):
    """A site with deliveries, queued or in flight. `is_unproven`: the class in which it is counted; `limit`: of its
    deliveries in flight, by its window when one finished last.
    """

    name: str
    is_unproven: bool
    limit: int
    queue: deque[Item[O, T]] = field(default_factory=deque)
    in_flight_count: int = 0
    in_flight_bytes: int = 0
    connecting_count: int = 0  # of those in flight


class Scheduler(Generic[O, T]):
    """`slots`: maximum deliveries in flight to remote sites; `queued_per_owner`: maximum queued ones of an owner."""

    def __init__(
        self, windows: SiteWindows, *, slots: int, mailbox_slots: int, memory_bytes: int, queued_per_owner: int
    ) -> None:
        self._windows = windows
        self._slots = slots
        self._site_slots = max(1, slots // 2)
        self._mailbox_slots = mailbox_slots
        self._memory_budget = memory_bytes
        self._queued_per_owner = queued_per_owner
        self._sites: dict[str, _Site[O, T]] = {}
        # Sites with queued deliveries, next site first; unproven ones separately, so that all can be skipped at once.
        self._queued_sites: dict[bool, dict[str, _Site[O, T]]] = {False: {}, True: {}}  # by `is_unproven`
        self._queued_by_owner: dict[O, int] = {}  # registered owners
        self._remote_count = self._unproven_count = self._unproven_bytes = 0  # in flight
        self._unproven_first = False
        self._connecting: set[int] = set()  # by identity, as the next
        self._awaiting_spool: set[int] = set()  # by identity: the caller keeps a reference
        self._awaiting_spool_bytes = 0
        self.queued = 0
        self.in_flight_count = 0
        self.memory_bytes = 0
        self.memory_limited = False  # a site without deliveries in flight cannot start for lack of memory

    @property
    def empty(self) -> bool:
        return not self.queued and not self.in_flight_count

    def register(self, owner: O) -> None:
        self._queued_by_owner[owner] = 0

    def unregister(self, owner: O) -> None:
        """Drop the owner's queued deliveries; those in flight count until they are finished."""
        for site in list(self._sites.values()):
            self._remove_queued(site, [item for item in site.queue if item.owner == owner])
        del self._queued_by_owner[owner]

    def is_registered(self, owner: O) -> bool:
        return owner in self._queued_by_owner

    def has_queue_space(self, owner: O) -> bool:
        """Whether the owner's queue has space, apart from memory."""
        return self._queued_by_owner[owner] < self._queued_per_owner

    def read_limit(self, owner: O, largest_bytes: int) -> int:
        """How many entries of at most `largest_bytes` the owner may read; at least one if `empty`.

        Owners read concurrently after this call, so each is limited to its share of the memory; together they exceed
        the memory limit at most twofold and briefly.
        """
        share = max(1, self._memory_budget // (largest_bytes * len(self._queued_by_owner)))
        queue_space = self._queued_per_owner - self._queued_by_owner[owner]
        if self.empty:
            return min(queue_space, share)
        return max(0, min(queue_space, share, (self._memory_budget - self.memory_bytes) // largest_bytes))

    def add(self, item: Item[O, T]) -> None:
        """Queue a delivery; `start` returns it when it may start."""
        site = self._sites.get(item.site)
        if site is None:
            site = self._sites[item.site] = _Site(item.site, *self._class_and_limit(item.site))
        site.queue.append(item)
        self._queued_sites[site.is_unproven].setdefault(site.name, site)
        self._queued_by_owner[item.owner] += 1
        self.queued += 1
        self.memory_bytes += item.queued_bytes

    def start(self) -> list[Item[O, T]]:
        """The deliveries that may start now, round robin by site; they are in flight from now on."""
        started: list[Item[O, T]] = []
        self.memory_limited = False
        self._unproven_first = not self._unproven_first
        while True:
            before = len(started)
            for is_unproven in (self._unproven_first, not self._unproven_first):
                queued = self._queued_sites[is_unproven]
                if queued and not self._is_full(is_unproven):
                    started += self._start_round(queued)
            if len(started) == before:
                return started

    def _start_round(self, queued: dict[str, _Site[O, T]]) -> Iterator[Item[O, T]]:
        """Start at most one delivery per site."""
        for site in list(queued.values()):
            item = site.queue[0]
            if not self._may_start(site, item):
                continue
            site.queue.popleft()
            del queued[site.name]
            if site.queue:
                queued[site.name] = site  # at the end
            self._queued_by_owner[item.owner] -= 1
            self.queued -= 1
            self.memory_bytes += item.in_flight_bytes - item.queued_bytes
            self._add_load(site, 1, item.in_flight_bytes)
            yield item
            if self._is_full(site.is_unproven):
                return

    def _is_full(self, is_unproven: bool) -> bool:
        """Whether no site of the class may start a delivery."""
        if self._remote_count >= self._slots and (is_unproven or MAILBOX_SITE not in self._queued_sites[False]):
            return True
        return is_unproven and (
            self._unproven_count >= max(UNPROVEN_START, self._slots // 2)
            or self._unproven_bytes >= self._memory_budget // 2
        )

    def _may_start(self, site: _Site[O, T], item: Item[O, T]) -> bool:
        count = site.in_flight_count
        memory = self._memory_budget
        if site.name == MAILBOX_SITE:
            if count >= site.limit:
                return False
            if not count:
                return True  # one delivery may exceed the memory limit
        else:
            total = self._remote_count
            if not total and not count:
                return True
            if total >= self._slots or (count and (count >= site.limit or total >= self._slots - self._slots // 4)):
                return False  # the last quarter of the slots is for sites without deliveries in flight
            # Reading content from the spool leaves a quarter of the memory to inline content, and another quarter to
            # sites without deliveries in flight.
            memory = self._memory_budget * (2 if count else 3) // 4
        added_bytes = item.in_flight_bytes - item.queued_bytes
        if added_bytes <= 0 or self.memory_bytes + added_bytes <= memory:
            return True
        self.memory_limited |= not count
        return False

    def _class_and_limit(self, site: str) -> tuple[bool, int]:
        if site == MAILBOX_SITE:
            return False, self._mailbox_slots
        window = self._windows.read(site)
        return window.is_unproven, min(window.delivery_limit, self._site_slots)

    def _add_load(self, site: _Site[O, T], count: int, size_bytes: int) -> None:
        self.in_flight_count += count
        site.in_flight_count += count
        site.in_flight_bytes += size_bytes
        if site.name != MAILBOX_SITE:
            self._remote_count += count
        if site.is_unproven:
            self._unproven_count += count
            self._unproven_bytes += size_bytes

    def finish(self, item: Item[O, T]) -> None:
        """A started delivery finished or was cancelled."""
        self.set_connecting(item, connecting=False)
        self.memory_bytes -= item.in_flight_bytes
        if id(item) in self._awaiting_spool:
            self._awaiting_spool.remove(id(item))
            self._awaiting_spool_bytes -= item.in_flight_bytes
        else:
            self._release_slot(item)

    def set_connecting(self, item: Item[O, T], *, connecting: bool) -> bool:
        """A started delivery waits for a connection to open: it keeps its memory and its share of the site, and needs
        no slot, because the connections are bounded. Afterwards it has one, also if all are taken. Returns whether
        this is a change.
        """
        if connecting is (id(item) in self._connecting):
            return False
        site = self._sites[item.site]
        change = 1 if connecting else -1
        (self._connecting.add if connecting else self._connecting.remove)(id(item))
        site.connecting_count += change
        self._remote_count -= change
        if site.is_unproven:
            self._unproven_count -= change
        if not connecting:
            self._update_class(site)  # the site may have greeted
        return True

    def set_awaiting_spool(self, item: Item[O, T]) -> bool:
        """Free the slot of a started delivery but keep its memory, until `finish`. False if too many do so already."""
        memory_left = self._memory_budget // 2 - self._awaiting_spool_bytes
        if (
            id(item) in self._awaiting_spool
            or item.in_flight_bytes > memory_left
            or len(self._awaiting_spool) >= AWAITING_SPOOL_FACTOR * self._slots
        ):
            return False
        self.set_connecting(item, connecting=False)
        self._awaiting_spool.add(id(item))
        self._awaiting_spool_bytes += item.in_flight_bytes
        self._release_slot(item)
        return True

    def _release_slot(self, item: Item[O, T]) -> None:
        site = self._sites[item.site]
        self._add_load(site, -1, -item.in_flight_bytes)
        self._update_class(site)
        self._forget_if_unused(site)

    def _update_class(self, site: _Site[O, T]) -> None:
        was_unproven = site.is_unproven
        site.is_unproven, site.limit = self._class_and_limit(site.name)
        if was_unproven is not site.is_unproven:  # by its last attempts: move its queue and load
            sign = -1 if was_unproven else 1
            self._unproven_count += sign * (site.in_flight_count - site.connecting_count)
            self._unproven_bytes += sign * site.in_flight_bytes
            if self._queued_sites[was_unproven].pop(site.name, None) is not None:
                self._queued_sites[site.is_unproven][site.name] = site

    def take_content(self, limit: int) -> list[Item[O, T]]:
        """Remove up to `limit` queued deliveries with content in memory, from the site with most of it. The caller
        `add`s them again after spooling, if their owner is still registered.
        """
        if not self.queued:
            return []
        site = max(self._sites.values(), key=lambda site: sum(item.queued_bytes for item in site.queue))
        with_content = [item for item in site.queue if item.queued_bytes][-limit:]
        self._remove_queued(site, with_content)
        return with_content

    def _remove_queued(self, site: _Site[O, T], items: list[Item[O, T]]) -> None:
        removed = {id(item) for item in items}
        site.queue = deque(item for item in site.queue if id(item) not in removed)
        for item in items:
            self._queued_by_owner[item.owner] -= 1
        self.queued -= len(items)
        self.memory_bytes -= sum(item.queued_bytes for item in items)
        if not site.queue:
            self._queued_sites[site.is_unproven].pop(site.name, None)
            self._forget_if_unused(site)

    def _forget_if_unused(self, site: _Site[O, T]) -> None:
        if not site.queue and not site.in_flight_count:
            del self._sites[site.name]
