"""Connections of clients outside relay networks: their share, and the stress mode when they use it up."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from ingress.limits import ConnectionLimiter
from tests.support.clock import Clock
from tests.support.docs.metrics import value
from tests.support.servers.ingress import RunningIngress, SmtpClient, running_ingress
from tests.support.servers.ports import wait_until

TIMED_OUT = "421 4.4.2 Timed out"
NETWORKS = ["127.0.0.1/32"]  # 127.0.0.2 and above are outsiders


async def outsider(server: RunningIngress, number: int = 1) -> SmtpClient:
    return await server.connect(from_ip=f"127.0.1.{number}")


async def outsiders(server: RunningIngress, count: int) -> list[SmtpClient]:
    clients = [await outsider(server, number) for number in range(1, count + 1)]
    assert [(await client.read_reply())[:4] for client in clients] == ["220 "] * count
    return clients


def test_reserved_connections_are_for_exempt_clients_only() -> None:
    limiter = ConnectionLimiter(limit=10, limit_per_client=100, reserved=2)
    assert [limiter.acquire(f"192.0.2.{number}", exempt=False) for number in range(9)] == [True] * 8 + [False]
    assert [limiter.acquire("127.0.0.1", exempt=True) for _ in range(3)] == [True, True, False]
    limiter.release("127.0.0.1", exempt=True)
    assert not limiter.acquire("192.0.2.9", exempt=False)


def test_exempt_clients_may_have_all_connections() -> None:
    limiter = ConnectionLimiter(limit=3, limit_per_client=1, reserved=1)
    assert [limiter.acquire("127.0.0.1", exempt=True) for _ in range(4)] == [True, True, True, False]
    assert not limiter.is_under_stress


def test_stress_begins_at_nine_tenths_and_ends_below_half() -> None:
    limiter = ConnectionLimiter(limit=25, limit_per_client=100, reserved=5)
    states = []
    for _ in range(18):
        limiter.acquire("192.0.2.1", exempt=False)
        states.append(limiter.is_under_stress)
    assert states == [False] * 17 + [True]
    for _ in range(9):
        limiter.release("192.0.2.1")
        states.append(limiter.is_under_stress)
    assert states[18:] == [True] * 8 + [False]


async def test_outsiders_cannot_use_the_connections_of_relay_networks() -> None:
    async with running_ingress(max_connections=10, relay_networks=NETWORKS) as server:
        await outsiders(server, 8)
        assert (await (await outsider(server, 9)).read_reply()).startswith("421 4.7.0 Too many connections")
        relay_client = await server.connect()
        await relay_client.start_data()
        assert (await relay_client.command(".")).startswith("250")


@pytest.mark.parametrize("in_data", [False, True])
async def test_stress_shortens_the_time_out_of_outsiders_also_of_those_before(
    in_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    async with running_ingress(max_connections=10, relay_networks=NETWORKS) as server:
        relay_client = await server.connect()
        assert (await relay_client.read_reply()).startswith("220")
        early = await outsider(server)
        if in_data:
            await early.start_data("someone@good.test")
            early.send(b"half")
            await wait_until(lambda: server.in_flight_bytes == 4)
        else:
            await early.read_reply()
        with capture_logs() as lines:
            others = await outsiders(server, 7)
            assert value("smtp_stress") == 1
            clock.advance(11)
            for client in (early, *others):
                assert await client.read_reply() == TIMED_OUT
            await wait_until(lambda: value("smtp_stress") == 0)
        events = [line["event"] for line in lines if "stress" in line["event"]]
        assert events == [
            "under stress, shorter time-outs for clients outside relay networks",
            "no longer under stress",
        ]
        assert await relay_client.command("NOOP") == "250 2.0.0 Ok"  # it still has the usual time-out
        clock.advance(200)
        late = await outsider(server)
        assert (await late.read_reply()).startswith("220")
        clock.advance(200)  # the usual time-out again
        assert await late.command("NOOP") == "250 2.0.0 Ok"


async def test_slow_data_of_outsiders_ends_under_stress(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with running_ingress(max_connections=1, relay_networks=NETWORKS) as server:
        slow = await outsider(server)
        await slow.start_data("someone@good.test")
        for number in range(1, 6):
            clock.advance(9)
            slow.send(b"x")
            await wait_until(lambda number=number: server.in_flight_bytes == number)
        clock.advance(6)  # five times the time-out, but less than one since the last part
        assert await slow.read_reply() == TIMED_OUT


async def test_stress_lowers_the_error_limit_of_outsiders() -> None:
    async with running_ingress(max_connections=5, relay_networks=NETWORKS) as server:
        relay_client = await server.connect()
        await relay_client.read_reply()
        held = await outsiders(server, 4)
        assert (await held[0].command("EHLO x")).startswith("250")
        assert (await held[0].command("NOOP")).startswith("250")
        assert (await held[0].command("BOGUS")).startswith("500 ")
        assert (await held[0].read_reply()).startswith("421 4.7.0 Too many errors")
        for _ in range(3):
            assert (await relay_client.command("BOGUS")).startswith("500 ")
        assert (await relay_client.command("NOOP")).startswith("250")
