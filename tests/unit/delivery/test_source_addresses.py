"""Tests of source addresses: round robin, suspension of unusable ones, and no replacement by another address."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from itertools import pairwise

import pytest
import uvloop
from structlog.testing import capture_logs

from delivery import source_addresses
from delivery.source_addresses import SourceAddresses, bind
from eilpost.doctor import ports
from eilpost.doctor.finding import Level
from mail.outcome import Deferred
from mail.resolver import IpAddresses
from mail.route import ToMx, ToRelay
from mail.settings import Settings
from mail.settings_file import load
from mail.settings_roles import DeliverySettings
from mail.settings_section import SettingsError
from mail.telemetry import REGISTRY
from tests.support.builders.delivery import CONTENT, delivery, relay
from tests.support.clients.couriers import HostResolver, courier, outcome_names
from tests.support.servers.ports import wait_until
from tests.support.servers.scripted_remote import ScriptedRemote

BROADCAST = "127.255.255.255"  # of lo: Linux binds it and connects from 127.0.0.1
NOT_OURS = "192.0.2.7"  # RFC 5737: documentation


def suspended() -> float | None:
    return REGISTRY.get_sample_value("eilpost_delivery_sources_suspended")


def peers(remote: ScriptedRemote) -> list[str]:
    return [session.peer for session in remote.sessions]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_source_addresses_are_used_round_robin(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        async with (
            ScriptedRemote() as remote,
            courier(
                source_addresses=["127.0.0.2", "127.0.0.3"], max_messages_per_connection=1, ehlo_name="out.test"
            ) as smtp,
        ):
            for _ in range(5):
                assert outcome_names(await smtp.deliver(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
            assert peers(remote) == ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3", "127.0.0.2"]
            assert {session.commands[0] for session in remote.sessions} == {"EHLO out.test"}
            assert suspended() == 0

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


async def test_source_address_matches_the_family_of_the_destination() -> None:
    names = HostResolver(both=IpAddresses(("::1", "127.0.0.1")), six=IpAddresses(("::1",)))
    async with ScriptedRemote(host="::1") as six, ScriptedRemote(port=six.port) as four:
        route = ToRelay("both.test", six.port)
        async with courier(names, source_addresses=["127.0.0.2", "::1", "127.0.0.3"]) as smtp:
            assert outcome_names(await smtp.deliver(delivery(route), CONTENT)) == ["Delivered"]
            assert (peers(six), peers(four)) == (["::1"], [])
        async with courier(names, source_addresses=["127.0.0.2"]) as smtp:  # IPv6 is preferred, and has no source
            assert outcome_names(await smtp.deliver(delivery(route), CONTENT)) == ["Delivered"]
            assert (peers(six), peers(four)) == (["::1"], ["127.0.0.2"])
            (outcome,) = await smtp.deliver(delivery(ToRelay("six.test", six.port)), CONTENT)
            assert isinstance(outcome, Deferred)
            assert str(outcome.reply) == (
                "451 4.4.0 No source address to connect from: those for IPv6 are missing in delivery.source_addresses"
            )
            assert peers(six) == ["::1"]


async def test_without_source_addresses_the_system_chooses() -> None:
    async with ScriptedRemote() as remote, courier() as smtp:
        assert outcome_names(await smtp.deliver(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
        assert peers(remote) == ["127.0.0.1"]


async def test_unbindable_address_is_suspended() -> None:
    async with (
        ScriptedRemote() as remote,
        courier(source_addresses=[NOT_OURS, "127.0.0.2"], max_messages_per_connection=1) as smtp,
    ):
        with capture_logs() as lines:
            for _ in range(3):
                assert outcome_names(await smtp.deliver(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
        assert peers(remote) == ["127.0.0.2"] * 3
        assert [line["source"] for line in lines if line["event"] == "source address suspended"] == [NOT_OURS]
        assert suspended() == 1


async def test_mail_is_deferred_while_no_source_address_is_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_addresses, "BACKOFF_SECONDS", 0.1)
    monkeypatch.setattr(source_addresses, "BACKOFF_SECONDS_MAX", 0.1)
    is_away, attempts = True, 0

    def sometimes(address: str) -> socket.socket:
        nonlocal attempts
        attempts += 1
        if is_away:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return bind(address)

    monkeypatch.setattr(source_addresses, "bind", sometimes)
    async with ScriptedRemote() as remote, courier(source_addresses=["127.0.0.2", "127.0.0.3"]) as smtp:
        with capture_logs() as lines:
            for route in (relay(remote.port), relay(remote.port), ToMx("far.test", ((10, "127.0.0.1"),))):
                (outcome,) = await smtp.deliver(delivery(route), CONTENT)
                assert isinstance(outcome, Deferred)
                assert str(outcome.reply) == (
                    "451 4.4.0 No source address to connect from: those for IPv4 are suspended: they cannot be used"
                )
            await wait_until(lambda: attempts >= 6)  # the back-off is over several times
        assert remote.sessions == []
        assert suspended() == 2
        # Once for each address, and no "site unreachable".
        assert [line["event"] for line in lines] == ["source address suspended"] * 2
        is_away = False
        await wait_until(lambda: suspended() == 0)
        assert outcome_names(await smtp.deliver(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
        assert peers(remote) == ["127.0.0.2"]


def test_back_off_grows_to_its_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt_times: list[float] = []
    now = 0.0

    def never(_address: str) -> socket.socket:
        attempt_times.append(now)
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(source_addresses, "bind", never)
    own_sources = SourceAddresses(["127.0.0.2"])
    with pytest.raises(source_addresses.NoSource):
        own_sources._next_socket(["127.0.0.2"], "127.0.0.1", now)
    while now < 4000:
        now += 1.0
        own_sources.recheck_suspended(now)
    gaps = [later - earlier for earlier, later in pairwise(attempt_times)]
    assert gaps == [30, 60, 120, 240, 480, *[600] * 5]


async def test_lack_of_sockets_suspends_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_address: str) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(source_addresses, "bind", none_left)
    async with ScriptedRemote() as remote, courier(source_addresses=["127.0.0.2"]) as smtp:
        (outcome,) = await smtp.deliver(delivery(relay(remote.port)), CONTENT)
        assert "Too many open files" in str(outcome.reply)
        assert (suspended(), remote.sessions) == (0, [])


async def test_failed_connection_leaves_no_socket_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with courier(source_addresses=["127.0.0.2"]) as smtp:
        (outcome,) = await smtp.deliver(delivery(relay(port)), CONTENT)
        assert "connection refused" in str(outcome.reply)
        assert suspended() == 0  # pytest fails for a socket that is not closed


async def test_address_replaced_by_the_system_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_addresses, "BACKOFF_SECONDS", 0.1)
    monkeypatch.setattr(source_addresses, "BACKOFF_SECONDS_MAX", 0.1)
    async with ScriptedRemote() as remote:
        async with courier(source_addresses=[BROADCAST, "127.0.0.2"]) as smtp:
            assert outcome_names(await smtp.deliver(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
        assert "127.0.0.2" in peers(remote)
        remote.sessions.clear()
        with capture_logs() as lines:
            async with courier(source_addresses=[BROADCAST]) as smtp:
                for _ in range(2):
                    (outcome,) = await smtp.deliver(delivery(relay(remote.port)), CONTENT)
                    assert isinstance(outcome, Deferred)
                    assert "those for IPv4 are suspended: they cannot be used" in str(outcome.reply)
                await asyncio.sleep(0.5)  # the back-off is over several times
                assert suspended() == 1
        assert not [command for session in remote.sessions for command in session.commands]
        (line,) = [line for line in lines if line["event"] == "source address suspended"]
        assert line["reason"] == "the system connects from 127.0.0.1 instead"


@pytest.mark.parametrize("address", ["255.255.255.255", "224.0.0.1", "ff02::1", "0.0.0.0", "::"])
def test_address_of_no_single_interface_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match=r"delivery\.source_addresses"):
        load(None, {"EILPOST_DELIVERY__SOURCE_ADDRESSES": address})


def test_doctor_finds_a_broadcast_address() -> None:
    (bad,) = ports.sources(Settings(delivery=DeliverySettings(source_addresses=[BROADCAST])))
    assert (bad.level, bad.text) == (Level.FAIL, "is a broadcast address: no mail is sent from it")


def test_doctor_binds_each_address() -> None:
    settings = Settings(delivery=DeliverySettings(source_addresses=["127.0.0.2", NOT_OURS]))
    good, bad = ports.sources(settings)
    assert (good.level, good.subject) == (Level.OK, "source 127.0.0.2")
    assert (bad.level, bad.subject) == (Level.FAIL, f"source {NOT_OURS}")
    assert "delivery.source_addresses" in bad.advice[0]
