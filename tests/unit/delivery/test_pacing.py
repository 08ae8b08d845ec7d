"""The two pure bookkeepers: what is in flight, and how hard a site is pressed."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from delivery.inflight import InFlight, Parked
from delivery.pacing import START_CONNECTIONS, Pacing


def test_the_window_grows_with_success_up_to_its_maximum() -> None:
    pacing = Pacing(6, 30.0)
    assert pacing.window == START_CONNECTIONS
    for _ in range(10):
        pacing.on_success()
    assert pacing.window == 6
    assert Pacing(1, 30.0).window == 1


def test_the_window_falls_when_the_site_pushes_back_and_never_to_nothing() -> None:
    pacing = Pacing(20, 30.0)
    for _ in range(20):
        pacing.on_success()
    pacing.on_push_back(open_connections=19)
    assert pacing.window == 10
    pacing.on_push_back(open_connections=3)
    assert pacing.window == 3
    pacing.on_push_back(open_connections=0)
    assert pacing.window == 1


def test_a_dead_site_is_remembered_for_its_time() -> None:
    pacing = Pacing(20, 30.0)
    assert pacing.dead(100.0) is None
    pacing.on_unreachable("refused", 100.0)
    assert pacing.dead(129.9) == "refused"
    assert pacing.dead(130.0) is None


def test_setbacks_in_a_row_make_a_site_dead() -> None:
    pacing = Pacing(20, 30.0)
    for _ in range(2):
        pacing.on_setback("silent", 0.0)
        pacing.on_setback("silent", 0.0)
        pacing.on_success()
    assert pacing.dead(0.0) is None
    for _ in range(3):
        pacing.on_setback("silent", 0.0)
    assert pacing.dead(0.0) == "silent"


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.integers(0, 60)), max_size=40),
    st.integers(1, 6),
    st.integers(10, 100),
    st.data(),
)
def test_bounds_hold_and_everything_gets_its_turn(
    items: list[tuple[str, int, int]], count: int, size: int, data: st.DataObject
) -> None:
    share = 2
    inflight: InFlight[str, int] = InFlight(count=count, size_bytes=size, parked=100, share_of=lambda _: share)
    inflight.join("me")
    for number, (site, held, more) in enumerate(items):
        inflight.add("me", number, site, held, held + more)
    at_work: list[Parked[str, int]] = []
    seen: list[int] = []
    while not inflight.empty:
        started = inflight.start()
        at_work += started
        seen += [parked.item for parked in started]
        assert at_work, "nothing can move"
        assert len(at_work) == inflight.at_work <= count
        for site in "abc":
            assert sum(parked.site == site for parked in at_work) <= share
        inflight.done(at_work.pop(data.draw(st.integers(0, len(at_work) - 1))), answered=data.draw(st.booleans()))
    assert sorted(seen) == list(range(len(items)))
    assert inflight.held_bytes == 0
    for site in "abc":  # in order within a site
        mine = [number for number in seen if items[number][0] == site]
        if all(items[number][2] == 0 for number in mine):
            assert mine == sorted(mine)


def test_room() -> None:
    inflight: InFlight[str, str] = InFlight(count=1, size_bytes=100, parked=3, share_of=lambda _: 1)
    inflight.join("me")
    assert inflight.room("me", 1000) == 1  # something can always be taken when there is nothing
    assert inflight.room("me", 50) == 2
    inflight.add("me", "a", "site", 60, 60)
    assert inflight.room("me", 50) == 0
    assert inflight.room("me", 20) == 2
    assert [parked.item for parked in inflight.unload(5)] == ["a"]
    assert inflight.empty
    inflight.add("me", "a", "site", 0, 60)
    assert inflight.unload(5) == []


def test_what_sites_have_earned_is_not_remembered_without_end() -> None:
    inflight: InFlight[str, int] = InFlight(count=10, size_bytes=100, parked=100, share_of=lambda _: 10)
    inflight.join("me")
    for number in range(5000):
        inflight.add("me", number, f"site{number}", 0, 0)
        (started,) = inflight.start()
        inflight.done(started, answered=True)
    assert inflight.empty
    assert len(inflight._earned) <= 2000


def test_an_owner_takes_along_what_it_has_parked_and_nothing_else() -> None:
    inflight: InFlight[str, int] = InFlight(count=2, size_bytes=100, parked=3, share_of=lambda _: 2)
    for owner in ("me", "other"):
        inflight.join(owner)
        for number in range(3):
            inflight.add(owner, number, "site", 10, 10)
        assert not inflight.has_places(owner)
    mine = inflight.start()
    assert [parked.owner for parked in mine] == ["me", "me"]
    inflight.leave("me")
    assert (inflight.parked, inflight.at_work, inflight.held_bytes) == (3, 2, 50)
    assert inflight.start() == []  # what is still at work counts
    for parked in mine:
        inflight.done(parked, answered=True)
    assert [parked.owner for parked in inflight.start()] == ["other", "other"]
    assert (inflight.parked, inflight.at_work, inflight.held_bytes) == (1, 2, 30)


def test_owners_who_wait_are_allowed_a_part_each() -> None:
    inflight: InFlight[str, int] = InFlight(count=2, size_bytes=80, parked=50, share_of=lambda _: 2)
    for number in range(4):
        inflight.join(f"owner{number}")
    assert [inflight.room(f"owner{number}", 10) for number in range(4)] == [2, 2, 2, 2]


def _full(inflight: InFlight[str, int], sites: int, each: int = 1, size: int = 0) -> list[Parked[str, int]]:
    """Park much for many strangers, and start what may."""
    for number in range(sites * each):
        inflight.add("me", number, f"tarpit{number % sites}", size, size)
    return inflight.start()


def a_process(**more: Any) -> InFlight[str, int]:
    inflight: InFlight[str, int] = InFlight(count=40, size_bytes=1000, parked=9000, share_of=lambda _: 10, **more)
    inflight.join("me")
    return inflight


def test_a_stranger_gets_two_places_and_more_as_it_answers() -> None:
    inflight = a_process()
    most = 0
    at_work = _full(inflight, 1, 60)
    assert len(at_work) == 2
    while at_work:
        inflight.done(at_work.pop(0), answered=True)
        at_work += inflight.start()
        most = max(most, inflight.at_work)
    assert most == 10
    at_work = _full(inflight, 1, 60)
    for _ in range(20):
        inflight.done(at_work.pop(0), answered=False)
        at_work += inflight.start()
    assert inflight.at_work == 2


def test_strangers_have_half_the_places_and_half_the_memory_together() -> None:
    inflight = a_process()
    assert len(_full(inflight, 500)) == 20
    inflight.add("me", -1, "known", 0, 0)
    assert inflight.start() == []  # nobody knows it yet
    other = a_process(chosen=lambda site: "://" in site)
    assert len(_full(other, 500, size=100)) == 5
    for number in range(30):
        other.add("me", number, "smtp://relay:25", 0, 0)
    assert len(other.start()) > 5


def test_who_has_answered_is_not_kept_waiting_by_who_has_not() -> None:
    inflight = a_process()
    for number in range(10):
        inflight.add("me", number, "good", 0, 0)
        for started in inflight.start():
            inflight.done(started, answered=True)
    _full(inflight, 500)
    for number in range(30):
        inflight.add("me", number, "good", 0, 0)
    assert [started.site for started in inflight.start()] == ["good"] * 10


def test_what_is_apart_has_places_of_its_own() -> None:
    inflight = a_process(apart={"mailbox": 5}, chosen=lambda site: "://" in site)
    for site in range(40):
        inflight.add("me", site, f"smtp://relay{site}", 0, 0)
    assert len(_full(inflight, 500)) == 40
    for number in range(9):
        inflight.add("me", number, "mailbox", 100, 100)
    mine = inflight.start()
    assert [started.site for started in mine] == ["mailbox"] * 5
    for started in mine:
        inflight.done(started, answered=False)
    assert len(inflight.start()) == 4


def test_sites_that_come_and_go_leave_nothing_counted() -> None:
    inflight = a_process()
    for turn in range(30):
        at_work = _full(inflight, 50, 3, size=1)
        while at_work:
            one = at_work.pop(turn % len(at_work))
            inflight.done(one, answered=(one.item + turn) % 3 > 0)
            at_work += inflight.start()
    assert inflight.empty
    assert (inflight.held_bytes, inflight._strangers.count, inflight._strangers.size_bytes) == (0, 0, 0)
    assert (inflight._shared.count, inflight._shared.size_bytes, inflight._at_work) == (0, 0, {})
