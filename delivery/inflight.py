"""What a process has taken of its shards and not yet finished: who may start now, and whether more may be taken. Pure.

In charge of three bounds: deliveries at work, of them those of one site, and bytes of content in memory. What may not
start yet is *parked*, site by site, and started in turns, so a slow site holds up only itself. Many slow sites
together are kept from everybody's places and memory too: a site that has not answered lately is a *stranger*, which
has two places, and all strangers together have half of them and half of the memory; a site's share grows as it answers
and halves when it does not (a tarpit never earns one); the last places, and some of the memory, are for sites that
have nothing at work. A site that was *chosen* (a relay) is never a stranger, and one *apart* (the mailboxes) has
places of its own, which no other can take. Each entry belongs to an *owner* (a shard), which may leave at any time and
takes along only what it has parked. What is carried and only waits to be reported *lingers*, without a place. Knows
nothing of mail: items and owners are anything. Next: `delivery/capacity.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

O = TypeVar("O", bound=Hashable)  # noqa: E741  who parks it
T = TypeVar("T")

START_SHARE = 2  # of a stranger
LINGERING = 4  # times as many as there are places
CHOSEN_SHARE = 8  # of a site that was chosen, at first
_REMEMBERED = 2000  # sites whose share is known; beyond it the one that grew least recently is a stranger again


class Parked(NamedTuple, Generic[O, T]):
    """`held_bytes` are in memory while it is parked, `needed_bytes` while it is at work; `since` is when it was parked
    first.
    """

    owner: O
    item: T
    site: str
    held_bytes: int
    needed_bytes: int
    since: float = 0.0


class _Load:
    """What a site, or several, have at work."""

    __slots__ = ("count", "size_bytes")

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0

    def add(self, count: int, size_bytes: int) -> None:
        self.count += count
        self.size_bytes += size_bytes


_Lines = dict[str, deque[Parked[O, T]]]


class InFlight(Generic[O, T]):
    """`share_of(site)` is how many of a site may be at work; `parked` how many each owner may have parked; `apart` the
    sites with places of their own, and how many; `chosen(site)` says that it is not the senders' choice.
    """

    def __init__(
        self,
        *,
        count: int,
        size_bytes: int,
        parked: int,
        share_of: Callable[[str], int],
        apart: Mapping[str, int] | None = None,
        chosen: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._count = count
        self._bytes = size_bytes
        self._parked_max = parked
        self._share_of = share_of
        self._apart = apart or {}
        self._chosen = chosen
        # Parked lines by site, in the order of their turns; those of strangers apart, to be passed over at once.
        self._known: _Lines[O, T] = {}
        self._strange: _Lines[O, T] = {}
        self._parked_of: dict[O, int] = {}  # the owners that are here
        self._at_work: dict[str, _Load] = {}
        self._shared = _Load()  # of all sites that are not apart
        self._strangers = _Load()
        self._earned: dict[str, int] = {}  # the share each site has come to, the latest last
        self._strangers_first = False
        self._lingering: set[int] = set()  # by identity: who calls keeps them
        self._lingering_bytes = 0
        self.parked = 0
        self.at_work = 0
        self.held_bytes = 0
        self.cramped = False  # a site that has nothing at work could start, were there memory to read its content into

    @property
    def empty(self) -> bool:
        return not self.parked and not self.at_work

    @property
    def holds_parked(self) -> bool:
        """Whether anything that is parked holds memory."""
        return any(parked.held_bytes for line in self._lines().values() for parked in line)

    def join(self, owner: O) -> None:
        self._parked_of[owner] = 0

    def leave(self, owner: O) -> None:
        """Forget what the owner has parked: its next one takes it again. What is at work counts until it is `done`."""
        del self._parked_of[owner]
        for site, line in self._lines().items():
            rest = deque(parked for parked in line if parked.owner != owner)
            if len(rest) < len(line):
                self.parked -= len(line) - len(rest)
                self.held_bytes -= sum(parked.held_bytes for parked in line if parked.owner == owner)
                self._keep(site, rest)

    def is_here(self, owner: O) -> bool:
        return owner in self._parked_of

    def has_places(self, owner: O) -> bool:
        """Whether the owner may park more, were there memory."""
        return self._parked_of[owner] < self._parked_max

    def room(self, owner: O, largest_bytes: int) -> int:
        """How many more the owner may take, each holding at most `largest_bytes`. At least one when there is nothing.

        Owners ask, wait, and bring what they were allowed; so each may bring no more than its part of all memory, and
        together they hold at most twice of it, for as long as it takes to see that it is too much.
        """
        part = max(1, self._bytes // (largest_bytes * len(self._parked_of)))
        places = self._parked_max - self._parked_of[owner]
        if self.empty:
            return min(places, part)
        return max(0, min(places, part, (self._bytes - self.held_bytes) // largest_bytes))

    def add(self, owner: O, item: T, site: str, held_bytes: int, needed_bytes: int, since: float = 0.0) -> None:
        """Park what was taken; `start` says when it may go."""
        lines = self._lines_of(site)
        line = lines.get(site)
        if line is None:
            line = lines[site] = deque()
        line.append(Parked(owner, item, site, held_bytes, needed_bytes, since))
        self._parked_of[owner] += 1
        self.parked += 1
        self.held_bytes += held_bytes

    def start(self) -> list[Parked[O, T]]:
        """Those that may start now, the sites in turns; they count as at work from here on."""
        started: list[Parked[O, T]] = []
        self.cramped = False
        self._strangers_first = not self._strangers_first
        known, strange = (self._known, lambda: False), (self._strange, self._strangers_are_many)
        turns = (strange, known) if self._strangers_first else (known, strange)
        progress = True
        while progress:
            progress = False
            for lines, full in turns:
                if lines and not full():
                    progress |= self._start_round(lines, full, started)
        return started

    def _start_round(self, lines: _Lines[O, T], full: Callable[[], bool], started: list[Parked[O, T]]) -> bool:
        """One of each site."""
        progress = False
        for site in list(lines):
            if full():
                break
            line = lines[site]
            first = line[0]
            if not self._may_start(first):
                continue
            line.popleft()
            # The next turn is the others'.
            del lines[site]
            self._keep(site, line)
            self._parked_of[first.owner] -= 1
            self.parked -= 1
            self.held_bytes += first.needed_bytes - first.held_bytes
            self._work(site, 1, first.needed_bytes)
            started.append(first)
            progress = True
        return progress

    def _strangers_are_many(self) -> bool:
        strangers = self._strangers
        return strangers.count >= max(START_SHARE, self._count // 2) or strangers.size_bytes >= self._bytes // 2

    def _may_start(self, first: Parked[O, T]) -> bool:
        site = first.site
        mine = self._at_work[site].count if site in self._at_work else 0
        memory = self._bytes
        if site in self._apart:
            if mine >= self._apart[site]:
                return False
            if not mine:
                return True  # something always moves, however large
        else:
            if not self._shared.count:
                return True
            share = min(self._share_of(site), self._earned.get(site, self._first_share(site)))
            last_places = self._shared.count >= self._count - self._count // 4
            if self._shared.count >= self._count or (mine and (mine >= share or last_places)):
                return False
            # What has to be read into memory leaves a quarter of it to what comes with its content, and another
            # quarter to sites that have nothing at work.
            memory = self._bytes * (2 if mine else 3) // 4
        grows = first.needed_bytes - first.held_bytes
        if grows <= 0 or self.held_bytes + grows <= memory:
            return True
        self.cramped |= not mine
        return False

    def _work(self, site: str, count: int, size_bytes: int) -> None:
        load = self._at_work.get(site)
        if load is None:
            load = self._at_work[site] = _Load()
        self.at_work += count
        load.add(count, size_bytes)
        if site not in self._apart:
            self._shared.add(count, size_bytes)
            if self._is_stranger(site):
                self._strangers.add(count, size_bytes)
        if not load.count:
            del self._at_work[site]

    def done(self, parked: Parked[O, T], *, answered: bool) -> None:
        """What `start` gave is finished or given up; `answered`: the site has, and soon."""
        self.held_bytes -= parked.needed_bytes
        if id(parked) in self._lingering:
            self._lingering.remove(id(parked))
            self._lingering_bytes -= parked.needed_bytes
        else:
            self._leave_place(parked, answered)

    def linger(self, parked: Parked[O, T], *, answered: bool) -> bool:
        """What `start` gave needs its memory for a while, but its place no more, if not too much does already; `done`
        comes later. Whether the place is free.
        """
        room = self._bytes // 2 - self._lingering_bytes
        if (
            id(parked) in self._lingering
            or parked.needed_bytes > room
            or len(self._lingering) >= LINGERING * self._count
        ):
            return False
        self._lingering.add(id(parked))
        self._lingering_bytes += parked.needed_bytes
        self._leave_place(parked, answered)
        return True

    def _leave_place(self, parked: Parked[O, T], answered: bool) -> None:
        site = parked.site
        self._work(site, -1, -parked.needed_bytes)
        if site in self._apart:
            return
        was_stranger, first = self._is_stranger(site), self._first_share(site)
        earned = self._earned.pop(site, first)
        earned = min(earned + 1, self._count) if answered else earned // 2
        if earned > first:
            self._earned[site] = earned
        if was_stranger is not self._is_stranger(site):
            self._turned(site)
        if len(self._earned) > _REMEMBERED:
            forgotten = next(iter(self._earned))
            del self._earned[forgotten]
            if self._is_stranger(forgotten):
                self._turned(forgotten)

    def _first_share(self, site: str) -> int:
        return CHOSEN_SHARE if self._chosen(site) else START_SHARE

    def _is_stranger(self, site: str) -> bool:
        return site not in self._earned and site not in self._apart and not self._chosen(site)

    def _turned(self, site: str) -> None:
        """The site has just become a stranger, or ceased to be one."""
        strange = self._is_stranger(site)
        line = (self._known if strange else self._strange).pop(site, None)
        if line is not None:
            self._keep(site, line)
        load = self._at_work.get(site)
        if load is not None:
            sign = 1 if strange else -1
            self._strangers.add(sign * load.count, sign * load.size_bytes)

    def unload(self, limit: int) -> list[Parked[O, T]]:
        """Take out up to `limit` of the parked that hold memory, from the site that holds most, whosever they are;
        `add` them again when they hold none, if their owner is still here.
        """
        lines = self._lines()
        if not lines:
            return []
        site = max(lines, key=lambda name: sum(parked.held_bytes for parked in lines[name]))
        line = lines[site]
        heavy = [parked for parked in line if parked.held_bytes][-limit:]
        if not heavy:
            return []
        taken = {id(parked) for parked in heavy}
        self._keep(site, deque(parked for parked in line if id(parked) not in taken))
        for parked in heavy:
            self._parked_of[parked.owner] -= 1
        self.parked -= len(heavy)
        self.held_bytes -= sum(parked.held_bytes for parked in heavy)
        return heavy

    def _keep(self, site: str, line: deque[Parked[O, T]]) -> None:
        if line:
            self._lines_of(site)[site] = line
        else:
            self._lines_of(site).pop(site, None)

    def _lines_of(self, site: str) -> _Lines[O, T]:
        return self._strange if self._is_stranger(site) else self._known

    def _lines(self) -> _Lines[O, T]:
        return {**self._known, **self._strange}
