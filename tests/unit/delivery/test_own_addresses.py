"""Tests of loops: an exchanger that is this installation, by its address or by the name in its greeting."""

from __future__ import annotations

import errno
import socket

import pytest

from delivery.own_addresses import OwnAddresses
from mail.outcome import Deferred, Delivered, Failed
from mail.resolver import AddressAnswer, DnsUnknown, IpAddresses
from mail.route import RelayProtocol, Route, ToMx, ToRelay
from tests.support.builders.delivery import CONTENT, delivery
from tests.support.clients.couriers import HostResolver, courier
from tests.support.servers.scripted_remote import ScriptedRemote

NAMES_OF_THE_SYSTEM = {"localhost": ("::1", "127.0.0.1"), "mx.example.test": ("192.0.2.7",)}


@pytest.fixture
def known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        if host not in NAMES_OF_THE_SYSTEM:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(None, None, None, "", (ip, port)) for ip in NAMES_OF_THE_SYSTEM[host]]

    monkeypatch.setattr("delivery.own_addresses.socket.getaddrinfo", resolve)


OWN = "Mail for the recipient's domain loops back to this server"


@pytest.mark.parametrize(
    ("listen", "ip", "port", "is_own"),
    [
        ("127.0.0.1", "127.0.0.1", 25, True),
        ("127.0.0.1", "127.0.0.1", 26, False),  # another server on this machine
        ("127.0.0.1", "127.0.0.2", 25, False),
        ("0.0.0.0", "127.0.0.2", 25, True),
        ("0.0.0.0", "127.0.0.2", 26, False),
        ("::", "127.0.0.1", 25, True),
        ("::1", "::1", 25, True),
        ("::", "::1", 25, True),
        ("127.0.0.1", "::ffff:127.0.0.1", 25, True),
        ("192.0.2.7", "192.0.2.7", 25, True),
        ("localhost", "127.0.0.1", 25, True),
        ("localhost", "::1", 25, True),
        ("localhost", "127.0.0.2", 25, False),
        ("mx.example.test", "192.0.2.7", 25, True),
        ("mx.example.test", "192.0.2.7", 26, False),
        ("mx.example.test", "127.0.0.1", 25, False),
        ("unknown.example.test", "127.0.0.1", 25, False),
    ],
)
@pytest.mark.usefixtures("known_names")
def test_own_addresses(listen: str, ip: str, port: int, is_own: bool) -> None:
    assert OwnAddresses([(listen, 25)]).contains(ip, port) is is_own


def test_addresses_of_load_balancers_are_own() -> None:
    own = OwnAddresses([("127.0.0.1", 2525)], [("192.0.2.1", 25), ("2001:db8::1", 25)])
    assert own.contains("192.0.2.1", 25)
    assert own.contains("2001:db8:0::1", 25)
    assert not own.contains("192.0.2.1", 2525)


class FakeUdp:
    """A UDP socket of a machine with the addresses 192.0.2.7 and 2001:db8::7 and no route to 203.0.113.0/24."""

    def __init__(self, family: int, _kind: int) -> None:
        self.own = "2001:db8::7" if family == socket.AF_INET6 else "192.0.2.7"

    def __enter__(self) -> FakeUdp:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def connect(self, address: tuple[str, int]) -> None:
        if address[0].startswith("203.0.113."):
            raise OSError(errno.ENETUNREACH, "no route")

    def getsockname(self) -> tuple[str, int]:
        return self.own, 40000


@pytest.fixture
def fake_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delivery.own_addresses.socket.socket", FakeUdp)


@pytest.mark.parametrize(
    ("ip", "is_own"),
    [("192.0.2.7", True), ("192.0.2.1", False), ("203.0.113.1", False), ("2001:db8::7", True), ("2001:db8::1", False)],
)
@pytest.mark.parametrize("listen", ["0.0.0.0", "::"])
@pytest.mark.usefixtures("fake_machine")
def test_every_address_of_the_machine_is_own_if_all_are_listened_on(listen: str, ip: str, is_own: bool) -> None:
    assert OwnAddresses([(listen, 25)]).contains(ip, 25) is is_own
    assert not OwnAddresses([(listen, 25)]).contains(ip, 26)


NAMES = HostResolver(mx1=IpAddresses(("127.0.0.1",)), mx2=IpAddresses(("127.0.0.2",)), mx3=IpAddresses(("127.0.0.3",)))


async def test_own_exchanger_and_worse_ones_are_out() -> None:
    async with (
        ScriptedRemote() as own,
        ScriptedRemote(host="127.0.0.2", port=own.port) as equal,
        ScriptedRemote(host="127.0.0.3", port=own.port) as worse,
        courier(NAMES, mx_port=own.port, listen=[("127.0.0.1", own.port)]) as smtp,
    ):
        for _ in range(5):  # equal preferences are shuffled
            route = ToMx("r.test", ((10, "mx1.test"), (10, "mx2.test"), (20, "mx3.test")))
            (outcome,) = await smtp.deliver(delivery(route), CONTENT)
            assert isinstance(outcome, Failed)
            assert str(outcome.reply) == f"554 5.4.6 {OWN}"
        assert [remote.sessions for remote in (own, equal, worse)] == [[], [], []]


