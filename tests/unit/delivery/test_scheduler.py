"""Tests of the scheduler: which queued deliveries start."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from delivery.scheduler import AWAITING_SPOOL_FACTOR, Item, Scheduler
from delivery.site_window import PROMPT_SECONDS, SiteWindows
from mail.route import MAILBOX_SITE


class World:
    """A scheduler, the windows of its sites, and the started deliveries, longest first."""

    def __init__(
        self,
        slots: int = 40,
        memory_bytes: int = 1000,
        queued_per_owner: int = 9000,
        max_connections: int = 5,
        mailbox_slots: int = 5,
        owners: tuple[str, ...] = ("me",),
    ) -> None:
        self.windows = SiteWindows(max_connections, 30.0)
        self.scheduler: Scheduler[str, int] = Scheduler(
            self.windows,
            slots=slots,
            mailbox_slots=mailbox_slots,
            memory_bytes=memory_bytes,
            queued_per_owner=queued_per_owner,
        )
        for owner in owners:
            self.scheduler.register(owner)
        self.active: list[Item[str, int]] = []

    def add(self, site: str, count: int = 1, size: int = 0, owner: str = "me") -> None:
        for number in range(count):
            self.scheduler.add(Item(owner, number, site, size, size))

    def start(self) -> Counter[str]:
        """Start what may start; returns how many of each site did."""
        started = self.scheduler.start()
        self.active += started
        return Counter(item.site for item in started)

    def finish(self, index: int = 0, *, prompt: bool = True) -> None:
        item = self.active.pop(index)
        if item.site != MAILBOX_SITE:
            self.windows.use(item.site, 0.0).on_transaction(1.0 if prompt else PROMPT_SECONDS + 1, 0.0)
        self.scheduler.finish(item)

    def add_tarpits(self, sites: int, size: int = 0) -> int:
        """Queue a delivery for each of many unproven sites; returns how many started."""
        for number in range(sites):
            self.add(f"tarpit{number}", size=size)
        return self.start().total()


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.integers(0, 60)), max_size=40),
    st.integers(1, 6),
    st.integers(10, 100),
    st.data(),
)
def test_limits_hold_and_every_delivery_starts(
    items: list[tuple[str, int, int]], slots: int, memory_bytes: int, data: st.DataObject
) -> None:
    world = World(slots, memory_bytes, max_connections=1)
    for number, (site, queued_bytes, added_bytes) in enumerate(items):
        world.scheduler.add(Item("me", number, site, queued_bytes, queued_bytes + added_bytes))
    seen: list[int] = []
    while not world.scheduler.empty:
        before = len(world.active)
        world.start()
        seen += [item.entry for item in world.active[before:]]
        assert world.active, "nothing can move"
        assert len(world.active) == world.scheduler.in_flight_count <= slots
        assert max(Counter(item.site for item in world.active).values()) <= 2
        world.finish(data.draw(st.integers(0, len(world.active) - 1)), prompt=data.draw(st.booleans()))
    assert sorted(seen) == list(range(len(items)))
    assert world.scheduler.memory_bytes == 0
    for site in "abc":  # in order within a site
        numbers = [number for number in seen if items[number][0] == site]
        if all(items[number][2] == 0 for number in numbers):
            assert numbers == sorted(numbers)


def test_read_limit() -> None:
    world = World(slots=1, memory_bytes=100, queued_per_owner=3)
    scheduler = world.scheduler
    assert scheduler.read_limit("me", 1000) == 1  # at least one if nothing is in flight
    assert scheduler.read_limit("me", 50) == 2
    world.add("site", size=60)
    assert scheduler.read_limit("me", 50) == 0
    assert scheduler.read_limit("me", 20) == 2
    assert len(scheduler.take_content(5)) == 1
    assert scheduler.empty
    scheduler.add(Item("me", 0, "site", 0, 60))
    assert scheduler.take_content(5) == []


def test_read_limit_is_shared_by_owners() -> None:
    owners = tuple(f"owner{number}" for number in range(4))
    scheduler = World(slots=2, memory_bytes=80, queued_per_owner=50, owners=owners).scheduler
    assert [scheduler.read_limit(owner, 10) for owner in owners] == [2, 2, 2, 2]


def test_content_is_taken_from_the_site_with_most_of_it() -> None:
    world = World()
    world.add("small", 3, size=10)
    world.add("large", 3, size=20)
    assert [(item.site, item.entry) for item in world.scheduler.take_content(2)] == [("large", 1), ("large", 2)]
    assert (world.scheduler.queued, world.scheduler.memory_bytes) == (4, 50)


def test_unregistered_owner_drops_only_its_queued_deliveries() -> None:
    world = World(slots=2, memory_bytes=100, queued_per_owner=3, max_connections=1, owners=("me", "other"))
    scheduler = world.scheduler
    for owner in ("me", "other"):
        world.add("smtp://relay:25", 3, size=10, owner=owner)
        assert not scheduler.has_queue_space(owner)
    world.start()
    assert [item.owner for item in world.active] == ["me"]
    scheduler.unregister("me")
    assert (scheduler.queued, scheduler.in_flight_count, scheduler.memory_bytes) == (3, 1, 40)
    assert not world.start()  # deliveries in flight count
    world.finish()
    world.start()
    assert [item.owner for item in world.active] == ["other"]
    assert (scheduler.queued, scheduler.in_flight_count, scheduler.memory_bytes) == (2, 1, 30)


def test_unproven_site_gets_two_slots_and_more_as_it_replies() -> None:
    world = World()
    world.add("site", 60)
    assert world.start().total() == 1  # the site may never greet
    item = world.active[0]
    assert world.scheduler.set_connecting(item, connecting=True)
    assert not world.start()
    world.windows.use("site", 0.0).on_greeting()
    assert world.scheduler.set_connecting(item, connecting=False)
    assert world.start().total() == 1
    most = 0
    while world.active:
        world.finish()
        world.start()
        most = max(most, len(world.active))
    assert most == 10  # twice its connections
    world.add("site", 60)
    world.start()
    for _ in range(20):
        world.finish(prompt=False)
        world.start()
    assert len(world.active) == 2


def test_unproven_sites_share_half_of_slots_and_memory() -> None:
    world = World()
    assert world.add_tarpits(500) == 20
    world.add("known")
    assert not world.start()  # the site is unproven
    other = World()
    assert other.add_tarpits(500, size=100) == 5
    other.add("smtp://relay:25", 30)
    assert other.start()["smtp://relay:25"] > 5


def test_unproven_sites_do_not_block_proven_ones() -> None:
    world = World()
    for _ in range(10):
        world.add("good")
        world.start()
        world.finish()
    world.add_tarpits(500)
    world.add("good", 30)
    assert world.start() == {"good": 10}


def test_mailboxes_have_slots_of_their_own() -> None:
    world = World()
    for number in range(40):
        world.add(f"smtp://relay{number}")
    assert world.add_tarpits(500) == 40
    world.add(MAILBOX_SITE, 9, size=100)
    assert world.start() == {MAILBOX_SITE: 5}
    for _ in range(5):
        world.finish(-1)
    assert world.start() == {MAILBOX_SITE: 4}


def test_site_that_becomes_unproven_keeps_its_queue_and_load() -> None:
    world = World()
    world.add("site")
    world.start()
    world.finish()
    world.add("site", 30)
    assert world.start() == {"site": 6}
    assert world.add_tarpits(500) == 20
    for _ in range(3):
        world.finish(prompt=False)
    assert not world.start()  # its three deliveries in flight count among those of the unproven sites
    for _ in range(4):
        world.finish(prompt=False)
    assert world.start().total() == 1


def test_deliveries_that_wait_for_a_greeting_need_no_slot() -> None:
    world = World(slots=40)
    for number in range(140):
        world.add(f"silent{number}", 2)
    silent = 0
    while started := world.start():
        silent += started.total()
        for item in world.active:
            world.scheduler.set_connecting(item, connecting=True)
    assert silent == 140  # one for each site
    world.add("new")
    assert world.start() == {"new": 1}
    for item in world.active[:140]:
        world.scheduler.set_connecting(item, connecting=False)  # all of them greet: no further one starts
    world.add("another")
    assert not world.start()
    for _ in range(130):
        world.finish()
    assert world.start()["another"] == 1


def test_load_returns_to_zero() -> None:
    world = World()
    for turn in range(30):
        for _ in range(3):
            world.add_tarpits(50, size=1)
        while world.active:
            for item in world.active[::2]:
                world.scheduler.set_connecting(item, connecting=turn % 3 > 0)
            world.finish(turn % len(world.active), prompt=len(world.active) % 3 > 0)
            world.start()
    assert world.scheduler.empty
    assert world.scheduler.memory_bytes == 0
    assert world.scheduler._sites == {}
    counters = world.scheduler._remote_count, world.scheduler._unproven_count, world.scheduler._unproven_bytes
    assert counters == (0, 0, 0)


def test_deliveries_awaiting_the_spool_are_bounded_in_number_and_memory() -> None:
    world = World(slots=1, memory_bytes=100)
    scheduler = world.scheduler
    for number in range(30):
        scheduler.add(Item("me", number, "site", 0, 10 if number < 20 else 0))
    for _ in range(AWAITING_SPOOL_FACTOR):
        world.start()
        assert scheduler.set_awaiting_spool(world.active[-1])
        assert not scheduler.set_awaiting_spool(world.active[-1])
    assert (scheduler.in_flight_count, scheduler.memory_bytes) == (0, 10 * AWAITING_SPOOL_FACTOR)
    world.start()
    assert not scheduler.set_awaiting_spool(world.active[-1])
    assert not world.start()
    while world.active:
        world.finish()
    assert (scheduler.in_flight_count, scheduler.memory_bytes, scheduler._awaiting_spool_bytes) == (0, 0, 0)
    assert scheduler._awaiting_spool == set()
