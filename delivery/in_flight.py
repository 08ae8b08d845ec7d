"""In-flight limits of a process: deliveries in flight, in total and per site, and bytes of content in memory. No I/O.

Deliveries over a limit are queued by site and started round robin. A site's limit is adaptive: slow start
(+1 per prompt reply), halved otherwise. A site at the initial limit is *unproven*: it has two slots, and all
unproven sites together have half of the slots and memory; *trusted* sites (relays) are never unproven, and *reserved*
ones (mailboxes) have slots of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

O = TypeVar("O", bound=Hashable)  # noqa: E741  owner: a shard
T = TypeVar("T")

UNPROVEN_LIMIT = 2  # slots of an unproven site
AWAITING_SPOOL_FACTOR = 4  # deliveries that may wait for the spool, as a multiple of the slots
TRUSTED_LIMIT = 8  # initial slots of a trusted site
_ADAPTIVE_LIMITS_MAX = 2000  # sites; beyond it the least recently updated one becomes unproven again


class Item(NamedTuple, Generic[O, T]):
    """A delivery: `queued_bytes` are in memory while it is queued, `in_flight_bytes` while it is in flight."""

    owner: O
    entry: T
    site: str
    queued_bytes: int
    in_flight_bytes: int
    queued_at: float = 0.0  # monotonic seconds; kept when it is queued again


@dataclass(slots=True)
class _Load:
    """Deliveries in flight, and their bytes, of one or several sites."""

    count: int = 0
    size_bytes: int = 0

    def add(self, count: int, size_bytes: int) -> None:
        self.count += count
        self.size_bytes += size_bytes


_Queues = dict[str, deque[Item[O, T]]]


class InFlight(Generic[O, T]):
    """`site_limit(site)`: maximum deliveries of a site in flight; `queued_per_owner`: maximum queued ones of an owner;
    `reserved`: sites with slots of their own, and their number; `is_trusted(site)`: not chosen by the senders.
    """

    def __init__(
        self,
        *,
        slots: int,
        budget_bytes: int,
        queued_per_owner: int,
        site_limit: Callable[[str], int],
        reserved: Mapping[str, int] | None = None,
        is_trusted: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._slots = slots
        self._memory_budget = budget_bytes
        self._queued_per_owner = queued_per_owner
        self._site_limit = site_limit
        self._reserved = reserved or {}
        self._is_trusted = is_trusted
        # Queues by site, next site first; unproven sites separately, so that all can be skipped at once.
        self._proven: _Queues[O, T] = {}
        self._unproven: _Queues[O, T] = {}
        self._queued_by_owner: dict[O, int] = {}  # registered owners
        self._load_by_site: dict[str, _Load] = {}
        self._shared_load = _Load()  # of all sites that are not reserved
        self._unproven_load = _Load()
        self._adaptive_limits: dict[str, int] = {}  # by site, most recently updated last
        self._unproven_first = False
        self._awaiting_spool: set[int] = set()  # by identity: the caller keeps a reference
        self._awaiting_spool_bytes = 0
        self.queued = 0
        self.in_flight_count = 0
        self.memory_bytes = 0
        self.memory_limited = False  # a site without deliveries in flight cannot start for lack of memory

    @property
    def empty(self) -> bool:
        return not self.queued and not self.in_flight_count

    @property
    def has_queued_content(self) -> bool:
        """Whether a queued delivery has content in memory."""
        return any(item.queued_bytes for queue in self._all_queues().values() for item in queue)

    def register(self, owner: O) -> None:
        self._queued_by_owner[owner] = 0

    def unregister(self, owner: O) -> None:
        """Drop the owner's queued deliveries; those in flight count until they are finished."""
        del self._queued_by_owner[owner]
        for site, queue in self._all_queues().items():
            rest = deque(item for item in queue if item.owner != owner)
            if len(rest) < len(queue):
                self.queued -= len(queue) - len(rest)
                self.memory_bytes -= sum(item.queued_bytes for item in queue if item.owner == owner)
                self._set_queue(site, rest)

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

    def add(
        self, owner: O, entry: T, site: str, queued_bytes: int, in_flight_bytes: int, queued_at: float = 0.0
    ) -> None:
        """Queue a delivery; `start` returns it when it may start."""
        queues = self._queues_of_class(site)
        queue = queues.get(site)
        if queue is None:
            queue = queues[site] = deque()
        queue.append(Item(owner, entry, site, queued_bytes, in_flight_bytes, queued_at))
        self._queued_by_owner[owner] += 1
        self.queued += 1
        self.memory_bytes += queued_bytes

    def start(self) -> list[Item[O, T]]:
        """The deliveries that may start now, round robin by site; they are in flight from now on."""
        started: list[Item[O, T]] = []
        self.memory_limited = False
        self._unproven_first = not self._unproven_first
        proven, unproven = (self._proven, lambda: False), (self._unproven, self._unproven_is_full)
        classes = (unproven, proven) if self._unproven_first else (proven, unproven)
        progress = True
        while progress:
            progress = False
            for queues, full in classes:
                if queues and not full():
                    progress |= self._start_round(queues, full, started)
        return started

    def _start_round(self, queues: _Queues[O, T], is_full: Callable[[], bool], started: list[Item[O, T]]) -> bool:
        """Start at most one delivery per site."""
        progress = False
        for site in list(queues):
            if is_full():
                break
            queue = queues[site]
            first = queue[0]
            if not self._may_start(first):
                continue
            queue.popleft()
            del queues[site]
            self._set_queue(site, queue)  # at the end
            self._queued_by_owner[first.owner] -= 1
            self.queued -= 1
            self.memory_bytes += first.in_flight_bytes - first.queued_bytes
            self._add_load(site, 1, first.in_flight_bytes)
            started.append(first)
            progress = True
        return progress

    def _unproven_is_full(self) -> bool:
        load = self._unproven_load
        return load.count >= max(UNPROVEN_LIMIT, self._slots // 2) or load.size_bytes >= self._memory_budget // 2

    def _may_start(self, first: Item[O, T]) -> bool:
        site = first.site
        site_count = self._load_by_site[site].count if site in self._load_by_site else 0
        memory = self._memory_budget
        if site in self._reserved:
            if site_count >= self._reserved[site]:
                return False
            if not site_count:
                return True  # one delivery may exceed the memory limit
        else:
            if not self._shared_load.count:
                return True
            limit = min(self._site_limit(site), self._adaptive_limits.get(site, self._initial_limit(site)))
            last_slots = self._shared_load.count >= self._slots - self._slots // 4
            if self._shared_load.count >= self._slots or (site_count and (site_count >= limit or last_slots)):
                return False
            # Reading content from the spool leaves a quarter of the memory to inline content, and another quarter to
            # sites without deliveries in flight.
            memory = self._memory_budget * (2 if site_count else 3) // 4
        added_bytes = first.in_flight_bytes - first.queued_bytes
        if added_bytes <= 0 or self.memory_bytes + added_bytes <= memory:
            return True
        self.memory_limited |= not site_count
        return False

    def _add_load(self, site: str, count: int, size_bytes: int) -> None:
        load = self._load_by_site.get(site)
        if load is None:
            load = self._load_by_site[site] = _Load()
        self.in_flight_count += count
        load.add(count, size_bytes)
        if site not in self._reserved:
            self._shared_load.add(count, size_bytes)
            if self._is_unproven(site):
                self._unproven_load.add(count, size_bytes)
        if not load.count:
            del self._load_by_site[site]

    def finish(self, item: Item[O, T], *, responsive: bool) -> None:
        """A started delivery finished or was cancelled; `responsive`: the site replied in time."""
        self.memory_bytes -= item.in_flight_bytes
        if id(item) in self._awaiting_spool:
            self._awaiting_spool.remove(id(item))
            self._awaiting_spool_bytes -= item.in_flight_bytes
        else:
            self._release_slot(item, responsive)

    def set_awaiting_spool(self, item: Item[O, T], *, responsive: bool) -> bool:
        """Free the slot of a started delivery but keep its memory, until `finish`. False if too many do so already."""
        memory_left = self._memory_budget // 2 - self._awaiting_spool_bytes
        if (
            id(item) in self._awaiting_spool
            or item.in_flight_bytes > memory_left
            or len(self._awaiting_spool) >= AWAITING_SPOOL_FACTOR * self._slots
        ):
            return False
        self._awaiting_spool.add(id(item))
        self._awaiting_spool_bytes += item.in_flight_bytes
        self._release_slot(item, responsive)
        return True

    def _release_slot(self, item: Item[O, T], responsive: bool) -> None:
        site = item.site
        self._add_load(site, -1, -item.in_flight_bytes)
        if site in self._reserved:
            return
        was_unproven, initial = self._is_unproven(site), self._initial_limit(site)
        limit = self._adaptive_limits.pop(site, initial)
        limit = min(limit + 1, self._slots) if responsive else limit // 2
        if limit > initial:
            self._adaptive_limits[site] = limit
        if was_unproven is not self._is_unproven(site):
            self._reclassify(site)
        if len(self._adaptive_limits) > _ADAPTIVE_LIMITS_MAX:
            evicted = next(iter(self._adaptive_limits))
            del self._adaptive_limits[evicted]
            if self._is_unproven(evicted):
                self._reclassify(evicted)

    def _initial_limit(self, site: str) -> int:
        return TRUSTED_LIMIT if self._is_trusted(site) else UNPROVEN_LIMIT

    def _is_unproven(self, site: str) -> bool:
        return site not in self._adaptive_limits and site not in self._reserved and not self._is_trusted(site)

    def _reclassify(self, site: str) -> None:
        """The site became unproven or proven: move its queue and load."""
        unproven = self._is_unproven(site)
        queue = (self._proven if unproven else self._unproven).pop(site, None)
        if queue is not None:
            self._set_queue(site, queue)
        load = self._load_by_site.get(site)
        if load is not None:
            sign = 1 if unproven else -1
            self._unproven_load.add(sign * load.count, sign * load.size_bytes)

    def take_content(self, limit: int) -> list[Item[O, T]]:
        """Remove up to `limit` queued deliveries with content in memory, from the site with most of it. The caller
        `add`s them again after spooling, if their owner is still registered.
        """
        queues = self._all_queues()
        if not queues:
            return []
        site = max(queues, key=lambda name: sum(item.queued_bytes for item in queues[name]))
        queue = queues[site]
        with_content = [item for item in queue if item.queued_bytes][-limit:]
        if not with_content:
            return []
        taken = {id(item) for item in with_content}
        self._set_queue(site, deque(item for item in queue if id(item) not in taken))
        for item in with_content:
            self._queued_by_owner[item.owner] -= 1
        self.queued -= len(with_content)
        self.memory_bytes -= sum(item.queued_bytes for item in with_content)
        return with_content

    def _set_queue(self, site: str, queue: deque[Item[O, T]]) -> None:
        if queue:
            self._queues_of_class(site)[site] = queue
        else:
            self._queues_of_class(site).pop(site, None)

    def _queues_of_class(self, site: str) -> _Queues[O, T]:
        return self._unproven if self._is_unproven(site) else self._proven

    def _all_queues(self) -> _Queues[O, T]:
        return {**self._proven, **self._unproven}
