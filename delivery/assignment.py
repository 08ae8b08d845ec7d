"""Assignment of connections to waiting deliveries, by `assign`, which is called at every change. No I/O.

A delivery gets an idle connection with its key, or opens one if the window of its site and the total limit allow, or is
refused during a back-off. Otherwise it waits for a connection of its peer; a peer without a connection, because of the
limits, is *starved*.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from delivery.peer import PeerKey
from delivery.site_window import SiteWindow, SiteWindows

_YIELD_AFTER_TRANSACTIONS = 20  # a peer then closes its last connection if another peer has none


class PooledConnection(Protocol):
    idle_since: float

    @property
    def usable(self) -> bool: ...


class WaitingDelivery(Protocol):
    """`reuse`: it takes every idle connection of its peer; else it opens one, or takes one that it `accepts`. `done()`:
    it was cancelled. `is_first_choice`: no exchanger of its site was tried yet, so it is refused during a back-off.
    """

    @property
    def reuse(self) -> bool: ...

    @property
    def is_first_choice(self) -> bool: ...

    def accepts(self, connection: Any) -> bool: ...

    def done(self) -> bool: ...


C = TypeVar("C", bound=PooledConnection)
W = TypeVar("W", bound=WaitingDelivery)


@dataclass(slots=True, eq=False)
class Peer(Generic[C, W]):
    """The open connections of one key, and the deliveries that wait for one, longest first. `idle`: the unused
    connections, most recently used last; `users`: deliveries that have one.
    """

    key: PeerKey
    window: SiteWindow
    connections: set[C] = field(default_factory=set)
    idle: list[C] = field(default_factory=list)
    waiting: deque[W] = field(default_factory=deque)
    opening: int = 0
    users: int = 0

    @property
    def count(self) -> int:
        return len(self.connections) + self.opening


class Give(NamedTuple, Generic[C, W]):
    """`delivery` gets `connection`; None: it opens one."""

    delivery: W
    connection: C | None


class Refuse(NamedTuple, Generic[W]):
    """`delivery` gets none. `reason`: of the site's back-off; None: the pool is closed."""

    delivery: W
    reason: str | None


class Close(NamedTuple, Generic[C]):
    """The idle `connection` makes room for a starved peer."""

    connection: C


Decision = Give[C, W] | Refuse[W] | Close[C]


