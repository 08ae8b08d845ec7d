"""Tests of the connection pool: reuse, limits, closing, and fairness between sites."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from delivery import site_window
from delivery.connection import Connection
from delivery.exchangers import CONSECUTIVE_FAILURES_MAX
from delivery.peer import PeerKey, TlsPolicy
from delivery.pool import Pool
from delivery.smtp_courier import SmtpCourier
from delivery.walk import Walk
from mail.outcome import Deferred
from mail.reply import Reply
from mail.route import ToMx, ToRelay
from tests.support.builders.delivery import CONTENT, delivery, relay
from tests.support.clients.couriers import SHORT_TIMEOUTS, courier, new_pool, outcome_names
from tests.support.docs.metrics import value
from tests.support.servers.listener import settle
from tests.support.servers.ports import wait_until
from tests.support.servers.scripted_remote import Drop, ScriptedRemote, Stall, Wait


async def test_connection_is_closed_after_its_messages_or_idle_time() -> None:
    async with (
        ScriptedRemote() as remote,
        courier(max_messages_per_connection=2, idle_timeout=timedelta(seconds=0.1)) as smtp,
    ):
        for _ in range(3):
            await smtp.deliver(delivery(relay(remote.port)), CONTENT)
        assert [session.commands.count("DOT") for session in remote.sessions] == [2, 1]
        await remote.wait_command("QUIT")
        await wait_until(lambda: all(session.commands[-1] == "QUIT" for session in remote.sessions))


async def test_stale_connection_causes_a_reconnect() -> None:
    async with ScriptedRemote({"MAIL": ["250 ok", Drop(), "250 ok"]}) as remote, courier() as smtp:
        await smtp.deliver(delivery(relay(remote.port)), CONTENT)
        assert outcome_names(await smtp.deliver(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
        assert len(remote.sessions) == 2


@pytest.mark.parametrize("connections", [20, 8])
async def test_all_stale_connections_cost_one_retry(connections: int) -> None:
    """They look open and are closed at the next MAIL, as after a firewall's time-out."""
    release = asyncio.Event()
    script = {"DOT": [*[Wait(release, "250 ok")] * 8, "250 ok"]}
    async with (
        ScriptedRemote(script) as remote,
        courier(max_connections_per_site=connections, max_connections=connections) as smtp,
    ):
        attempts = asyncio.gather(*(smtp.deliver(delivery(relay(remote.port)), CONTENT) for _ in range(4)))
        await wait_until(lambda: len(remote.sessions) == 4)
        release.set()
        await attempts
        attempts = asyncio.gather(*(smtp.deliver(delivery(relay(remote.port)), CONTENT) for _ in range(20)))
        await attempts
        idle = len(smtp._pool._assignment.peers[smtp._pool.key(relay(remote.port))].idle)
        assert idle > 6
        before = len(remote.sessions)
        remote.close_at_next_command = set(range(before))
        assert outcome_names(await smtp.deliver(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
        assert len(remote.sessions) == before + 1


async def test_server_restart_causes_no_deferral() -> None:
    remote = ScriptedRemote()
    await remote.start()
    async with courier() as smtp:
        assert outcome_names(await smtp.deliver(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
        await remote.stop()
        attempts = asyncio.gather(*(smtp.deliver(delivery(relay(remote.port)), CONTENT) for _ in range(10)))
        await asyncio.sleep(0.3)
        await remote.start()
        assert [outcome_names(outcomes) for outcomes in await attempts] == [["Delivered"]] * 10
    await remote.stop()


async def test_unreachable_site_is_not_connected_during_its_back_off() -> None:
    port = free_port()
    async with courier(reconnect_backoff=timedelta(seconds=0.3)) as smtp:
        (first,) = await smtp.deliver(delivery(relay(port)), CONTENT)
        assert isinstance(first, Deferred)
        assert first.reply.enhanced == "4.4.1"
        async with ScriptedRemote(port=port) as remote:
            (second,) = await smtp.deliver(delivery(relay(port)), CONTENT)
            assert isinstance(second, Deferred)
            assert "Not tried" in second.reply.text
            assert remote.sessions == []
            await asyncio.sleep(0.4)
            assert outcome_names(await smtp.deliver(delivery(relay(port)), CONTENT)) == ["Delivered"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("trouble", [Stall(), Drop(), "421 4.7.0 not you"])
async def test_site_that_breaks_every_transaction_is_backed_off(trouble: Any) -> None:
    async with ScriptedRemote({"MAIL": [trouble]}) as remote, courier(timeouts=SHORT_TIMEOUTS) as smtp:
        attempts = [smtp.deliver(delivery(relay(remote.port)), CONTENT) for _ in range(100)]
        outcomes = await asyncio.wait_for(asyncio.gather(*attempts), 10)
        assert all(outcome_names(outcome) == ["Deferred"] for outcome in outcomes)
        assert len(remote.sessions) <= 8


async def test_back_off_has_the_reason_of_the_lost_connection() -> None:
    """Not the reply to the last recipient, who may have got another one."""
    script = {"RCPT": ["250 ok", "550 5.1.1 unknown"], "DATA": ["421 4.3.2 closing"]}
    async with ScriptedRemote(script) as remote, courier() as smtp:
        route = relay(remote.port)
        for _ in range(CONSECUTIVE_FAILURES_MAX):
            await smtp.deliver(delivery(route, "a@r.test", "b@r.test"), CONTENT)
        (refused,) = await smtp.deliver(delivery(route), CONTENT)
        assert "Not tried" in refused.reply.text
        assert refused.reply.text.endswith(": closing")


async def test_slow_start_up_to_the_connection_limit() -> None:
    async with ScriptedRemote() as remote, courier(max_connections_per_site=6) as smtp:
        attempts = [smtp.deliver(delivery(relay(remote.port)), CONTENT) for _ in range(100)]
        assert all(outcome_names(outcomes) == ["Delivered"] for outcomes in await asyncio.gather(*attempts))
        assert len(remote.sessions) == 6


async def test_wait_for_a_connection_is_observed() -> None:
    release = asyncio.Event()
    script = {"DOT": [Wait(release, "250 ok"), "250 ok"]}
    async with ScriptedRemote(script) as remote, courier(max_connections_per_site=1) as smtp:
        before = value("delivery_slot_wait_seconds_count"), value("delivery_slot_wait_seconds_sum")
        attempts = asyncio.gather(*(smtp.deliver(delivery(relay(remote.port)), CONTENT) for _ in range(2)))
        await remote.wait_command("DOT")
        await asyncio.sleep(0.2)  # the second one waits at least as long
        release.set()
        await attempts
        assert value("delivery_slot_wait_seconds_count") - before[0] == 1
        assert value("delivery_slot_wait_seconds_sum") - before[1] >= 0.1


async def test_transaction_is_timed_from_its_start() -> None:
    """Not from before the connection was opened: a slow greeting would halve the window of a site that is in time."""
    pool = new_pool()
    loop = asyncio.get_running_loop()
    async with ScriptedRemote() as remote:
        connection = await acquire(pool, relay(remote.port))
        assert isinstance(connection, Connection)
        assert connection.opened_at <= connection.acquired_at <= loop.time()
        await pool.close()


async def test_slow_start_begins_with_few_connections() -> None:
    go = asyncio.Event()
    async with ScriptedRemote({"DOT": [Wait(go, "250 ok")]}) as remote, courier() as smtp:
        attempts = [asyncio.create_task(smtp.deliver(delivery(relay(remote.port)), CONTENT)) for _ in range(30)]
        await wait_until(lambda: remote.commands.count("DOT") == 4)
        await settle()
        assert len(remote.sessions) == 4
        go.set()
        await asyncio.gather(*attempts)
        assert len(remote.sessions) > 4


async def test_connection_limit_of_the_server_is_respected() -> None:
    async with ScriptedRemote({"GREETING": ["220 a", "220 b", "421 4.7.0 too many"]}) as remote, courier() as smtp:
        attempts = [smtp.deliver(delivery(relay(remote.port)), CONTENT) for _ in range(40)]
        assert all(outcome_names(outcomes) == ["Delivered"] for outcomes in await asyncio.gather(*attempts))


async def test_total_connection_limit_is_shared() -> None:
    async with (
        ScriptedRemote() as one,
        ScriptedRemote() as two,
        ScriptedRemote() as three,
        courier(max_connections=2) as smtp,
    ):
        remotes = [one, two, three] * 10
        attempts = [smtp.deliver(delivery(relay(remote.port)), CONTENT) for remote in remotes]
        outcomes = await asyncio.wait_for(asyncio.gather(*attempts), 10)
        assert all(outcome_names(outcome) == ["Delivered"] for outcome in outcomes)
        assert max(remote.open_connections for remote in (one, two, three)) <= 2


async def test_silent_servers_yield_while_all_connections_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delivery.pool._GREETING_SECONDS_IF_FULL", 0.1)
    async with (
        ScriptedRemote({"GREETING": [Stall()]}) as silent,
        ScriptedRemote(host="127.0.0.2", port=silent.port) as good,
        courier(max_connections=3, mx_port=silent.port, idle_timeout=timedelta(seconds=0.1)) as smtp,
    ):
        routes = [ToMx("r.test", ((number, "127.0.0.1"), (10, f"127.0.0.{number + 10}"))) for number in range(3)]
        hanging = [asyncio.create_task(smtp.deliver(delivery(route), CONTENT)) for route in routes]
        await wait_until(lambda: len(silent.sessions) == 3)
        await asyncio.sleep(0.2)
        assert silent.open_connections == 3  # nobody else needs a connection
        assert outcome_names(await smtp.deliver(delivery(ToMx("n.test", ((1, "127.0.0.2"),))), CONTENT)) == [
            "Delivered"
        ]
        assert len(good.messages) == 1
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


async def test_busy_site_yields_connections_to_a_site_without_any() -> None:
    async with ScriptedRemote() as busy, ScriptedRemote() as other, courier(max_connections=2) as smtp:
        many = [asyncio.create_task(smtp.deliver(delivery(relay(busy.port)), CONTENT)) for _ in range(300)]
        await busy.wait_messages(10)
        assert outcome_names(await smtp.deliver(delivery(relay(other.port)), CONTENT)) == ["Delivered"]
        assert len(busy.messages) < 200
        assert all(outcome_names(outcomes) == ["Delivered"] for outcomes in await asyncio.gather(*many))


async def test_single_connection_is_shared_by_sites() -> None:
    async with (
        ScriptedRemote() as one,
        ScriptedRemote() as two,
        ScriptedRemote() as three,
        courier(max_connections=1) as smtp,
    ):
        many = [
            asyncio.create_task(smtp.deliver(delivery(relay(remote.port)), CONTENT))
            for remote in (one, two)
            for _ in range(200)
        ]
        await one.wait_messages(10)
        assert outcome_names(await smtp.deliver(delivery(relay(three.port)), CONTENT)) == ["Delivered"]
        assert len(one.messages) + len(two.messages) < 200
        assert all(outcome_names(outcomes) == ["Delivered"] for outcomes in await asyncio.gather(*many))


async def test_close_after_a_reply_does_not_reduce_the_connection_limit() -> None:
    own_envelope = delivery(relay(1)).message.envelope
    pool = new_pool()
    async with ScriptedRemote() as remote:
        route = relay(remote.port)
        for _ in range(3):
            connection = await acquire(pool, route)
            assert isinstance(connection, Connection)
            result = await connection.transact(own_envelope, CONTENT)
            assert not result.connection_lost
            await remote.drop_connections()
            await wait_until(lambda connection=connection: not connection.usable)  # type: ignore[misc]
            assert not pool.release(connection, result)
        async with asyncio.timeout(5):
            together = await asyncio.gather(*(acquire(pool, route) for _ in range(6)))
        assert all(isinstance(connection, Connection) for connection in together)
        await pool.close()


async def test_connection_that_breaks_while_it_is_assigned_is_replaced() -> None:
    pool = new_pool(max_connections_per_site=1)
    envelope = delivery(relay(1)).message.envelope
    async with ScriptedRemote() as remote, asyncio.timeout(5):
        first = await acquire(pool, relay(remote.port))
        assert isinstance(first, Connection)
        waiting = asyncio.create_task(acquire(pool, relay(remote.port)))
        result = await first.transact(envelope, CONTENT)
        assert not pool.release(first, result)
        first.abort("lost")  # before the waiting task runs again
        second = await waiting
        assert isinstance(second, Connection)
        assert second.usable
        assert second is not first
        await pool.close()


async def test_cancelled_waiter_passes_its_connection_on() -> None:
    async with ScriptedRemote() as remote, courier(max_connections_per_site=1) as smtp:
        attempts = [asyncio.create_task(smtp.deliver(delivery(relay(remote.port)), CONTENT)) for _ in range(40)]
        await remote.wait_messages(3)
        for task in attempts[5::2]:
            task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*attempts, return_exceptions=True), 10)
        assert all(
            isinstance(result, asyncio.CancelledError) or outcome_names(result) == ["Delivered"] for result in results
        )  # type: ignore[arg-type]


async def test_close_does_not_wait_for_an_unresponsive_server() -> None:
    pool = new_pool()
    async with ScriptedRemote({"QUIT": [Stall()]}) as remote:
        await SmtpCourier(pool).deliver(delivery(relay(remote.port)), CONTENT)
        await asyncio.wait_for(pool.close(), 5)
        await remote.wait_command("QUIT")


async def test_sites_without_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_window, "WINDOWS_MAX", 10)
    pool = new_pool()
    unreachable = relay(free_port())
    for route in (*(relay(free_port()) for _ in range(20)), unreachable):
        assert isinstance(await acquire(pool, route), Reply)
    assert len(pool._assignment._windows._windows) == 10
    refusal = await acquire(pool, unreachable)
    assert isinstance(refusal, Reply)
    assert "Not tried" in refusal.text
    assert pool._assignment.peers == {}
    await pool.close()


async def test_another_tls_policy_never_shares_a_connection() -> None:
    """Also when the site's only connection has the other key: it is closed to make room."""
    pool = new_pool(max_connections_per_site=1)
    envelope = delivery(relay(1)).message.envelope
    async with ScriptedRemote() as remote:
        route = relay(remote.port)
        plain = pool.key(route)
        other = replace(plain, tls=TlsPolicy.OPPORTUNISTIC)
        used: dict[PeerKey, set[Connection]] = {plain: set(), other: set()}

        async def deliver(key: PeerKey) -> None:
            connection = await pool.acquire(key, route, Walk(0.0))
            assert isinstance(connection, Connection)
            assert connection.key == key
            used[key].add(connection)
            assert remote.open_connections <= 1
            assert not pool.release(connection, await connection.transact(envelope, CONTENT))

        async with asyncio.timeout(5):
            for key in (plain, plain, other, other, plain):
                await deliver(key)
            await asyncio.gather(*(deliver(key) for key in (plain, other) * 30))
        assert not used[plain] & used[other]
        assert len(used[plain]) < 30
        assert len(remote.messages) == 65
        await pool.close()


async def acquire(pool: Pool, route: ToRelay | ToMx) -> Connection | Reply:
    return await pool.acquire(pool.key(route), route, Walk(0.0))
