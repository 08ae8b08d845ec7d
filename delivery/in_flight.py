"""What a process has taken of its shards and not yet finished: who may start now, and whether more may be taken. Pure.

In charge of three bounds: deliveries active, of them those of one site, and bytes of content in memory. What may not
start yet is *queued*, site by site, and started in turns, so a slow site holds up only itself. Many slow sites
together are kept from everybody's places and memory too: a site that has not answered lately is a *unproven site*,
which
has two places, and all unproven sites together have half of them and half of the memory; a site's share grows as it
answers
and halves when it does not (a tarpit never earns one); the last places, and some of the memory, are for sites that
have nothing active. A site that was *chosen* (a relay) is never a unproven site, and one *apart* (the mailboxes) has
places of its own, which no other can take. Each entry belongs to an *owner* (a shard), which may leave at any time and
takes along only what it has queued. What is carried and only waits to be reported *lingers*, without a place. Knows
nothing of mail: items and owners are anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

O = TypeVar("O", bound=Hashable)  # noqa: E741  who parks it
T = TypeVar("T")

UNPROVEN_LIMIT = 2  # of a unproven site
AWAITING_SPOOL_FACTOR = 4  # times as many as there are places
TRUSTED_LIMIT = 8  # of a site that was chosen, at first
_EARNED_LIMITS_MAX = (
    2000  # sites whose share is known; beyond it the one that grew least recently is a unproven site again
)


class Queued(NamedTuple, Generic[O, T]):
    """`queued_bytes` are in memory while it is queued, `active_bytes` while it is active; `queued_at` is
    when it was queued
    first.
    """

    owner: O
    item: T
    site: str
    queued_bytes: int
    active_bytes: int
    queued_at: float = 0.0


class _Load:
    """What a site, or several, have active."""

    __slots__ = ("count", "size_bytes")

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0

    def add(self, count: int, size_bytes: int) -> None:
        self.count += count
        self.size_bytes += size_bytes


_Queues = dict[str, deque[Queued[O, T]]]


class InFlight(Generic[O, T]):
    """`site_limit(site)` is how many of a site may be active; `queued_per_owner` how many each owner may
    have queued; `reserved` the
    sites with places of their own, and how many; `is_trusted(site)` says that it is not the senders' choice.
    """

    def __init__(
        self,
        *,
        slots: int,
        memory_bytes: int,
        queued_per_owner: int,
        site_limit: Callable[[str], int],
        reserved: Mapping[str, int] | None = None,
        is_trusted: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._slots = slots
        self._memory_max = memory_bytes
        self._queued_per_owner = queued_per_owner
        self._site_limit = site_limit
        self._reserved = reserved or {}
        self._is_trusted = is_trusted
        # Queues by site, in the order of their turns; those of unproven sites apart, to be passed over at once.
        self._proven: _Queues[O, T] = {}
        self._unproven: _Queues[O, T] = {}
        self._queued_by_owner: dict[O, int] = {}  # the owners that are here
        self._load_by_site: dict[str, _Load] = {}
        self._shared_load = _Load()  # of all sites that are not reserved
        self._unproven_load = _Load()
        self._earned_limits: dict[str, int] = {}  # the share each site has come to, the latest last
        self._unproven_first = False
        self._awaiting_spool: set[int] = set()  # by identity: who calls keeps them
        self._awaiting_spool_bytes = 0
        self.queued = 0
        self.active = 0
        self.memory_bytes = 0
        self.memory_limited = (
            False  # a site that has nothing active could start, were there memory to read its content into
        )

    @property
    def empty(self) -> bool:
        return not self.queued and not self.active

    @property
    def has_queued_content(self) -> bool:
        """Whether anything that is queued holds memory."""
        return any(queued.queued_bytes for queue in self._all_queues().values() for queued in queue)

    def register(self, owner: O) -> None:
        self._queued_by_owner[owner] = 0

    def unregister(self, owner: O) -> None:
        """Forget what the owner has queued: its next one takes it again. What is active counts until it is finished."""
        del self._queued_by_owner[owner]
        for site, queue in self._all_queues().items():
            rest = deque(queued for queued in queue if queued.owner != owner)
            if len(rest) < len(queue):
                self.queued -= len(queue) - len(rest)
                self.memory_bytes -= sum(queued.queued_bytes for queued in queue if queued.owner == owner)
                self._set_queue(site, rest)

    def is_registered(self, owner: O) -> bool:
        return owner in self._queued_by_owner

    def has_queue_space(self, owner: O) -> bool:
        """Whether the owner may park more, were there memory."""
        return self._queued_by_owner[owner] < self._queued_per_owner

    def read_limit(self, owner: O, largest_bytes: int) -> int:
        """How many more the owner may take, each holding at most `largest_bytes`. At least one when there is nothing.

        Owners ask, wait, and bring what they were allowed; so each may bring no more than its part of all memory, and
        together they hold at most twice of it, for as long as it takes to see that it is too much.
        """
        share = max(1, self._memory_max // (largest_bytes * len(self._queued_by_owner)))
        queue_space = self._queued_per_owner - self._queued_by_owner[owner]
        if self.empty:
            return min(queue_space, share)
        return max(0, min(queue_space, share, (self._memory_max - self.memory_bytes) // largest_bytes))

    def add(self, owner: O, item: T, site: str, queued_bytes: int, active_bytes: int, queued_at: float = 0.0) -> None:
        """Park what was taken; `start` says when it may go."""
        queues = self._queues_of_class(site)
        queue = queues.get(site)
        if queue is None:
            queue = queues[site] = deque()
        queue.append(Queued(owner, item, site, queued_bytes, active_bytes, queued_at))
        self._queued_by_owner[owner] += 1
        self.queued += 1
        self.memory_bytes += queued_bytes

    def start(self) -> list[Queued[O, T]]:
        """Those that may start now, the sites in turns; they count as active from here on."""
        started: list[Queued[O, T]] = []
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

    def _start_round(self, queues: _Queues[O, T], is_full: Callable[[], bool], started: list[Queued[O, T]]) -> bool:
        """One of each site."""
        progress = False
        for site in list(queues):
            if is_full():
                break
            queue = queues[site]
            first = queue[0]
            if not self._may_start(first):
                continue
            queue.popleft()
            # The next turn is the others'.
            del queues[site]
            self._set_queue(site, queue)
            self._queued_by_owner[first.owner] -= 1
            self.queued -= 1
            self.memory_bytes += first.active_bytes - first.queued_bytes
            self._add_load(site, 1, first.active_bytes)
            started.append(first)
            progress = True
        return progress

    def _unproven_is_full(self) -> bool:
        load = self._unproven_load
        return load.count >= max(UNPROVEN_LIMIT, self._slots // 2) or load.size_bytes >= self._memory_max // 2

    def _may_start(self, first: Queued[O, T]) -> bool:
        site = first.site
        site_active = self._load_by_site[site].count if site in self._load_by_site else 0
        memory = self._memory_max
        if site in self._reserved:
            if site_active >= self._reserved[site]:
                return False
            if not site_active:
                return True  # something always moves, however large
        else:
            if not self._shared_load.count:
                return True
            limit = min(self._site_limit(site), self._earned_limits.get(site, self._initial_limit(site)))
            last_slots = self._shared_load.count >= self._slots - self._slots // 4
            if self._shared_load.count >= self._slots or (site_active and (site_active >= limit or last_slots)):
                return False
            # What has to be read into memory leaves a quarter of it to what comes with its content, and another
            # quarter to sites that have nothing active.
            memory = self._memory_max * (2 if site_active else 3) // 4
        added_bytes = first.active_bytes - first.queued_bytes
        if added_bytes <= 0 or self.memory_bytes + added_bytes <= memory:
            return True
        self.memory_limited |= not site_active
        return False

    def _add_load(self, site: str, count: int, size_bytes: int) -> None:
        load = self._load_by_site.get(site)
        if load is None:
            load = self._load_by_site[site] = _Load()
        self.active += count
        load.add(count, size_bytes)
        if site not in self._reserved:
            self._shared_load.add(count, size_bytes)
            if self._is_unproven(site):
                self._unproven_load.add(count, size_bytes)
        if not load.count:
            del self._load_by_site[site]

    def finish(self, queued: Queued[O, T], *, responsive: bool) -> None:
        """What `start` gave is finished or given up; `responsive`: the site answered, and soon."""
        self.memory_bytes -= queued.active_bytes
        if id(queued) in self._awaiting_spool:
            self._awaiting_spool.remove(id(queued))
            self._awaiting_spool_bytes -= queued.active_bytes
        else:
            self._release_slot(queued, responsive)

    def set_awaiting_spool(self, queued: Queued[O, T], *, responsive: bool) -> bool:
        """What `start` gave needs its memory for a while, but its place no more, if not too much does already; `finish`
        comes later. Whether the place is free.
        """
        memory_left = self._memory_max // 2 - self._awaiting_spool_bytes
        if (
            id(queued) in self._awaiting_spool
            or queued.active_bytes > memory_left
            or len(self._awaiting_spool) >= AWAITING_SPOOL_FACTOR * self._slots
        ):
            return False
        self._awaiting_spool.add(id(queued))
        self._awaiting_spool_bytes += queued.active_bytes
        self._release_slot(queued, responsive)
        return True

    def _release_slot(self, queued: Queued[O, T], responsive: bool) -> None:
        site = queued.site
        self._add_load(site, -1, -queued.active_bytes)
        if site in self._reserved:
            return
        was_unproven, initial = self._is_unproven(site), self._initial_limit(site)
        earned = self._earned_limits.pop(site, initial)
        earned = min(earned + 1, self._slots) if responsive else earned // 2
        if earned > initial:
            self._earned_limits[site] = earned
        if was_unproven is not self._is_unproven(site):
            self._reclassify(site)
        if len(self._earned_limits) > _EARNED_LIMITS_MAX:
            forgotten = next(iter(self._earned_limits))
            del self._earned_limits[forgotten]
            if self._is_unproven(forgotten):
                self._reclassify(forgotten)

    def _initial_limit(self, site: str) -> int:
        return TRUSTED_LIMIT if self._is_trusted(site) else UNPROVEN_LIMIT

    def _is_unproven(self, site: str) -> bool:
        return site not in self._earned_limits and site not in self._reserved and not self._is_trusted(site)

    def _reclassify(self, site: str) -> None:
        """The site has just become a unproven site, or ceased to be one."""
        unproven = self._is_unproven(site)
        queue = (self._proven if unproven else self._unproven).pop(site, None)
        if queue is not None:
            self._set_queue(site, queue)
        load = self._load_by_site.get(site)
        if load is not None:
            sign = 1 if unproven else -1
            self._unproven_load.add(sign * load.count, sign * load.size_bytes)

    def take_content(self, limit: int) -> list[Queued[O, T]]:
        """Take out up to `limit` of the queued that hold memory, from the site that holds most, whosever they are;
        `add` them again when they hold none, if their owner is still here.
        """
        queues = self._all_queues()
        if not queues:
            return []
        site = max(queues, key=lambda name: sum(queued.queued_bytes for queued in queues[name]))
        queue = queues[site]
        with_content = [queued for queued in queue if queued.queued_bytes][-limit:]
        if not with_content:
            return []
        taken = {id(queued) for queued in with_content}
        self._set_queue(site, deque(queued for queued in queue if id(queued) not in taken))
        for queued in with_content:
            self._queued_by_owner[queued.owner] -= 1
        self.queued -= len(with_content)
        self.memory_bytes -= sum(queued.queued_bytes for queued in with_content)
        return with_content

    def _set_queue(self, site: str, queue: deque[Queued[O, T]]) -> None:
        if queue:
            self._queues_of_class(site)[site] = queue
        else:
            self._queues_of_class(site).pop(site, None)

    def _queues_of_class(self, site: str) -> _Queues[O, T]:
        return self._unproven if self._is_unproven(site) else self._proven

    def _all_queues(self) -> _Queues[O, T]:
        return {**self._proven, **self._unproven}
