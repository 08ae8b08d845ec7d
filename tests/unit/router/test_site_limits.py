"""Tests of site limits: slow sites do not block others, and tenants share a site round robin."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from mail.message import DeliveryId
from mail.record import Waiting
from mail.resolver import MxHosts
from router.routing_context import DnsAnswers
from router.site_limits import SiteLimits
from tests.support.builders.routing import RouterSimulator, accepted, delivered, policy, site_loads, snapshot

ANSWERS = DnsAnswers({f"d{n}.test": MxHosts(((1, f"mx.d{n}.test"),)) for n in range(50)})


def simulator(limits: SiteLimits) -> RouterSimulator:
    return RouterSimulator(policy(limits=limits), answers=ANSWERS)


def deliver_one(shard: RouterSimulator, delivery_id: DeliveryId) -> str:
    message = shard.dispatched[delivery_id].delivery.message
    shard.attempt(delivery_id, *map(delivered, message.envelope.recipients))
    return message.tenant


def test_stalled_sites_leave_slots_for_a_new_site() -> None:
    limits = SiteLimits()
    active: list[int] = []
    for _ in range(100):  # each site takes all it is allowed before the next one starts
        hand = 0
        while limits.allow(hand, 0, sum(active) + hand, 0):
            hand += 1
        active.append(hand)
    assert active[0] == limits.deliveries_per_site  # a single busy site gets its full limit
    assert active[-1] >= 2
    assert sum(active) < limits.deliveries_per_shard - 300


def test_stalled_sites_leave_slots_for_local_mailboxes() -> None:
    shard = RouterSimulator(
        policy(limits=SiteLimits(deliveries_per_shard=40)), snapshot=snapshot(["alice@example.test"]), answers=ANSWERS
    )
    for site in range(50):
        shard.decide(accepted(f"u@d{site}.test"))
    assert shard.queue.active == 32
    for _ in range(3):
        shard.decide(accepted("alice@example.test"))
    assert site_loads(shard.queue)["mailbox"].active >= 1
    deliver_one(
        shard, next(name for name, request in shard.dispatched.items() if request.delivery.route.site == "mailbox")
    )
    shard.route_due()
    assert site_loads(shard.queue)["mailbox"].active >= 1


def test_busy_sites_share_the_slots() -> None:
    shard = simulator(SiteLimits(deliveries_per_site=100, deliveries_per_shard=100))
    for _ in range(200):
        for site in range(9):
            shard.decide(accepted(f"u@d{site}.test"))
    assert shard.queue.active < 100
    out = shard.decide(accepted("u@d20.test"))
    assert any(request.delivery.message.queue_id == out[0].queue_id for request in shard.dispatched.values())  # type: ignore[union-attr]
    assert min(load.active for load in site_loads(shard.queue).values()) >= 1


def test_bytes_limit_a_site_but_one_delivery_always_starts() -> None:
    shard = simulator(SiteLimits(deliveries_per_site=100, bytes_per_site=1000))
    shard.decide(accepted("u@d0.test", size=5000))
    shard.decide(accepted("u@d0.test", size=10))
    assert len(shard.dispatched) == 1
    for _ in range(5):
        shard.decide(accepted("u@d1.test", size=300))
    assert site_loads(shard.queue)["mx:mx.d1.test"].active == 3


def test_tenants_share_a_site_round_robin() -> None:
    shard = simulator(SiteLimits(deliveries_per_site=2))
    for _ in range(40):
        shard.decide(accepted("u@d0.test", tenant="loud"))
        shard.now += timedelta(milliseconds=1)
    for _ in range(5):
        shard.decide(accepted("u@d0.test", tenant="quiet"))
    served: list[str] = []
    while len(served) < 14:
        served.append(deliver_one(shard, next(iter(shard.dispatched))))
        shard.route_due()
    assert Counter(served[2:12])["quiet"] == 5  # every other turn after the active ones


def test_sites_share_a_small_batch_round_robin() -> None:
    shard = simulator(SiteLimits(deliveries_per_site=1000))
    shard.answers = DnsAnswers()  # all deliveries wait for DNS first
    for site in range(10):
        for _ in range(20):
            shard.decide(accepted(f"u@d{site}.test"))
    shard.answers = ANSWERS
    shard.now += timedelta(hours=1)
    for _ in range(4):
        shard.route_due(limit=10)
    assert {load.active for name, load in site_loads(shard.queue).items() if name.startswith("mx:")} == {4}


def test_entry_applied_twice_has_one_turn() -> None:
    """The shard applies an entry twice when it spools its content."""
    shard = simulator(SiteLimits(deliveries_per_site=4))
    shard.answers = DnsAnswers()
    for _ in range(8):
        shard.decide(accepted("u@d0.test"))
    shard.now += timedelta(hours=1)
    picked = shard.queue.due(shard.now, shard.policy.limits, 100)
    assert len(picked) == len(set(picked)) == 4


def test_due_deliveries_come_in_bounded_batches() -> None:
    shard = simulator(SiteLimits())
    shard.answers = DnsAnswers()
    for _ in range(50):
        shard.decide(accepted("u@d0.test"))
    shard.answers = ANSWERS
    shard.now += timedelta(days=1)
    assert shard.queue.due(shard.now, shard.policy.limits, 20) != []
    shard.queue = shard.replayed_queue()
    shard.route_due(limit=20)
    assert len(shard.dispatched) == 20
    assert sum(isinstance(entry.state, Waiting) for entry in shard.entries.values()) == 30
    shard.route_due(limit=100)
    assert len(shard.dispatched) == 50
    assert deliver_one(shard, next(iter(shard.dispatched))) == "default"
