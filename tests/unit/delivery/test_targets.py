"""Tests of target selection: order and number of addresses, and hosts without addresses."""

from __future__ import annotations

import pytest

from delivery.exchangers import Exchangers
from delivery.own_addresses import OwnAddresses
from delivery.source_addresses import SourceAddresses
from delivery.targets import NoTarget, Target, TargetSelector
from delivery.walk import Walk
from mail.outcome import Deferred, Delivered, Failed
from mail.resolver import AddressAnswer, DnsUnknown, IpAddresses, NoSuchDomain
from mail.route import ToMx, ToRelay
from mail.settings_roles import DeliverySettings
from tests.support.builders.delivery import CONTENT, delivery
from tests.support.clients.couriers import HostResolver, courier
from tests.support.servers.scripted_remote import ScriptedRemote


def selector(resolver: HostResolver, *, prefer_ipv6: bool = True) -> TargetSelector:
    return TargetSelector(
        resolver, DeliverySettings(prefer_ipv6=prefer_ipv6), SourceAddresses(()), Exchangers(30.0), OwnAddresses()
    )


@pytest.mark.parametrize("prefer_ipv6", [True, False])
async def test_order_of_targets(prefer_ipv6: bool) -> None:
    names = HostResolver(mx=IpAddresses(("192.0.2.1", "2001:db8::1", "192.0.2.2")))
    hosts = selector(names, prefer_ipv6=prefer_ipv6)
    seen = set()
    for _ in range(50):
        route = ToMx("r.test", ((10, "mx.test"), (20, "203.0.113.1"), (20, "203.0.113.2")))
        targets = [item.ip async for item in hosts.targets(route, Walk(0.0), 0.0) if isinstance(item, Target)]
        assert [":" in ip for ip in targets[:3]] == ([True, False, False] if prefer_ipv6 else [False, False, True])
        seen.add(tuple(targets))
    assert len(seen) == 4  # equal preferences are shuffled


async def test_targets_are_bounded() -> None:
    names = HostResolver(mx=IpAddresses(tuple(f"192.0.2.{number}" for number in range(100))))
    hosts = selector(names)
    assert len([item async for item in hosts.targets(ToMx("r.test", ((10, "mx.test"),)), Walk(0.0), 0.0)]) == 4


async def test_the_next_exchanger_is_tried() -> None:
    """Different hosts are the same port on different loopback addresses."""
    async with (
        ScriptedRemote({"GREETING": ["554 5.7.1 no"]}) as first,
        ScriptedRemote(port=first.port, host="127.0.0.3") as third,
    ):
        names = HostResolver(
            mx1=IpAddresses(("127.0.0.2",)), mx2=IpAddresses(("127.0.0.1",)), mx3=IpAddresses(("127.0.0.3",)),
            mx0=NoSuchDomain(), mxx=DnsUnknown("SERVFAIL"),
        )  # fmt: skip
        hosts = ((0, "mx0.test"), (1, "mxx.test"), (10, "mx1.test"), (20, "mx2.test"), (30, "mx3.test"))
        async with courier(names, mx_port=first.port) as smtp:
            (outcome,) = await smtp.deliver(delivery(ToMx("r.test", hosts)), CONTENT)
            assert isinstance(outcome, Delivered)
            assert outcome.remote == f"mx3.test[127.0.0.3]:{third.port}"
            assert len(first.sessions) == 1


async def test_exchangers_without_address_fail() -> None:
    async with courier(HostResolver(mx=NoSuchDomain())) as smtp:
        (outcome,) = await smtp.deliver(delivery(ToMx("r.test", ((10, "mx.test"),))), CONTENT)
        assert isinstance(outcome, Failed)
        assert outcome.reply.enhanced == "5.4.4"
    async with courier(HostResolver(mx=NoSuchDomain(), my=DnsUnknown("time-out"))) as smtp:
        (outcome,) = await smtp.deliver(delivery(ToMx("r.test", ((10, "my.test"), (20, "mx.test")))), CONTENT)
        assert isinstance(outcome, Deferred)
        assert outcome.reply.enhanced == "4.4.3"


async def test_host_look_ups_are_bounded() -> None:
    class Counting(HostResolver):
        queries = 0

        async def addresses(self, host: str) -> AddressAnswer:
            self.queries += 1
            return NoSuchDomain()

    names = Counting()
    async with courier(names) as smtp:
        hosts = tuple((10, f"mx{number}.test") for number in range(500))
        (outcome,) = await smtp.deliver(delivery(ToMx("r.test", hosts)), CONTENT)
    assert names.queries == 20
    assert isinstance(outcome, Deferred)  # later hosts may have an address
    assert outcome.reply.enhanced == "4.4.4"


@pytest.mark.parametrize(
    ("route", "status"), [(ToMx("r.test", ((10, "mx.test"),)), "5.4.4"), (ToRelay("mx.test", 25), "4.4.4")]
)
async def test_empty_address_answer_is_no_address(route: ToMx | ToRelay, status: str) -> None:
    hosts = selector(HostResolver(mx=IpAddresses(())))
    (only,) = [item async for item in hosts.targets(route, Walk(0.0), 0.0)]
    assert isinstance(only, NoTarget)
    assert only.reply.enhanced == status
    assert not only.is_without_source
