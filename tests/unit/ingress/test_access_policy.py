"""Access policy: senders, recipients, relaying, VRFY."""

from __future__ import annotations

import pytest

from ingress import access_policy
from ingress.access_policy import (
    ClientPolicy,
    check_recipient,
    check_sender,
    is_within,
    normalize_ip,
    parse_networks,
    postmaster,
)
from mail.address import Address
from mail.directory import Domain, LookupResult, Snapshot, User
from mail.envelope import Recipient
from mail.reply import Reply
from mail.route import ToRelay
from tests.support.servers.ingress import make_snapshot

REMOTE = ClientPolicy(may_relay=False, sender_must_resolve=True)
RELAY = ClientPolicy(may_relay=True, sender_must_resolve=True)
NO_DNS_CHECK = ClientPolicy(may_relay=False, sender_must_resolve=False)
A = Address.parse


@pytest.mark.parametrize(
    ("sender", "client_policy", "verdict"),
    [
        (None, REMOTE, None),
        (A("alice@example.test"), REMOTE, None),
        (A("Alice+x@EXAMPLE.test"), REMOTE, None),
        (A("any@catch.test"), REMOTE, None),
        (A("any@relayed.test"), REMOTE, None),
        (A("x@elsewhere.test"), REMOTE, access_policy.QueryMx("elsewhere.test")),
        (A("x@bücher.test", utf8=True), RELAY, access_policy.QueryMx("xn--bcher-kva.test")),
        (A("x@elsewhere.test"), NO_DNS_CHECK, None),
        (A("x@[192.0.2.1]"), REMOTE, None),
    ],
)
def test_senders(sender: Address | None, client_policy: ClientPolicy, verdict: object) -> None:
    assert check_sender(sender, make_snapshot(), client_policy) == verdict


def test_local_sender_must_exist_without_dns_checks() -> None:
    for client_policy in (REMOTE, RELAY, NO_DNS_CHECK):
        verdict = check_sender(A("nobody@example.test"), make_snapshot(), client_policy)
        assert isinstance(verdict, Reply)
        assert (verdict.code, verdict.enhanced) == (550, "5.1.0")


def test_only_relay_networks_may_send_to_remote_domains() -> None:
    remote = A("x@elsewhere.test")
    refused = check_recipient(remote, make_snapshot(), REMOTE, "mx.example.test", 20)
    assert isinstance(refused, Reply)
    assert (refused.code, refused.enhanced) == (550, "5.7.1")
    assert check_recipient(remote, make_snapshot(), RELAY, "mx.example.test", 20) == Recipient(remote)
    unknown = check_recipient(A("nobody@example.test"), make_snapshot(), RELAY, "mx.example.test", 20)
    assert isinstance(unknown, Reply)
    assert unknown.enhanced == "5.1.1"


@pytest.mark.parametrize("local", ["victim%elsewhere", "elsewhere!victim", "victim@elsewhere"])
@pytest.mark.parametrize("by_mx", [False, True])
def test_only_relay_networks_may_route_through_a_relay_domain(local: str, by_mx: bool) -> None:
    relay_to = None if by_mx else ToRelay("127.0.0.1", 25)
    snapshot = Snapshot(domains={"relay.test": Domain("relay.test", "default", relay_to=relay_to, by_mx=by_mx)})
    address = Address(local, "relay.test")
    refused = check_recipient(address, snapshot, REMOTE, "mx.example.test", 20)
    assert isinstance(refused, Reply)
    assert (refused.code, refused.enhanced) == (550, "5.7.1")
    assert check_recipient(address, snapshot, RELAY, "mx.example.test", 20) == Recipient(address)


