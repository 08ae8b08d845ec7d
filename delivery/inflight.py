"""What a worker has taken and not yet finished: who may start now, and whether more may be taken. Pure.

In charge of three bounds: deliveries at work, of them those of one site, and bytes of content in memory. What may not
start yet is *parked*, site by site, and started in turns, so a slow site holds up only itself. Many slow sites
together are kept from everybody's places and memory too: a site's share starts small and grows as its deliveries end
(a tarpit never earns one), and the last places, and some of the memory, are for sites that have nothing at work.
Knows nothing of mail: items are anything. Next: `delivery/worker.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

START_SHARE = 8  # of a site nobody has seen end a delivery yet
_REMEMBERED = 2000  # sites whose share is known; beyond it all start anew


class Parked(NamedTuple, Generic[T]):
    """`held_bytes` are in memory while it is parked, `needed_bytes` while it is at work."""

    item: T
    site: str
    held_bytes: int
    needed_bytes: int


class InFlight(Generic[T]):
    """`share_of(site)` is how many of a site may be at work."""

    def __init__(self, *, count: int, size_bytes: int, parked: int, share_of: Callable[[str], int]) -> None:
        self._count = count
        self._bytes = size_bytes
        self._parked_max = parked
        self._share_of = share_of
        self._parked: dict[str, deque[Parked[T]]] = {}  # sites in the order of their turns
        self._at_work: dict[str, int] = {}
        self._earned: dict[str, int] = {}  # the share each site has come to
        self.parked = 0
        self.at_work = 0
        self.held_bytes = 0

    @property
    def empty(self) -> bool:
        return not self.parked and not self.at_work

    def room(self, largest_bytes: int) -> int:
        """How many more may be taken, each holding at most `largest_bytes`. At least one when there is nothing."""
        if self.empty:
            return max(1, min(self._parked_max, self._bytes // largest_bytes))
        return max(0, min(self._parked_max - self.parked, (self._bytes - self.held_bytes) // largest_bytes))

    def add(self, item: T, site: str, held_bytes: int, needed_bytes: int) -> None:
        """Park what was taken; `start` says when it may go."""
        line = self._parked.get(site)
        if line is None:
            line = self._parked[site] = deque()
        line.append(Parked(item, site, held_bytes, needed_bytes))
        self.parked += 1
        self.held_bytes += held_bytes

    def start(self) -> list[Parked[T]]:
        """Those that may start now, the sites in turns; they count as at work from here on."""
        started: list[Parked[T]] = []
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
                if line:
                    self._parked[site] = line
                self.parked -= 1
                self.at_work += 1
                self._at_work[site] = self._at_work.get(site, 0) + 1
                self.held_bytes += first.needed_bytes - first.held_bytes
                started.append(first)
                progress = True
        return started

    def _may_start(self, first: Parked[T]) -> bool:
        if not self.at_work:
            return True  # something always moves, however large
        mine = self._at_work.get(first.site, 0)
        share = min(self._share_of(first.site), self._earned.get(first.site, START_SHARE))
        if mine and (mine >= share or self.at_work >= self._count - self._count // 4):
            return False
        # What has to be read into memory leaves a quarter of it to what comes with its content, and another quarter to
        # sites that have nothing at work.
        grows = first.needed_bytes - first.held_bytes
        return grows <= 0 or self.held_bytes + grows <= self._bytes * (2 if mine else 3) // 4

    def done(self, parked: Parked[T]) -> None:
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

    def unload(self, limit: int) -> list[Parked[T]]:
        """Take out up to `limit` of the parked that hold memory, from the site that holds most; `add` them again when
        they hold none.
        """
        if not self._parked:
            return []
        site = max(self._parked, key=lambda name: sum(parked.held_bytes for parked in self._parked[name]))
        line = self._parked[site]
        heavy = [parked for parked in line if parked.held_bytes][-limit:]
        if not heavy:
            return []
        taken = {id(parked) for parked in heavy}
        rest = deque(parked for parked in line if id(parked) not in taken)
        if rest:
            self._parked[site] = rest
        else:
            del self._parked[site]
        self.parked -= len(heavy)
        self.held_bytes -= sum(parked.held_bytes for parked in heavy)
        return heavy

    def clear(self) -> None:
        """Forget what is parked: its next owner takes it again."""
        self._parked.clear()
        self.parked = 0
        self.held_bytes = 0
