"""Connection of an AIOKafkaClient to the circuit breaker of its process."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason

from mail.log.kafka.circuit_breaker import Address, CircuitBreaker

_TIMEOUT_SHARE = 0.9  # share of the request time-out after which a call without a result counts as a time-out


def install_circuit_breaker(client: Any, circuit_breaker: CircuitBreaker) -> None:
    """Report time-outs and connect only to brokers whose circuit is not open; before the client starts.
    Upstream: aiokafka issue 187 (closed) fixed it for brokers that the metadata no longer lists, and none was found for
    one that hangs. Remove when a client prefers brokers that answer.
    """
    connect, closed = client._get_conn, client._on_connection_closed

    async def connect_unless_open(node_id: Any, *, group: Any = ConnectionGroup.DEFAULT, **options: Any) -> Any:
        broker = client.cluster.broker_metadata(node_id)
        if broker is None:
            return await connect(node_id, group=group, **options)
        address = broker.host, broker.port
        answered_at = _answered_at(client, (node_id, group))
        if not await circuit_breaker.may_connect(address, answered_at, _addresses(client)):
            client.force_metadata_update()  # as aiokafka does when a connection fails
            return None
        start = time.monotonic()
        connection = await connect(node_id, group=group, **options)
        seconds = time.monotonic() - start
        if connection is not None:
            circuit_breaker.record_connect(seconds)
        elif _is_timeout(client, seconds):
            circuit_breaker.check_all([address], _addresses(client))
        return connection

    def on_connection_closed(connection: Any, reason: CloseReason | None) -> None:
        if reason is CloseReason.CONNECTION_TIMEOUT:
            circuit_breaker.check_all([(connection.host, connection.port)], _addresses(client))
        closed(connection, reason)

    def timed(
        call: Callable[..., Awaitable[Any]], brokers: Callable[[], list[Address]]
    ) -> Callable[..., Awaitable[Any]]:
        """For calls in which aiokafka tries one broker after another and does not report which one timed out."""

        async def timed_call(*arguments: Any) -> Any:
            start = time.monotonic()
            try:
                return await call(*arguments)
            finally:
                if _is_timeout(client, time.monotonic() - start):
                    circuit_breaker.check_all(brokers(), brokers())

        return timed_call

    client._get_conn, client._on_connection_closed = connect_unless_open, on_connection_closed
    client._metadata_update = timed(client._metadata_update, lambda: _addresses(client))
    client.bootstrap = timed(client.bootstrap, lambda: [(host, port) for host, port, _ in client.hosts])


def _answered_at(client: Any, connection_id: Any) -> float | None:
    """Time of the last answer on an open connection."""
    connection = client._conns.get(connection_id)
    return connection._last_action if connection is not None and connection.connected() else None


def _addresses(client: Any) -> list[Address]:
    return [(broker.host, broker.port) for broker in client.cluster.brokers()]


def _is_timeout(client: Any, seconds: float) -> bool:
    return seconds > _TIMEOUT_SHARE * float(client._request_timeout_ms) / 1000