def test_postmaster_always_exists() -> None:
    assert postmaster(make_snapshot(), "mx.example.test") == A("postmaster@example.test")
    assert postmaster(Snapshot(), "mx.example.test") == A("postmaster@mx.example.test")
    bare = Snapshot(domains={"only.test": Domain("only.test", "default")})
    assert postmaster(bare, "mx.example.test") == A("postmaster@only.test")
    assert isinstance(check_recipient(None, Snapshot(), REMOTE, "mx.example.test", 20), Recipient)
    named = A("Postmaster@MX.example.test")
    for client_policy in (REMOTE, RELAY):  # even for relay clients: the MX is this server
        assert check_recipient(named, make_snapshot(), client_policy, "mx.example.test", 20) == Recipient(
            A("postmaster@example.test"), named
        )


@pytest.mark.parametrize(
    ("name", "enhanced"),
    [
        ("gone@example.test", "5.1.1"),
        ("round@example.test", "5.4.6"),
        ("nobody@list.example.test", "5.2.4"),
        ("half@example.test", None),
        ("outside@example.test", None),
        ("team@example.test", None),
        ("any@catch.test", None),
    ],
)
def test_alias_without_valid_target_is_refused_at_rcpt(name: str, enhanced: str | None) -> None:
    verdict = check_recipient(A(name), make_snapshot(), REMOTE, "mx.example.test", 20)
    if enhanced is None:
        assert verdict == Recipient(A(name))
    else:
        assert isinstance(verdict, Reply)
        assert (verdict.code, verdict.enhanced) == (550, enhanced)
        assert name in verdict.text


def test_large_alias_is_not_expanded_completely_at_rcpt() -> None:
    class Counting(Snapshot):
        lookups = 0

        def lookup(self, address: Address) -> LookupResult:
            Counting.lookups += 1
            return super().lookup(address)

    small = make_snapshot()
    many = tuple(A(f"user{number}@example.test") for number in range(10_000))
    large = Counting(
        domains=small.domains,
        users={str(address): User(address) for address in many},
        aliases={"everybody@example.test": many},
    )
    assert len(large.alias_distances) == 1  # once, in the thread that loads the directory
    Counting.lookups = 0
    for _ in range(100):
        verdict = check_recipient(A("everybody@example.test"), large, REMOTE, "mx.example.test", 20)
        assert isinstance(verdict, Recipient)
    assert Counting.lookups < 1000


@pytest.mark.parametrize("last", ["nobody@example.test", "alice@example.test"])
def test_dead_names_of_a_large_alias_are_not_looked_up_at_rcpt(last: str) -> None:
    class Counting(Snapshot):
        lookups = 0

        def lookup(self, address: Address) -> LookupResult:
            Counting.lookups += 1
            return super().lookup(address)

    small = make_snapshot()
    dead = tuple(A(f"gone{number}@example.test") for number in range(10_000))
    large = Counting(domains=small.domains, users=small.users, aliases={"all@example.test": (*dead, A(last))})
    assert len(large.alias_distances) == (last == "alice@example.test")
    Counting.lookups = 0
    verdict = check_recipient(A("all@example.test"), large, REMOTE, "mx.example.test", 20)
    assert isinstance(verdict, Recipient) == (last == "alice@example.test")
    assert Counting.lookups < 10


def test_networks() -> None:
    networks = parse_networks(["127.0.0.0/8", "2001:db8::/32"])
    assert is_within("127.9.9.9", networks)
    assert not is_within("128.0.0.1", networks)
    assert is_within("2001:db8::7", networks)
    assert is_within(normalize_ip("::ffff:127.0.0.1"), networks)
    assert normalize_ip("fe80::1%eth0") == "fe80::1"
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8"):
        parse_networks(["10.0.0.1/8"])


def test_vrfy_reply_contains_no_utf8_address() -> None:
    snapshot = Snapshot(
        domains={"example.test": Domain("example.test", "default")},
        users={"böb@example.test": User(A("böb@example.test", utf8=True))},
    )
    for query in ("böb", A("böb@example.test", utf8=True)):
        assert access_policy.verify_address(query, snapshot) == Reply(250, "2.1.5", "Ok")  # RFC 6531 section 3.7.4.2
