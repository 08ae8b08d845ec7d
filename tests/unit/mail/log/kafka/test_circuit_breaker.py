"""Circuit breaker: a time-out of one client keeps all clients of the process from waiting for the same broker."""

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

from mail.log.kafka.aiokafka_compat.circuits import install_circuit_breaker
from mail.log.kafka.circuit_breaker import CircuitBreaker
from tests.support.kafka_timeouts import set_timeouts
from tests.support.servers.ports import wait_until

HUNG, LIVE = "hung.test:9092", "live.test:9092"


@dataclass
class Brokers:
    """Brokers that answer a new connection as configured."""

    answer: dict[str, bool] = field(default_factory=lambda: {HUNG: False, LIVE: True})
    connections: list[str] = field(default_factory=list)

    async def connect(self, host: str, port: int) -> None:
        self.connections.append(f"{host}:{port}")
        if not self.answer[f"{host}:{port}"]:
            raise KafkaConnectionError("hung")


class Client:
    """The part of an AIOKafkaClient that `install_circuit_breaker` uses. aiokafka's own code calls the private methods;
    here the public ones at the end do.
    """

    def __init__(self, *addresses: str) -> None:
        brokers = {n: SimpleNamespace(host=a.partition(":")[0], port=9092) for n, a in enumerate(addresses)}
        self.cluster = SimpleNamespace(broker_metadata=brokers.get, brokers=lambda: list(brokers.values()))
        self._request_timeout_ms = 100
        self._conns: dict[tuple[int, ConnectionGroup], SimpleNamespace] = {}
        self.connected: list[int] = []
        self.refreshed = 0
        self.is_hung = False

    async def _get_conn(self, node_id: int, **_: Any) -> object | None:
        self.connected.append(node_id)
        if self.is_hung:
            await asyncio.sleep(0.1)
            return None
        return object()

    @property
    def hosts(self) -> list[tuple[str, int, int]]:
        return [(broker.host, broker.port, 0) for broker in self.cluster.brokers()]

    async def bootstrap(self) -> None:
        if self.is_hung:
            await asyncio.sleep(0.1)

    async def _metadata_update(self, *_: Any) -> bool:
        if self.is_hung:
            await asyncio.sleep(0.1)
        return True

    def _on_connection_closed(self, connection: Any, reason: CloseReason | None) -> None:
        self.refreshed += 1

    def force_metadata_update(self) -> None:
        self.refreshed += 1

    async def connects(self, node_id: int) -> bool:
        """Whether a request to this broker gets a connection."""
        return await self._get_conn(node_id) is not None

    async def update_metadata(self) -> None:
        await self._metadata_update()

    def time_out(self, address: str) -> None:
        """Simulate a request to this broker that timed out."""
        self.lose_connection(address, CloseReason.CONNECTION_TIMEOUT)

    def lose_connection(self, address: str, reason: CloseReason) -> None:
        host = address.partition(":")[0]
        self._on_connection_closed(SimpleNamespace(host=host, port=9092), reason)

    def set_last_response(self, node_id: int, monotonic_seconds: float) -> None:
        """An open connection to this broker, and when it answered on it."""
        connection = SimpleNamespace(connected=lambda: True, _last_action=monotonic_seconds)
        self._conns[node_id, ConnectionGroup.DEFAULT] = connection


def install_in_two(circuit_breaker: CircuitBreaker) -> tuple[Client, Client]:
    clients = Client(HUNG, LIVE), Client(HUNG, LIVE)
    for client in clients:
        install_circuit_breaker(client, circuit_breaker)
    return clients


async def test_a_time_out_of_one_client_opens_the_circuit_for_all() -> None:
    brokers = Brokers()
    circuit_breaker = CircuitBreaker(brokers.connect)
    first, second = install_in_two(circuit_breaker)
    first.time_out(HUNG)
    assert not await second.connects(0)
    assert second.connected == []
    assert second.refreshed == 1  # its metadata is refreshed
    assert await second.connects(1)
    assert circuit_breaker.available([HUNG, LIVE]) == [LIVE]
    assert circuit_breaker.available([HUNG]) == [HUNG]


async def test_a_connect_time_out_opens_the_circuit() -> None:
    circuit_breaker = CircuitBreaker(Brokers().connect)
    first, second = install_in_two(circuit_breaker)
    first.is_hung = True
    assert not await first.connects(0)
    assert not await second.connects(0)
    assert second.connected == []


