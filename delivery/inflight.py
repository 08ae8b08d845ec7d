"""What a process has taken of its shards and not yet finished: who may start now, and whether more may be taken. Pure.

In charge of three bounds: deliveries at work, of them those of one site, and bytes of content in memory. What may not
start yet is *parked*, site by site, and started in turns, so a slow site holds up only itself. Many slow sites
together are kept from everybody's places and memory too: a site's share starts small and grows as its deliveries end
(a tarpit never earns one), and the last places, and some of the memory, are for sites that have nothing at work.
Each entry belongs to an *owner* (a shard), which may leave at any time and takes along only what it has parked.
Knows nothing of mail: items and owners are anything. Next: `delivery/capacity.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

O = TypeVar("O", bound=Hashable)  # noqa: E741  who parks it
T = TypeVar("T")

START_SHARE = 8  # of a site nobody has seen end a delivery yet
_REMEMBERED = 2000  # sites whose share is known; beyond it all start anew


class Parked(NamedTuple, Generic[O, T]):
    """`held_bytes` are in memory while it is parked, `needed_bytes` while it is at work."""

    owner: O
    item: T
    site: str
    held_bytes: int
    needed_bytes: int


class InFlight(Generic[O, T]):
    """`share_of(site)` is how many of a site may be at work; `parked` how many each owner may have parked."""

    def __init__(self, *, count: int, size_bytes: int, parked: int, share_of: Callable[[str], int]) -> None:
        self._count = count
        self._bytes = size_bytes
        self._parked_max = parked
        self._share_of = share_of
        self._parked: dict[str, deque[Parked[O, T]]] = {}  # sites in the order of their turns
        self._parked_of: dict[O, int] = {}  # the owners that are here
        self._at_work: dict[str, int] = {}
        self._earned: dict[str, int] = {}  # the share each site has come to
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
        return any(parked.held_bytes for line in self._parked.values() for parked in line)

    def join(self, owner: O) -> None:
        self._parked_of[owner] = 0

    def leave(self, owner: O) -> None:
        """Forget what the owner has parked: its next one takes it again. What is at work counts until it is `done`."""
        del self._parked_of[owner]
        for site, line in list(self._parked.items()):
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

    def add(self, owner: O, item: T, site: str, held_bytes: int, needed_bytes: int) -> None:
        """Park what was taken; `start` says when it may go."""
        line = self._parked.get(site)
        if line is None:
            line = self._parked[site] = deque()
        line.append(Parked(owner, item, site, held_bytes, needed_bytes))
        self._parked_of[owner] += 1
        self.parked += 1
        self.held_bytes += held_bytes

    def start(self) -> list[Parked[O, T]]:
        """Those that may start now, the sites in turns; they count as at work from here on."""
        started: list[Parked[O, T]] = []
        self.cramped = False
        progress = True
        while progress and self.parked and self.at_work < self._count:
            progress = False
            for site in list(self._parked):
                if self.at_work >= self._count:
                    break
                line = self._parked[site]
                first = line[0]
                if not self._may_start(first):
                    continue
                line.popleft()
                # The next turn is the others'.
                del self._parked[site]
                self._keep(site, line)
                self._parked_of[first.owner] -= 1
                self.parked -= 1
                self.at_work += 1
                self._at_work[site] = self._at_work.get(site, 0) + 1
                self.held_bytes += first.needed_bytes - first.held_bytes
                started.append(first)
                progress = True
        return started

    def _may_start(self, first: Parked[O, T]) -> bool:
        if not self.at_work:
            return True  # something always moves, however large
        mine = self._at_work.get(first.site, 0)
        share = min(self._share_of(first.site), self._earned.get(first.site, START_SHARE))
        if mine and (mine >= share or self.at_work >= self._count - self._count // 4):
            return False
        # What has to be read into memory leaves a quarter of it to what comes with its content, and another quarter to
        # sites that have nothing at work.
        grows = first.needed_bytes - first.held_bytes
        if grows <= 0 or self.held_bytes + grows <= self._bytes * (2 if mine else 3) // 4:
            return True
        self.cramped |= not mine
        return False

    def done(self, parked: Parked[O, T]) -> None:
        """What `start` gave is finished or given up."""
        site = parked.site
        self.at_work -= 1
        self.held_bytes -= parked.needed_bytes
        left = self._at_work[site] - 1
        if left:
            self._at_work[site] = left
        else:
            del self._at_work[site]
        if len(self._earned) >= _REMEMBERED and site not in self._earned:
            self._earned.clear()
        earned = self._earned.get(site, START_SHARE)
        self._earned[site] = min(earned + 1, self._count)

    def unload(self, limit: int) -> list[Parked[O, T]]:
        """Take out up to `limit` of the parked that hold memory, from the site that holds most, whosever they are;
        `add` them again when they hold none, if their owner is still here.
        """
        if not self._parked:
            return []
        site = max(self._parked, key=lambda name: sum(parked.held_bytes for parked in self._parked[name]))
        line = self._parked[site]
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
            self._parked[site] = line
        else:
            self._parked.pop(site, None)