@pytest.mark.parametrize("first", ["250 2.0.0 ok", "452 4.3.1 full"])
async def test_better_exchanger_is_asked(first: str) -> None:
    async with (
        ScriptedRemote() as own,
        ScriptedRemote({"MAIL": [first]}, host="127.0.0.2", port=own.port) as better,
        courier(NAMES, mx_port=own.port, own_addresses=["127.0.0.1"]) as smtp,
    ):
        route = ToMx("r.test", ((5, "mx2.test"), (10, "mx1.test"), (20, "mx3.test")))
        (outcome,) = await smtp.deliver(delivery(route), CONTENT)
        assert isinstance(outcome, Delivered if first.startswith("250") else Deferred)
        assert (len(better.sessions), len(own.sessions)) == (1, 0)


@pytest.mark.parametrize("answer", [DnsUnknown("SERVFAIL"), IpAddresses(("127.0.0.9",))])
async def test_better_exchanger_that_may_come_back_defers(answer: AddressAnswer) -> None:
    names = HostResolver(mx1=answer, mx2=IpAddresses(("127.0.0.1",)))
    async with ScriptedRemote() as own, courier(names, mx_port=own.port, own_addresses=["127.0.0.1"]) as smtp:
        route = ToMx("r.test", ((5, "mx1.test"), (10, "mx2.test")))
        (outcome,) = await smtp.deliver(delivery(route), CONTENT)
        assert isinstance(outcome, Deferred)
        assert own.sessions == []


async def test_relay_that_is_this_server_defers() -> None:
    """The operator can correct the setting."""
    async with ScriptedRemote() as own, courier(listen=[("127.0.0.1", own.port)]) as smtp:
        (outcome,) = await smtp.deliver(delivery(ToRelay("127.0.0.1", own.port)), CONTENT)
        assert isinstance(outcome, Deferred)
        assert outcome.reply.enhanced == "4.4.6"
        assert own.sessions == []


@pytest.mark.parametrize("verb", ["GREETING", "EHLO"])
@pytest.mark.parametrize("name", ["us.test", "US.test.", "ehlo.test"])
async def test_own_name_in_the_greeting_is_a_loop(verb: str, name: str) -> None:
    answer = f"220 {name} ESMTP" if verb == "GREETING" else f"250-{name} hello\n250 PIPELINING"
    async with (
        ScriptedRemote({verb: [answer]}) as own,
        ScriptedRemote(host="127.0.0.2", port=own.port) as worse,
        courier(NAMES, mx_port=own.port, ehlo_name="ehlo.test") as smtp,
    ):
        route = ToMx("r.test", ((10, "mx1.test"), (20, "mx2.test")))
        (outcome,) = await smtp.deliver(delivery(route), CONTENT)
        assert isinstance(outcome, Failed)
        assert str(outcome.reply) == f"554 5.4.6 {OWN}"
        assert (len(own.sessions), len(worse.sessions)) == (1, 0)


@pytest.mark.parametrize("name", ["localhost", "localhost.localdomain", "LOCALHOST.example.test"])
async def test_default_host_name_is_no_own_name(name: str) -> None:
    """Other servers that nobody has configured greet with it, too."""
    async with (
        ScriptedRemote({"GREETING": ["220 localhost.localdomain ESMTP"], "EHLO": [f"250 {name}"]}) as remote,
        courier(NAMES, mx_port=remote.port, hostname=name) as smtp,
    ):
        (outcome,) = await smtp.deliver(delivery(ToMx("r.test", ((10, "mx1.test"),))), CONTENT)
        assert isinstance(outcome, Delivered)


@pytest.mark.parametrize(
    "route", [ToRelay("127.0.0.1", 0), ToRelay("127.0.0.1", 0, RelayProtocol.LMTP), ToMx("r.test", ((1, "mx1.test"),))]
)
async def test_other_server_on_this_machine_is_delivered_to(route: Route) -> None:
    """Relays may have our name, and every next hop may have our address with another port."""
    lmtp = isinstance(route, ToRelay) and route.protocol is RelayProtocol.LMTP
    greeting = "220 us.test" if isinstance(route, ToRelay) else "220 other.test"
    async with (
        ScriptedRemote({"GREETING": [greeting]}, lmtp=lmtp) as remote,
        courier(NAMES, mx_port=remote.port, listen=[("0.0.0.0", remote.port + 1)]) as smtp,
    ):
        own_route = ToRelay("127.0.0.1", remote.port, route.protocol) if isinstance(route, ToRelay) else route
        (outcome,) = await smtp.deliver(delivery(own_route), CONTENT)
        assert isinstance(outcome, Delivered)
