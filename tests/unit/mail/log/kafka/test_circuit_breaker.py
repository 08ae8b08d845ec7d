"""A broker that hangs is waited for once; what one client has learnt holds for the others of its process."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaConnectionError

from mail.log.kafka.circuit_breaker import CircuitBreaker
from tests.support.servers.ports import wait_until

HANGS, WELL = "hangs.test:9092", "well.test:9092"


@dataclass
class Brokers:
    """Greets as told, and counts."""

    answer: dict[str, bool] = field(default_factory=lambda: {HANGS: False, WELL: True})
    probed: list[str] = field(default_factory=list)

    async def probe(self, host: str, port: int) -> None:
        self.probed.append(f"{host}:{port}")
        if not self.answer[f"{host}:{port}"]:
            raise KafkaConnectionError("hangs")


class Client:
    """As much of an AIOKafkaClient as `guard` touches."""

    def __init__(self, *addresses: str) -> None:
        brokers = {n: SimpleNamespace(host=a.partition(":")[0], port=9092) for n, a in enumerate(addresses)}
        self.cluster = SimpleNamespace(broker_metadata=brokers.get, brokers=lambda: list(brokers.values()))
        self._loop = asyncio.get_running_loop()
        self._request_timeout_ms = 100
        self._conns: dict[tuple[int, ConnectionGroup], SimpleNamespace] = {}
        self.connected: list[int] = []
        self.refreshed = 0
        self.late = False

    async def _get_conn(self, node_id: int, **_: Any) -> object | None:
        self.connected.append(node_id)
        if self.late:
            await asyncio.sleep(0.1)
            return None
        return object()

    @property
    def hosts(self) -> list[tuple[str, int, int]]:
        return [(broker.host, broker.port, 0) for broker in self.cluster.brokers()]

    async def bootstrap(self) -> None:
        if self.late:
            await asyncio.sleep(0.1)

    async def _metadata_update(self, *_: Any) -> bool:
        if self.late:
            await asyncio.sleep(0.1)
        return True

    def _on_connection_closed(self, connection: Any, reason: CloseReason | None) -> None:
        self.refreshed += 1

    def force_metadata_update(self) -> None:
        self.refreshed += 1


def close_late(client: Client, address: str) -> None:
    """A request to this broker has timed out."""
    host = address.partition(":")[0]
    client._on_connection_closed(SimpleNamespace(host=host, port=9092), CloseReason.CONNECTION_TIMEOUT)


def two(circuit_breaker: CircuitBreaker) -> tuple[Client, Client]:
    clients = Client(HANGS, WELL), Client(HANGS, WELL)
    for client in clients:
        circuit_breaker.install(client)
    return clients


async def test_what_one_client_waited_for_no_other_waits_for() -> None:
    brokers = Brokers()
    circuit_breaker = CircuitBreaker(brokers.probe)
    one, other = two(circuit_breaker)
    close_late(one, HANGS)
    assert await other._get_conn(0) is None
    assert other.connected == []
    assert other.refreshed == 1  # who leads now?
    assert await other._get_conn(1) is not None
    assert circuit_breaker.available([HANGS, WELL]) == [WELL]
    assert circuit_breaker.available([HANGS]) == [HANGS]


async def test_a_connection_that_does_not_come_about_in_time_is_learnt_from_too() -> None:
    circuit_breaker = CircuitBreaker(Brokers().probe)
    one, other = two(circuit_breaker)
    one.late = True
    assert await one._get_conn(0) is None
    assert await other._get_conn(0) is None
    assert other.connected == []


async def test_a_leader_that_only_waits_for_its_followers_answers_a_greeting() -> None:
    brokers = Brokers({HANGS: True, WELL: True})
    one, other = two(CircuitBreaker(brokers.probe))
    close_late(one, HANGS)
    assert await other._get_conn(0) is not None
    assert brokers.probed == [HANGS]


async def test_who_was_refused_in_time_suspects_nobody() -> None:
    brokers = Brokers()
    one, _ = two(CircuitBreaker(brokers.probe))
    one._on_connection_closed(SimpleNamespace(host="hangs.test", port=9092), CloseReason.CONNECTION_BROKEN)
    assert await one._get_conn(0) is not None
    assert brokers.probed == []


async def test_one_that_answers_again_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mail.log.kafka.circuit_breaker._REPROBE_SECONDS", 0.0)
    brokers = Brokers()
    one, _ = two(CircuitBreaker(brokers.probe))
    close_late(one, HANGS)
    assert await one._get_conn(0) is None
    assert await one._get_conn(0) is None
    brokers.answer[HANGS] = True

    async def is_used() -> bool:
        return await one._get_conn(0) is not None

    for _ in range(100):
        if await is_used():
            break
        await asyncio.sleep(0)
    assert await is_used()
    assert set(brokers.probed) == {HANGS}


async def test_a_silent_one_is_not_greeted_by_everybody_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mail.log.kafka.circuit_breaker._REPROBE_SECONDS", 3600.0)
    brokers = Brokers()
    one, other = two(CircuitBreaker(brokers.probe))
    close_late(one, HANGS)
    for client in (one, other) * 50:
        assert await client._get_conn(0) is None
    assert brokers.probed == [HANGS]


async def test_the_only_broker_is_not_suspected() -> None:
    brokers = Brokers()
    only = Client(HANGS)
    CircuitBreaker(brokers.probe).install(only)
    close_late(only, HANGS)
    assert await only._get_conn(0) is not None
    assert brokers.probed == []


async def test_where_all_are_silent_all_are_asked() -> None:
    """Overloaded, perhaps: whoever went round all of them would ask nobody, and lose what they still serve."""
    brokers = Brokers({HANGS: False, WELL: False})
    one, other = two(CircuitBreaker(brokers.probe))
    close_late(one, HANGS)
    assert await other._get_conn(0) is None
    close_late(one, WELL)
    assert await other._get_conn(1) is not None
    assert await other._get_conn(0) is not None


async def test_a_connection_on_which_it_has_answered_since_is_used() -> None:
    brokers = Brokers()
    one, other = two(CircuitBreaker(brokers.probe))
    close_late(one, HANGS)
    assert await other._get_conn(0) is None
    held = SimpleNamespace(connected=lambda: True, _last_action=time.monotonic() - 3600)
    other._conns[0, ConnectionGroup.DEFAULT] = held
    assert await other._get_conn(0) is None
    held._last_action = time.monotonic() + 1
    assert await other._get_conn(0) is not None


@pytest.mark.parametrize("call", ["bootstrap", "_metadata_update"])
async def test_a_round_of_questions_that_took_a_time_out_has_all_greeted(call: str) -> None:
    """aiokafka does not say which of them let it wait."""
    brokers = Brokers()
    one, other = two(CircuitBreaker(brokers.probe))
    one.late = True
    await getattr(one, call)()
    assert await other._get_conn(0) is None
    assert await other._get_conn(1) is not None
    assert sorted(brokers.probed) == [HANGS, WELL]


async def test_an_address_that_only_log_url_has_is_greeted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mail.log.kafka.circuit_breaker._REPROBE_SECONDS", 0.0)
    brokers = Brokers({"alias.test:9092": False})
    circuit_breaker = CircuitBreaker(brokers.probe)
    await circuit_breaker.suspect("alias.test", 9092)
    addresses = ["alias.test:9092", WELL]
    assert circuit_breaker.available(addresses) == [WELL]
    brokers.answer["alias.test:9092"] = True
    await wait_until(lambda: circuit_breaker.available(addresses) == addresses, what="it answers again")


async def test_an_error_nobody_knows_is_no_answer() -> None:
    async def greet(host: str, port: int) -> None:
        raise KeyError("a broken log-in")

    circuit_breaker = CircuitBreaker(greet)
    assert not await circuit_breaker.suspect("hangs.test", 9092)
    await circuit_breaker.close()