class Assignment(Generic[C, W]):
    """The peers of a process. `maximum`: of open and opening connections in total."""

    def __init__(self, windows: SiteWindows, maximum: int) -> None:
        self._windows = windows
        self._maximum = maximum
        self._total = 0
        self._starved: dict[Peer[C, W], C | None] = {}  # longest first; the value is being closed for the peer
        self.peers: dict[PeerKey, Peer[C, W]] = {}
        self.owners: dict[C, Peer[C, W]] = {}  # of open connections
        self.idle: dict[C, None] = {}  # of all peers, longest first
        self.closed = False

    @property
    def is_full(self) -> bool:
        return self._total >= self._maximum

    @property
    def starved_count(self) -> int:
        return len(self._starved)

    def add(self, key: PeerKey, delivery: W, now: float) -> Peer[C, W]:
        """A new waiting delivery."""
        window = self._windows.use(key.site, now)
        peer = self.peers.get(key)
        if peer is None:
            peer = self.peers[key] = Peer(key, window)
        peer.window = window  # a peer without connections may have one that was dropped meanwhile
        peer.waiting.append(delivery)
        return peer

    def assign(self, peer: Peer[C, W], now: float) -> list[Decision[C, W]]:
        """The decisions after a change of `peer`. Starved peers are served first; otherwise busy ones would use all of
        the free capacity.
        """
        decisions: list[Decision[C, W]] = []
        if peer.idle or not self._starved:
            self._serve(peer, now, decisions)
        if self._starved:
            for starved in tuple(self._starved):
                if not peer.idle and self._total >= self._maximum:
                    break
                self._serve(starved, now, decisions)
            self._serve(peer, now, decisions)
        return decisions

    def _serve(self, peer: Peer[C, W], now: float, decisions: list[Decision[C, W]]) -> None:
        """Decide on the peer's deliveries until one must wait."""
        while peer.waiting:
            delivery = peer.waiting[0]
            while peer.idle and not peer.idle[-1].usable:
                self.take_idle(peer.idle[-1])  # it is about to be closed
            if delivery.done():
                pass
            elif self.closed:
                decisions.append(Refuse(delivery, None))
            elif (idle := self._idle_for(peer, delivery)) is not None:
                peer.users += 1
                decisions.append(Give(delivery, self.take_idle(idle)))
            elif (
                not peer.connections
                and delivery.is_first_choice
                and (reason := peer.window.backoff_reason(now)) is not None
            ):
                decisions.append(Refuse(delivery, reason))
            elif peer.window.has_room and self._total < self._maximum:
                self._count_opening(peer, 1)
                self._starved.pop(peer, None)  # if it must wait again, it is the last one
                decisions.append(Give(delivery, None))
            else:
                self._wait(peer, decisions)
                return
            peer.waiting.popleft()
        self._starved.pop(peer, None)
        if not (peer.connections or peer.opening or peer.users) and self.peers.get(peer.key) is peer:
            del self.peers[peer.key]

    def _idle_for(self, peer: Peer[C, W], delivery: W) -> C | None:
        """The most recently used idle connection that the delivery takes."""
        if delivery.reuse:
            return peer.idle[-1] if peer.idle else None
        return next((idle for idle in reversed(peer.idle) if idle.usable and delivery.accepts(idle)), None)

    def _wait(self, peer: Peer[C, W], decisions: list[Decision[C, W]]) -> None:
        """The peer must wait: for its own connections, or, starved, for room; then one idle connection is closed."""
        has_room = peer.window.has_room  # then the total limit is reached, not the window of the site
        if not has_room and peer.count and peer.waiting[0].reuse:
            self._starved.pop(peer, None)
            return
        closing = self._starved.get(peer)
        if closing is None or closing not in self.owners:
            closable = (idle for idle in self.idle if has_room or self.owners[idle].window is peer.window)
            closing = next(closable, None)
            if closing is not None:
                decisions.append(Close(self.take_idle(closing)))
        self._starved[peer] = closing

    def has_to_yield(self, peer: Peer[C, W], transactions: int) -> bool:
        """Whether a connection of `peer` must be closed after a transaction, because another peer has none."""
        if not self._starved or (peer.count == 1 and transactions % _YIELD_AFTER_TRANSACTIONS):
            return False
        return any(
            not starved.count and (starved.window.has_room or starved.window is peer.window)
            for starved in self._starved
        )

    # Changes; `assign` must follow

    def on_opened(self, peer: Peer[C, W], connection: C) -> None:
        """A delivery has opened its connection."""
        peer.opening -= 1
        peer.users += 1
        peer.connections.add(connection)
        self.owners[connection] = peer

    def on_not_opened(self, peer: Peer[C, W]) -> None:
        self._count_opening(peer, -1)

    def on_unused(self, peer: Peer[C, W], connection: C | None, now: float) -> None:
        """A delivery needs its connection no longer; None: it cannot be used again."""
        peer.users -= 1
        if connection is not None:
            connection.idle_since = now
            peer.idle.append(connection)
            self.idle[connection] = None

    def take_idle(self, connection: C) -> C:
        self.owners[connection].idle.remove(connection)
        del self.idle[connection]
        return connection

    def on_closed(self, connection: C) -> Peer[C, W] | None:
        """A connection was closed; returns its peer, if it was open."""
        if connection in self.idle:
            self.take_idle(connection)
        peer = self.owners.pop(connection, None)
        if peer is not None:
            peer.connections.remove(connection)
            self._total -= 1
            peer.window.connections -= 1
        return peer

    def _count_opening(self, peer: Peer[C, W], change: int) -> None:
        peer.opening += change
        peer.window.connections += change
        self._total += change
