"""Tests of the next hop by RFC 5321 section 5.1."""

from __future__ import annotations

import pytest

from mail.directory import Domain, IsMailbox, IsRelayed, IsRemote
from mail.reply import Reply
from mail.resolver import AddressAnswer, DnsUnknown, IpAddresses, MxAnswer, MxHosts, NoRecords, NoSuchDomain, NullMx
from mail.route import ToMailbox, ToMx, ToRelay, Unresolved
from router.next_hop import LOOPS_BACK, NO_MX_AND_NO_ADDRESS, NO_SUCH_DOMAIN, NULL_MX, mx_domain, next_hop
from router.routing_context import DnsAnswers, RoutingContext
from tests.support.builders.routing import address, policy, snapshot

OWN = "mx.example.test"
A, B = (5, "a.far.test"), (10, "b.far.test")


@pytest.mark.parametrize(
    ("mx", "addresses", "hop"),
    [
        (MxHosts((A, B)), None, ToMx("far.test", (A, B))),
        (MxHosts((A, (10, OWN), B, (20, "c.far.test"))), None, ToMx("far.test", (A,))),
        (MxHosts(((10, OWN), (20, "d.far.test"))), None, LOOPS_BACK),
        (NullMx(), None, NULL_MX),
        (NoSuchDomain(), None, NO_SUCH_DOMAIN),
        (DnsUnknown("SERVFAIL"), None, Unresolved("far.test")),
        (None, None, Unresolved("far.test")),
        (NoRecords(), IpAddresses(("192.0.2.1",)), ToMx("far.test", ((0, "far.test"),))),
        (NoRecords(), NoRecords(), NO_MX_AND_NO_ADDRESS),
        (NoRecords(), NoSuchDomain(), NO_SUCH_DOMAIN),
        (NoRecords(), DnsUnknown("time-out"), Unresolved("far.test")),
        (NoRecords(), None, Unresolved("far.test")),
    ],
)  # fmt: skip
def test_next_hop_by_dns_answer(mx: MxAnswer | None, addresses: AddressAnswer | None, hop: object) -> None:
    answers = DnsAnswers({"far.test": mx} if mx else {}, {"far.test": addresses} if addresses else {})
    context = RoutingContext(policy(hostname=OWN), snapshot(), answers)
    assert next_hop(address("u@far.test"), IsRemote(), context) == hop


def test_enhanced_codes_are_those_of_the_rfcs() -> None:
    assert [(reply.code, reply.enhanced) for reply in (NULL_MX, NO_SUCH_DOMAIN, NO_MX_AND_NO_ADDRESS, LOOPS_BACK)] == [
        (556, "5.1.10"),
        (550, "5.1.2"),
        (550, "5.4.4"),
        (554, "5.4.6"),
    ]


def test_our_own_hostname_without_mx_loops_back() -> None:
    answers = DnsAnswers({OWN: NoRecords()}, {OWN: IpAddresses(("192.0.2.1",))})
    hop = next_hop(
        address(f"u@{OWN}"), IsRemote(), RoutingContext(policy(hostname="MX.Example.Test"), snapshot(), answers)
    )
    assert hop == LOOPS_BACK


@pytest.mark.parametrize(
    ("recipient", "host"), [("u@[192.0.2.7]", "192.0.2.7"), ("u@[IPv6:2001:db8::1]", "2001:db8::1")]
)
def test_address_literal_needs_no_dns(recipient: str, host: str) -> None:
    context = RoutingContext(policy(), snapshot())
    hop = next_hop(address(recipient), IsRemote(), context)
    assert isinstance(hop, ToMx)
    assert hop.hosts == ((0, host),)
    assert mx_domain(address(recipient), IsRemote(), context) is None


def test_precedence_of_mailbox_domain_relay_and_relay() -> None:
    """Order: mailbox, the domain's relay, the configured relay, MX."""
    relay, inner = ToRelay("smart.test", 25), ToRelay("inner.test", 2525)
    with_relay, without = RoutingContext(policy(relay=relay), snapshot()), RoutingContext(policy(), snapshot())
    user = address("u@far.test")
    own_relay = IsRelayed(Domain("far.test", "default", relay_to=inner))
    by_mx = IsRelayed(Domain("far.test", "default", by_mx=True))
    assert next_hop(user, IsMailbox("u@far.test"), with_relay) == ToMailbox("u@far.test")
    assert next_hop(user, own_relay, with_relay) == inner
    assert next_hop(user, by_mx, with_relay) == relay
    assert next_hop(user, IsRemote(), with_relay) == relay
    assert next_hop(user, by_mx, without) == Unresolved("far.test")
    for place in (IsMailbox("u@far.test"), own_relay, by_mx, IsRemote()):
        assert mx_domain(user, place, with_relay) is None
    assert mx_domain(user, own_relay, without) is None
    assert mx_domain(user, by_mx, without) == mx_domain(user, IsRemote(), without) == "far.test"


def test_dns_queries_use_a_labels() -> None:
    user = address("u@bücher.test")
    context = RoutingContext(policy(), snapshot(), DnsAnswers({"xn--bcher-kva.test": MxHosts(((1, "mx.far.test"),))}))
    assert mx_domain(user, IsRemote(), context) == "xn--bcher-kva.test"
    assert not isinstance(next_hop(user, IsRemote(), context), Reply)
