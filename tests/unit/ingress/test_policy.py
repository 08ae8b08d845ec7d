"""May this client send from this person to that one: the facts and their verdicts."""

from __future__ import annotations

import time

import pytest

from ingress import policy
from ingress.policy import (
    ClientRights,
    check_recipient,
    check_sender,
    is_within,
    normalize_ip,
    parse_networks,
    postmaster,
)
from mail.address import Address
from mail.directory import Domain, LookupResult, Snapshot, Tenant, User
from mail.envelope import Recipient
from mail.reply import Reply
from tests.support.servers.ingress import make_snapshot

STRANGER = ClientRights(may_relay=False, sender_must_resolve=True)
RELAY = ClientRights(may_relay=True, sender_must_resolve=True)
LAX = ClientRights(may_relay=False, sender_must_resolve=False)
A = Address.parse


@pytest.mark.parametrize(
    ("sender", "rights", "verdict"),
    [
        (None, STRANGER, policy.OK),
        (A("alice@example.test"), STRANGER, policy.OK),
        (A("Alice+x@EXAMPLE.test"), STRANGER, policy.OK),
        (A("any@catch.test"), STRANGER, policy.OK),
        (A("any@relayed.test"), STRANGER, policy.OK),
        (A("x@elsewhere.test"), STRANGER, policy.QueryMx("elsewhere.test")),
        (A("x@bücher.test", utf8=True), RELAY, policy.QueryMx("xn--bcher-kva.test")),
        (A("x@elsewhere.test"), LAX, policy.OK),
        (A("x@[192.0.2.1]"), STRANGER, policy.OK),
    ],
)
def test_senders(sender: Address | None, rights: ClientRights, verdict: object) -> None:
    assert check_sender(sender, make_snapshot(), rights) == verdict


def test_a_local_sender_must_exist_even_where_nothing_is_looked_up() -> None:
    for rights in (STRANGER, RELAY, LAX):
        verdict = check_sender(A("nobody@example.test"), make_snapshot(), rights)
        assert isinstance(verdict, Reply)
        assert (verdict.code, verdict.enhanced) == (550, "5.1.0")


def test_only_relay_networks_send_elsewhere() -> None:
    there = A("x@elsewhere.test")
    refused = check_recipient(there, make_snapshot(), STRANGER, "mx.example.test", 20)
    assert isinstance(refused, Reply)
    assert (refused.code, refused.enhanced) == (550, "5.7.1")
    assert check_recipient(there, make_snapshot(), RELAY, "mx.example.test", 20) == Recipient(there, there)
    unknown = check_recipient(A("nobody@example.test"), make_snapshot(), RELAY, "mx.example.test", 20)
    assert isinstance(unknown, Reply)
    assert unknown.enhanced == "5.1.1"


def test_the_postmaster_is_always_there() -> None:
    assert postmaster(make_snapshot(), "mx.example.test") == A("postmaster@example.test")
    assert postmaster(Snapshot(), "mx.example.test") == A("postmaster@mx.example.test")
    bare = Snapshot(domains={"only.test": Domain("only.test", "default")})
    assert postmaster(bare, "mx.example.test") == A("postmaster@only.test")
    assert isinstance(check_recipient(None, Snapshot(), STRANGER, "mx.example.test", 20), Recipient)
    named = A("Postmaster@MX.example.test")
    for rights in (STRANGER, RELAY):  # who may relay must not have it sent by MX, back to us
        assert check_recipient(named, make_snapshot(), rights, "mx.example.test", 20) == Recipient(
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
def test_an_alias_that_leads_to_nobody_is_refused_at_rcpt(name: str, enhanced: str | None) -> None:
    verdict = check_recipient(A(name), make_snapshot(), STRANGER, "mx.example.test", 20)
    if enhanced is None:
        assert verdict == Recipient(A(name), A(name))
    else:
        assert isinstance(verdict, Reply)
        assert (verdict.code, verdict.enhanced) == (550, enhanced)
        assert name in verdict.text


def test_a_large_list_is_not_read_to_its_end_at_every_rcpt() -> None:
    class Counting(Snapshot):
        looks = 0

        def find(self, address: Address) -> LookupResult:
            Counting.looks += 1
            return super().lookup(address)

    small = make_snapshot()
    many = tuple(A(f"user{number}@example.test") for number in range(10_000))
    large = Counting(
        domains=small.domains,
        users={str(address): User(address) for address in many},
        aliases={"everybody@example.test": many},
    )
    assert isinstance(check_recipient(A("everybody@example.test"), large, STRANGER, "mx.example.test", 20), Recipient)
    begun = time.perf_counter()
    for _ in range(100):
        check_recipient(A("everybody@example.test"), large, STRANGER, "mx.example.test", 20)
    assert time.perf_counter() - begun < 0.5
    assert Counting.looks < 1000


def test_networks() -> None:
    networks = parse_networks(["127.0.0.0/8", "2001:db8::/32"])
    assert is_within("127.9.9.9", networks)
    assert not is_within("128.0.0.1", networks)
    assert is_within("2001:db8::7", networks)
    assert is_within(normalize_ip("::ffff:127.0.0.1"), networks)
    assert normalize_ip("fe80::1%eth0") == "fe80::1"
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8"):
        parse_networks(["10.0.0.1/8"])


def test_a_message_is_of_its_senders_tenant_or_of_its_first_recipients() -> None:
    snapshot = Snapshot(
        tenants={name: Tenant(name) for name in ("default", "one", "two")},
        domains={"one.test": Domain("one.test", "one"), "two.test": Domain("two.test", "two")},
    )
    to_two = [Recipient(A("x@two.test"), A("x@two.test"))]
    assert policy.tenant_of(A("x@one.test"), to_two, snapshot) == "one"
    assert policy.tenant_of(A("x@else.test"), to_two, snapshot) == "two"
    assert policy.tenant_of(None, to_two, snapshot) == "two"


def test_vrfy_says_no_name_that_the_client_may_not_be_able_to_read() -> None:
    snapshot = Snapshot(
        domains={"example.test": Domain("example.test", "default")},
        users={"böb@example.test": User(A("böb@example.test", utf8=True))},
    )
    for asked in ("böb", A("böb@example.test", utf8=True)):
        assert policy.verify_address(asked, snapshot) == Reply(250, "2.1.5", "Ok")  # RFC 6531 section 3.7.4.2
