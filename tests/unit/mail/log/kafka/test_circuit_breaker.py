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

from mail.log.kafka.circuit_breaker import CircuitBreaker
from tests.support.servers.ports import wait_until

HANGS, WELL = "hangs.test:9092", "well.test:9092"


@dataclass
class Brokers:
    """Probe that answers as configured, and counts calls."""

    answer: dict[str, bool] = field(default_factory=lambda: {HANGS: False, WELL: True})
    probed: list[str] = field(default_factory=list)

    async def probe(self, host: str, port: int) -> None:
        self.probed.append(f"{host}:{port}")
        if not self.answer[f"{host}:{port}"]:
            raise KafkaConnectionError("hangs")


class Client:
    """The part of an AIOKafkaClient that `install` uses."""

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
    """Simulate a request to this broker that timed out."""
    host = address.partition(":")[0]
    client._on_connection_closed(SimpleNamespace(host=host, port=9092), CloseReason.CONNECTION_TIMEOUT)


def two(circuit_breaker: CircuitBreaker) -> tuple[Client, Client]:
    clients = Client(HANGS, WELL), Client(HANGS, WELL)
    for client in clients:
        circuit_breaker.install(client)
    return clients


async def test_a_time_out_of_one_client_opens_the_circuit_for_all() -> None:
    brokers = Brokers()
    circuit_breaker = CircuitBreaker(brokers.probe)
    one, other = two(circuit_breaker)
    close_late(one, HANGS)
    assert await other._get_conn(0) is None
    assert other.connected == []
    assert other.refreshed == 1  # its metadata is refreshed
    assert await other._get_conn(1) is not None
    assert circuit_breaker.available([HANGS, WELL]) == [WELL]
    assert circuit_breaker.available([HANGS]) == [HANGS]


async def test_a_connect_time_out_opens_the_circuit() -> None:
    circuit_breaker = CircuitBreaker(Brokers().probe)
    one, other = two(circuit_breaker)
    one.late = True
    assert await one._get_conn(0) is None
    assert await other._get_conn(0) is None
    assert other.connected == []


async def test_a_broker_that_answers_the_probe_stays_available() -> None:
    brokers = Brokers({HANGS: True, WELL: True})
    one, other = two(CircuitBreaker(brokers.probe))
    close_late(one, HANGS)
    assert await other._get_conn(0) is not None
    assert brokers.probed == [HANGS]


async def test_a_refused_connection_causes_no_probe() -> None:
    brokers = Brokers()
    one, _ = two(CircuitBreaker(brokers.probe))
    one._on_connection_closed(SimpleNamespace(host="hangs.test", port=9092), CloseReason.CONNECTION_BROKEN)
    assert await one._get_conn(0) is not None
    assert brokers.probed == []


async def test_the_circuit_closes_when_the_broker_answers_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_an_open_circuit_is_probed_at_most_once_per_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mail.log.kafka.circuit_breaker._REPROBE_SECONDS", 3600.0)
    brokers = Brokers()
    one, other = two(CircuitBreaker(brokers.probe))
    close_late(one, HANGS)
    for client in (one, other) * 50:
        assert await client._get_conn(0) is None
    assert brokers.probed == [HANGS]


async def test_the_only_broker_is_never_suspected() -> None:
    brokers = Brokers()
    only = Client(HANGS)
    CircuitBreaker(brokers.probe).install(only)
    close_late(only, HANGS)
    assert await only._get_conn(0) is not None
    assert brokers.probed == []


async def test_all_brokers_are_tried_when_all_circuits_are_open() -> None:
    """The brokers may only be overloaded: skipping all of them would lose what they still serve."""
    brokers = Brokers({HANGS: False, WELL: False})
    one, other = two(CircuitBreaker(brokers.probe))
    close_late(one, HANGS)
    assert await other._get_conn(0) is None
    close_late(one, WELL)
    assert await other._get_conn(1) is not None
    assert await other._get_conn(0) is not None


async def test_a_connection_with_a_later_response_stays_in_use() -> None:
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
async def test_a_slow_round_over_all_brokers_probes_all(call: str) -> None:
    """aiokafka does not report which broker timed out."""
    brokers = Brokers()
    one, other = two(CircuitBreaker(brokers.probe))
    one.late = True
    await getattr(one, call)()
    assert await other._get_conn(0) is None
    assert await other._get_conn(1) is not None
    assert sorted(brokers.probed) == [HANGS, WELL]


async def test_a_bootstrap_address_is_probed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mail.log.kafka.circuit_breaker._REPROBE_SECONDS", 0.0)
    brokers = Brokers({"alias.test:9092": False})
    circuit_breaker = CircuitBreaker(brokers.probe)
    await circuit_breaker.suspect("alias.test", 9092)
    addresses = ["alias.test:9092", WELL]
    assert circuit_breaker.available(addresses) == [WELL]
    brokers.answer["alias.test:9092"] = True
    await wait_until(lambda: circuit_breaker.available(addresses) == addresses, what="the broker to answer again")


async def test_an_unknown_error_of_the_probe_opens_the_circuit() -> None:
    async def probe(host: str, port: int) -> None:
        raise KeyError("a broken authentication")

    circuit_breaker = CircuitBreaker(probe)
    assert not await circuit_breaker.suspect("hangs.test", 9092)
    await circuit_breaker.close()