async def test_a_broker_that_passes_the_check_stays_available() -> None:
    brokers = Brokers({HUNG: True, LIVE: True})
    first, second = install_in_two(CircuitBreaker(brokers.connect))
    first.time_out(HUNG)
    assert await second.connects(0)
    assert brokers.connections == [HUNG]


async def test_a_refused_connection_causes_no_check() -> None:
    brokers = Brokers()
    first, _ = install_in_two(CircuitBreaker(brokers.connect))
    first.lose_connection(HUNG, CloseReason.CONNECTION_BROKEN)
    assert await first.connects(0)
    assert brokers.connections == []


async def test_the_circuit_closes_when_the_broker_passes_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, retry_seconds=0.0)
    brokers = Brokers()
    first, _ = install_in_two(CircuitBreaker(brokers.connect))
    first.time_out(HUNG)
    assert not await first.connects(0)
    assert not await first.connects(0)
    brokers.answer[HUNG] = True

    await wait_until(lambda: first.connects(0), poll_seconds=0.0, what="the circuit to close")
    assert set(brokers.connections) == {HUNG}


async def test_an_open_circuit_is_checked_at_most_once_per_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, retry_seconds=3600.0)
    brokers = Brokers()
    first, second = install_in_two(CircuitBreaker(brokers.connect))
    first.time_out(HUNG)
    for client in (first, second) * 50:
        assert not await client.connects(0)
    assert brokers.connections == [HUNG]


async def test_the_only_broker_is_never_checked() -> None:
    brokers = Brokers()
    only = Client(HUNG)
    install_circuit_breaker(only, CircuitBreaker(brokers.connect))
    only.time_out(HUNG)
    assert await only.connects(0)
    assert brokers.connections == []


async def test_all_brokers_are_tried_when_all_circuits_are_open() -> None:
    """The brokers may only be overloaded: skipping all of them would lose what they still serve."""
    brokers = Brokers({HUNG: False, LIVE: False})
    first, second = install_in_two(CircuitBreaker(brokers.connect))
    first.time_out(HUNG)
    assert not await second.connects(0)
    first.time_out(LIVE)
    assert await second.connects(1)
    assert await second.connects(0)


async def test_a_connection_with_a_later_response_stays_in_use() -> None:
    brokers = Brokers()
    first, second = install_in_two(CircuitBreaker(brokers.connect))
    first.time_out(HUNG)
    assert not await second.connects(0)
    second.set_last_response(0, time.monotonic() - 3600)
    assert not await second.connects(0)
    second.set_last_response(0, time.monotonic() + 1)
    assert await second.connects(0)


@pytest.mark.parametrize("call", ["bootstrap", "update_metadata"])
async def test_a_time_out_of_a_round_over_all_brokers_checks_all(call: str) -> None:
    """aiokafka does not report which broker timed out."""
    brokers = Brokers()
    first, second = install_in_two(CircuitBreaker(brokers.connect))
    first.is_hung = True
    await getattr(first, call)()
    assert not await second.connects(0)
    assert await second.connects(1)
    assert sorted(brokers.connections) == [HUNG, LIVE]


async def test_a_bootstrap_address_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, retry_seconds=0.0)
    brokers = Brokers({"alias.test:9092": False})
    circuit_breaker = CircuitBreaker(brokers.connect)
    await circuit_breaker.check("alias.test", 9092)
    addresses = ["alias.test:9092", LIVE]
    assert circuit_breaker.available(addresses) == [LIVE]
    brokers.answer["alias.test:9092"] = True
    await wait_until(lambda: circuit_breaker.available(addresses) == addresses, what="the broker to answer again")


async def test_an_unknown_error_of_the_check_opens_the_circuit() -> None:
    async def connect(host: str, port: int) -> None:
        raise KeyError("a broken authentication")

    circuit_breaker = CircuitBreaker(connect)
    assert not await circuit_breaker.check("hung.test", 9092)
    await circuit_breaker.close()


async def test_a_slow_connection_of_the_past_does_not_prolong_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, check_seconds=0.01, check_max_seconds=60.0)

    async def hang(_host: str, _port: int) -> None:
        await asyncio.Event().wait()

    breaker = CircuitBreaker(hang)
    breaker.record_connect(20.0)
    for _ in range(200):
        breaker.record_connect(0.0001)
    async with asyncio.timeout(10):
        assert not await breaker.check("hung.test", 9092)
