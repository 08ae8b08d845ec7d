"""Tests of the assignment of waiting deliveries to connections."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from delivery.assignment import Assignment, Close, Give, Peer, Refuse
from delivery.peer import PeerKey, TlsPolicy
from delivery.site_window import SiteWindows

A, B, C = (PeerKey(f"smtp://{name}:25", "us.test") for name in "abc")
A_TLS = PeerKey("smtp://a:25", "us.test", tls=TlsPolicy.REQUIRE)


@dataclass(eq=False)
class FakeConnection:
    key: PeerKey
    idle_since: float = 0.0
    usable: bool = True
    transactions: int = 0


@dataclass(eq=False)
class FakeDelivery:
    key: PeerKey
    reuse: bool = True
    cancelled: bool = False
    is_first_choice: bool = True

    def accepts(self, _connection: FakeConnection) -> bool:
        return self.reuse

    def done(self) -> bool:
        return self.cancelled


@dataclass
class World:
    """A pool that follows the decisions. `refused`: the reasons."""

    maximum: int = 100
    max_per_site: int = 4
    now: float = 0.0
    using: list[FakeConnection] = field(default_factory=list)
    opening: list[FakeDelivery] = field(default_factory=list)
    closing: list[FakeConnection] = field(default_factory=list)
    refused: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.windows = SiteWindows(self.max_per_site, 30.0)
        self.assignment: Assignment[FakeConnection, FakeDelivery] = Assignment(self.windows, self.maximum)

    def assign(self, peer: Peer[FakeConnection, FakeDelivery]) -> None:
        for decision in self.assignment.assign(peer, self.now):
            match decision:
                case Give(delivery, None):
                    self.opening.append(delivery)
                case Give(delivery, connection):
                    assert connection is not None
                    assert connection.key == delivery.key
                    assert connection.usable
                    self.using.append(connection)
                case Refuse(_, reason):
                    self.refused.append(reason)
                case Close(connection):
                    self.closing.append(connection)
        in_use = len(self.using) + len(self.opening)
        assert in_use <= len(self.assignment.owners) + len(self.opening) <= self.maximum

    def wait(self, key: PeerKey, count: int = 1, *, reuse: bool = True) -> None:
        for _ in range(count):
            self.now += 1
            self.assign(self.assignment.add(key, FakeDelivery(key, reuse), self.now))

    def open(self, index: int = 0) -> FakeConnection:
        delivery = self.opening.pop(index)
        connection = FakeConnection(delivery.key)
        self.assignment.on_opened(self.assignment.peers[delivery.key], connection)
        self.using.append(connection)
        return connection

    def fail_to_open(self, index: int = 0, reason: str | None = None) -> None:
        peer = self.assignment.peers[self.opening.pop(index).key]
        self.assignment.on_not_opened(peer)
        if reason is not None:
            peer.window.on_unreachable(reason, self.now)
        self.assign(peer)

    def release(self, connection: FakeConnection, *, reusable: bool = True) -> None:
        self.now += 1
        self.using.remove(connection)
        connection.transactions += 1
        peer = self.assignment.peers[connection.key]
        peer.window.on_transaction(1.0, self.now)
        reusable = reusable and not self.assignment.has_to_yield(peer, connection.transactions)
        if not reusable:
            self.closing.append(connection)
        self.assignment.on_unused(peer, connection if reusable else None, self.now)
        self.assign(peer)

    def close(self, connection: FakeConnection) -> None:
        if connection in self.closing:
            self.closing.remove(connection)
        peer = self.assignment.on_closed(connection)
        assert peer is not None
        self.assign(peer)

    def waiting(self, key: PeerKey) -> int:
        peer = self.assignment.peers.get(key)
        return 0 if peer is None else len(peer.waiting)


def test_idle_connection_is_given_and_a_new_one_opened_within_the_window() -> None:
    world = World()
    world.wait(A, 6)
    assert (len(world.opening), world.waiting(A)) == (4, 2)
    connection = world.open()
    world.release(connection)
    assert (world.using, world.waiting(A)) == ([connection], 1)
    world.fail_to_open()
    assert (len(world.opening), world.waiting(A)) == (3, 0)


def test_most_recently_used_connection_is_given_first_and_unusable_ones_never() -> None:
    world = World()
    world.wait(A, 3)
    first, second, third = (world.open() for _ in range(3))
    for connection in (first, second, third):
        world.release(connection)
    third.usable = False
    world.wait(A)
    assert world.using == [second]


def test_growth_of_the_window_opens_a_further_connection() -> None:
    world = World(max_per_site=20)
    world.wait(A, 6)
    world.release(world.open())
    assert (len(world.using), len(world.opening), world.waiting(A)) == (1, 4, 0)


def test_deliveries_are_refused_during_the_back_off() -> None:
    world = World()
    world.wait(A, 10)
    world.fail_to_open()
    assert (len(world.opening), world.waiting(A), world.refused) == (4, 5, [])
    world.fail_to_open(reason="connection refused")
    assert (len(world.opening), world.refused) == (3, ["connection refused"] * 5)
    while world.opening:
        world.fail_to_open()
    assert world.assignment.peers == {}
    world.wait(A)
    assert world.refused == ["connection refused"] * 6
    world.now += 30
    world.wait(A)
    assert len(world.opening) == 1


def test_open_connection_is_used_during_the_back_off() -> None:
    world = World(max_per_site=1)
    world.wait(A, 2)
    connection = world.open()
    world.assignment.peers[A].window.on_unreachable("refused", world.now)
    world.release(connection)
    assert (world.using, world.refused) == ([connection], [])


def test_closed_pool_refuses_all() -> None:
    world = World()
    world.wait(A, 6)
    world.release(world.open())
    world.assignment.closed = True
    world.assign(world.assignment.peers[A])
    world.wait(A)
    assert world.refused == [None, None]


def test_delivery_that_needs_a_new_connection_closes_an_idle_one() -> None:
    world = World(max_per_site=1)
    world.wait(A)
    connection = world.open()
    world.release(connection)
    world.wait(A, reuse=False)
    assert (world.closing, world.using, world.opening) == ([connection], [], [])
    world.close(connection)
    assert len(world.opening) == 1


def test_total_limit_closes_the_longest_idle_connection_of_another_site() -> None:
    world = World(maximum=2)
    for key in (A, B):
        world.wait(key)
        world.release(world.open())
    world.wait(C)
    (closing,) = world.closing
    assert closing.key == A
    world.wait(C)  # one connection is closed at a time
    assert world.closing == [closing]
    world.close(closing)
    assert [delivery.key for delivery in world.opening] == [C]
    assert [connection.key for connection in world.closing] == [B]


def test_starved_sites_come_first_and_by_turns() -> None:
    world = World(maximum=2)
    world.wait(A, 10)
    world.wait(B, 3)
    world.wait(C, 3)
    order = []
    for _ in range(6):
        world.open()
        world.close(world.using.pop(0))
        order.append(world.opening[-1].key.site[7])
    assert order == list("abcabc")


def test_busy_site_yields_to_a_site_without_connections() -> None:
    world = World(maximum=1)
    world.wait(A, 100)
    world.wait(B)
    transactions = 0
    while world.opening[0].key == A:
        connection = world.open()
        while not world.closing:
            world.release(connection)
            transactions += 1
        world.close(connection)
    assert transactions <= 40


def test_connection_without_further_deliveries_makes_room() -> None:
    world = World(maximum=1)
    world.wait(A)
    connection = world.open()
    world.wait(B)
    world.release(connection)
    assert world.closing == [connection]


def test_connection_is_never_given_to_another_key() -> None:
    world = World(max_per_site=1)
    world.wait(A)
    connection = world.open()
    world.release(connection)
    world.wait(A_TLS)
    assert (world.using, world.opening, world.closing) == ([], [], [connection])
    world.wait(A, 2)
    world.close(connection)
    assert [delivery.key for delivery in world.opening] == [A_TLS]
    world.release(world.open())
    assert [connection.key for connection in world.closing] == [A_TLS]


KEYS = st.sampled_from([A, A_TLS, B, C])


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.tuples(KEYS, st.integers(0, 6), st.booleans()), max_size=60))
def test_limits_hold_and_no_delivery_is_left_behind(
    maximum: int, max_per_site: int, events: list[tuple[PeerKey, int, bool]]
) -> None:
    """Any order of events; then everything ends."""
    world = World(maximum, max_per_site)
    for key, event, flag in events:
        open_connections = list(world.assignment.owners)
        if event <= 1:
            world.wait(key, reuse=flag)
        elif event == 2 and world.opening:
            world.open()
        elif event == 3 and world.opening:
            world.fail_to_open(
                reason="refused" if flag and not world.assignment.peers[world.opening[0].key].connections else None
            )
        elif event == 4 and world.using:
            world.release(world.using[0], reusable=flag)
        elif event == 5 and open_connections and open_connections[0] not in world.using:
            world.close(open_connections[0])
        elif event == 6 and world.waiting(key):
            peer = world.assignment.peers[key]
            peer.waiting[-1].cancelled = True
            peer.waiting.pop()
            world.assign(peer)
    for _ in range(500):
        while world.opening:
            world.open()
        if world.using:
            world.release(world.using[0])
        elif world.closing:
            world.close(world.closing[0])
        else:
            break
    assert all(not peer.waiting for peer in world.assignment.peers.values())
    for connection in list(world.assignment.owners):
        world.close(connection)
    assert (world.assignment.peers, world.assignment._total, world.assignment._starved) == ({}, 0, {})
    assert not any(window.connections for window in world.windows._windows.values())
