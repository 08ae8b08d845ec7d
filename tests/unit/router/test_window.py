"""Nobody's slow site stands in another's way, and tenants take turns."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from mail.message import DeliveryId
from mail.record import Waiting
from mail.resolver import MxHosts
from router.window import Limits
from router.world import Answers
from tests.support.routing import Desk, accepted, delivered, policy, snapshot

ANSWERS = Answers({f"d{n}.test": MxHosts(((1, f"mx.d{n}.test"),)) for n in range(50)})


def desk(limits: Limits) -> Desk:
    return Desk(policy(limits=limits), answers=ANSWERS)


def settle(one: Desk, delivery_id: DeliveryId) -> str:
    message = one.in_hand[delivery_id].delivery.message
    one.report(delivery_id, *map(delivered, message.envelope.recipients))
    return message.tenant


def test_stalling_sites_leave_room_for_a_new_one_whatever_their_order() -> None:
    limits = Limits()
    hands: list[int] = []
    for _ in range(100):  # each takes all it can get before the next one comes
        hand = 0
        while limits.allow(hand, 0, sum(hands) + hand, 0):
            hand += 1
        hands.append(hand)
    assert hands[0] == limits.site  # one busy site has its whole window
    assert hands[-1] >= 2
    assert sum(hands) < limits.shard - 300


def test_thousands_of_stalling_sites_leave_room_for_our_own_mailboxes() -> None:
    one = Desk(policy(limits=Limits(shard=40)), snapshot=snapshot(["alice@example.test"]), answers=ANSWERS)
    for site in range(50):
        one.decide(accepted(f"u@d{site}.test"))
    assert one.queue.in_hand == 32
    for _ in range(3):
        one.decide(accepted("alice@example.test"))
    assert one.queue.loads()["mailbox"].in_hand >= 1
    settle(one, next(name for name, given in one.in_hand.items() if given.delivery.route.site == "mailbox"))
    one.tick()
    assert one.queue.loads()["mailbox"].in_hand >= 1


def test_greedy_sites_share_what_there_is() -> None:
    one = desk(Limits(site=100, shard=100))
    for _ in range(200):
        for site in range(9):
            one.decide(accepted(f"u@d{site}.test"))
    assert one.queue.in_hand < 100
    out = one.decide(accepted("u@d20.test"))
    assert any(given.delivery.message.queue_id == out[0].queue_id for given in one.in_hand.values())  # type: ignore[union-attr]
    assert min(load.in_hand for load in one.queue.loads().values()) >= 1


def test_bytes_bound_a_window_but_one_delivery_always_goes() -> None:
    one = desk(Limits(site=100, site_bytes=1000))
    one.decide(accepted("u@d0.test", size=5000))
    one.decide(accepted("u@d0.test", size=10))
    assert len(one.in_hand) == 1
    for _ in range(5):
        one.decide(accepted("u@d1.test", size=300))
    assert one.queue.loads()["mx:mx.d1.test"].in_hand == 3


def test_tenants_take_turns_however_much_one_of_them_sends() -> None:
    one = desk(Limits(site=2))
    for _ in range(40):
        one.decide(accepted("u@d0.test", tenant="loud"))
        one.now += timedelta(milliseconds=1)
    for _ in range(5):
        one.decide(accepted("u@d0.test", tenant="quiet"))
    served: list[str] = []
    while len(served) < 14:
        served.append(settle(one, next(iter(one.in_hand))))
        one.tick()
    assert Counter(served[2:12])["quiet"] == 5  # after what was in hand, every other turn


def test_sites_take_turns_when_a_batch_is_short() -> None:
    one = desk(Limits(site=1000))
    one.answers = Answers()  # everything waits for DNS first
    for site in range(10):
        for _ in range(20):
            one.decide(accepted(f"u@d{site}.test"))
    one.answers = ANSWERS
    one.now += timedelta(hours=1)
    for _ in range(4):
        one.tick(most=10)
    assert {load.in_hand for name, load in one.queue.loads().items() if name.startswith("mx:")} == {4}


def test_a_line_that_was_written_twice_has_one_turn() -> None:
    """The line as it was decided, then the line with its content in the spool: so the loop folds what it spools."""
    one = desk(Limits(site=4))
    one.answers = Answers()
    for _ in range(8):
        one.decide(accepted("u@d0.test"))
    one.now += timedelta(hours=1)
    picked = one.queue.due(one.now, one.policy.limits, 100)
    assert len(picked) == len(set(picked)) == 4


def test_after_a_long_sleep_what_is_due_comes_in_bounded_batches() -> None:
    one = desk(Limits())
    one.answers = Answers()
    for _ in range(50):
        one.decide(accepted("u@d0.test"))
    one.answers = ANSWERS
    one.now += timedelta(days=1)
    assert one.queue.due(one.now, one.policy.limits, 20) != []
    one.queue = one.replayed()
    one.tick(most=20)
    assert len(one.in_hand) == 20
    assert sum(isinstance(line.state, Waiting) for line in one.lines.values()) == 30
    one.tick(most=100)
    assert len(one.in_hand) == 50
    assert settle(one, next(iter(one.in_hand))) == "default"
