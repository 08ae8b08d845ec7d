"""What the connect step derives from a PeerKey."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from delivery.connection import Connection
from delivery.own_addresses import OwnAddresses
from delivery.peer import Credentials, PeerKey, TlsPolicy
from delivery.pool import Pool
from delivery.site_window import SiteWindows
from delivery.smtp_courier import SmtpCourier
from delivery.walk import Walk
from mail.envelope import Envelope
from mail.outcome import Deferred
from mail.reply import Reply
from mail.route import Route, ToRelay
from mail.settings_roles import DeliverySettings
from tests.support.builders.delivery import CONTENT, delivery, relay
from tests.support.clients.couriers import HostResolver, new_pool, outcome_names
from tests.support.servers.scripted_remote import ScriptedRemote


class PoolWithPolicy(Pool):
    """A pool whose deliveries need what `tls` and `credentials` say."""

    def __init__(self) -> None:
        settings = DeliverySettings()
        windows = SiteWindows(settings.max_connections_per_site, 30.0)
        super().__init__(
            settings=settings,
            windows=windows,
            resolver=HostResolver(),
            hostname="us.test",
            own_addresses=OwnAddresses(),
        )
        self.tls = TlsPolicy.NONE
        self.credentials: Credentials | None = None

    def key(self, route: Route) -> PeerKey:
        return replace(super().key(route), tls=self.tls, credentials=self.credentials)


@pytest.mark.parametrize("ehlo", ["250-remote.test\n250 PIPELINING", "250-remote.test\n250 STARTTLS", "502 no"])
@pytest.mark.parametrize(
    ("tls", "credentials", "reply"),
    [
        (TlsPolicy.REQUIRE, None, "451 4.7.4 [127.0.0.1]:{}: TLS is required, and this version has no STARTTLS"),
        (
            TlsPolicy.OPPORTUNISTIC,
            Credentials("user", "secret"),
            "451 4.7.4 [127.0.0.1]:{}: Authentication is required, and this version has no AUTH",
        ),
    ],
)
async def test_policy_that_cannot_be_honoured_defers_and_sends_no_mail_in_clear(
    ehlo: str, tls: TlsPolicy, credentials: Credentials | None, reply: str
) -> None:
    pool = PoolWithPolicy()
    smtp = SmtpCourier(pool)
    async with ScriptedRemote({"EHLO": [ehlo]}) as remote:
        route = relay(remote.port)
        assert outcome_names(await smtp.deliver(delivery(route), CONTENT)) == ["Delivered"]
        (plain,) = remote.sessions
        pool.tls, pool.credentials = tls, credentials
        async with asyncio.timeout(10):
            results = await asyncio.gather(*(smtp.deliver(delivery(route), CONTENT) for _ in range(5)))
        for (outcome,) in results:
            assert isinstance(outcome, Deferred)
            assert str(outcome.reply) == reply.format(remote.port)
        assert len(remote.messages) == 1
        others = [session for session in remote.sessions if session is not plain]
        assert len(others) == 5  # none was retried
        assert {command.split()[0] for session in others for command in session.commands} <= {"EHLO", "HELO"}
        pool.tls, pool.credentials = TlsPolicy.NONE, None  # the site is not backed off
        assert outcome_names(await smtp.deliver(delivery(route), CONTENT)) == ["Delivered"]
    await pool.close()


async def test_policy_of_a_delivery_backs_off_no_exchanger() -> None:
    """Other mail is still sent to the site after a delivery whose policy the site was tried with first."""
    pool = PoolWithPolicy()
    smtp = SmtpCourier(pool)
    async with ScriptedRemote() as remote:
        pool.tls = TlsPolicy.REQUIRE
        assert outcome_names(await smtp.deliver(delivery(relay(remote.port)), CONTENT)) == ["Deferred"]
        pool.tls = TlsPolicy.OPPORTUNISTIC
        assert outcome_names(await smtp.deliver(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
    await pool.close()


async def test_source_address_and_ehlo_name_are_those_of_the_key() -> None:
    pool = new_pool(source_addresses=["127.0.0.2", "127.0.0.3"], max_connections_per_site=1)
    envelope = delivery(relay(1)).message.envelope
    async with ScriptedRemote() as remote:
        route = relay(remote.port)
        key = pool.key(route)
        own = [
            replace(key, source_addresses=("127.0.0.2",), ehlo_name="two.test"),
            replace(key, source_addresses=("127.0.0.3",), ehlo_name="three.test"),
        ]
        for _ in range(3):
            for each in own:
                await transact(pool, each, route, envelope)
        assert {(session.peer, session.commands[0]) for session in remote.sessions} == {
            ("127.0.0.2", "EHLO two.test"),
            ("127.0.0.3", "EHLO three.test"),
        }
        foreign = await pool.acquire(replace(key, source_addresses=("127.0.0.4",)), route, Walk(0.0))
        assert isinstance(foreign, Reply)
        assert foreign.status == "4.4.0"
    await pool.close()


async def transact(pool: Pool, key: PeerKey, route: ToRelay, envelope: Envelope) -> None:
    connection = await pool.acquire(key, route, Walk(0.0))
    assert isinstance(connection, Connection)
    pool.release(connection, await connection.transact(envelope, CONTENT))


def test_password_is_not_in_the_representation_of_a_key() -> None:
    key = PeerKey("smtp://relay.test:587", "us.test", credentials=Credentials("user", "secret"))
    assert "secret" not in repr(key)
