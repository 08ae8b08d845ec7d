"""Per-process circuit breaker for unresponsive brokers; `producer`, `transactional_producer`,
`partition_reader` and `liveness` handle the effect of one on mail.

A broker that hangs or lost power closes no connection, and until the cluster removes it, every aiokafka client sends it
metadata and coordinator requests that end in time-outs. After a time-out the broker is checked on a new connection,
which succeeds for a leader that only waits for its followers. If the check fails, the circuit *opens*: clients do not
connect to the broker (aiokafka then tries another one) and it is checked again on demand, but a connection on which it
has answered since stays in use, and with all circuits open all brokers are tried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import structlog
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason

from mail import endpoint
from mail.log.kafka.error_messages import error_message

logger = structlog.get_logger()

_CHECK_SECONDS = 1.5  # or longer, where connecting is usually slow
_CHECK_SECONDS_MAX = 5.0
_CONNECT_TIME_FACTOR = 4
_RECHECK_SECONDS = 1.0  # between two checks of a broker whose circuit is open
_TIMEOUT_SHARE = 0.9  # share of the request time-out after which a call without a result counts as a time-out

Address = tuple[str, int]
Connect = Callable[[str, int], Awaitable[None]]


class CircuitBreaker:
    """Circuits of one process, whose clients share one event loop. `connect` returns when a broker has answered on a
    new connection.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._timed_out_at: dict[Address, float] = {}  # until the broker passes a check
        self._opened_at: dict[Address, float] = {}  # brokers whose circuit is open
        self._checks: dict[Address, asyncio.Task[bool]] = {}
        self._longest_connect_seconds = 0.0

    def available(self, addresses: Sequence[str]) -> list[str]:
        """Those of `addresses` ("HOST:PORT") whose circuit is closed; all when none is. Open ones are checked again."""
        return [address for address in addresses if not self._is_open(endpoint.parse(address))] or list(addresses)

    def check(self, host: str, port: int) -> asyncio.Task[bool]:
        """Check a broker after a time-out; the task returns whether it answered."""
        address = host, port
        if address not in self._checks:
            self._timed_out_at.setdefault(address, time.monotonic())
            name = f"check of {endpoint.format(*address)}"
            self._checks[address] = asyncio.create_task(self._check_broker(address), name=name)
        return self._checks[address]

    async def is_available(self, host: str, port: int) -> bool:
        """Whether the circuit is closed; waits only for the first check."""
        address = host, port
        if self._is_open(address):
            return False
        return address not in self._checks or await asyncio.shield(self._checks[address])

    def _is_open(self, address: Address) -> bool:
        if address not in self._opened_at:
            return False
        if time.monotonic() - self._opened_at[address] >= _RECHECK_SECONDS:
            self.check(*address)
        return True

    async def _check_broker(self, address: Address) -> bool:
        name = endpoint.format(*address)
        try:
            usual_seconds = max(_CHECK_SECONDS, _CONNECT_TIME_FACTOR * self._longest_connect_seconds)
            async with asyncio.timeout(min(_CHECK_SECONDS_MAX, usual_seconds)):
                await self._connect(*address)
        except Exception as error:  # an exception would end the aiokafka task that waits for the check
            if address not in self._opened_at:
                event = "broker does not respond, circuit opened, other brokers are used"
                logger.warning(event, broker=name, error=error_message(error))
            self._opened_at[address] = time.monotonic()
            return False
        else:
            self._timed_out_at.pop(address, None)
            if self._opened_at.pop(address, None) is not None:
                logger.info("broker responds again, circuit closed", broker=name)
            return True
        finally:
            del self._checks[address]

    async def close(self) -> None:
        checks = list(self._checks.values())
        for task in checks:
            task.cancel()
        await asyncio.gather(*checks, return_exceptions=True)

    # --- clients

    def install(self, client: Any) -> None:
        """Connect an AIOKafkaClient to the circuit breaker."""
        connect, closed = client._get_conn, client._on_connection_closed

        async def connect_unless_open(node_id: Any, *, group: Any = ConnectionGroup.DEFAULT, **options: Any) -> Any:
            broker = client.cluster.broker_metadata(node_id)
            if not (
                broker is None
                or self._has_answered(client, (node_id, group), broker)
                or await self.is_available(broker.host, broker.port)
                or self._all_open(_addresses(client))
            ):
                client.force_metadata_update()  # as aiokafka does when a connection fails
                return None
            start = time.monotonic()
            connection = await connect(node_id, group=group, **options)
            seconds = time.monotonic() - start
            if connection is not None:
                self._longest_connect_seconds = max(self._longest_connect_seconds, seconds)
            elif broker is not None and _is_timeout(client, seconds):
                self._check_all([(broker.host, broker.port)], _addresses(client))
            return connection

        def on_connection_closed(connection: Any, reason: CloseReason | None) -> None:
            if reason is CloseReason.CONNECTION_TIMEOUT:
                self._check_all([(connection.host, connection.port)], _addresses(client))
            closed(connection, reason)

        client._get_conn, client._on_connection_closed = connect_unless_open, on_connection_closed
        # In these calls aiokafka tries one broker after another and does not report which one timed out.
        client._metadata_update = self._timed(client, client._metadata_update, lambda: _addresses(client))
        client.bootstrap = self._timed(
            client, client.bootstrap, lambda: [(host, port) for host, port, _ in client.hosts]
        )

    def _has_answered(self, client: Any, connection_id: Any, broker: Any) -> bool:
        """Whether the broker has not timed out, or has answered on this connection since."""
        timed_out_at = self._timed_out_at.get((broker.host, broker.port))
        if timed_out_at is None:
            return True
        connection = client._conns.get(connection_id)
        return connection is not None and connection.connected() and connection._last_action > timed_out_at

    def _all_open(self, addresses: Collection[Address]) -> bool:
        return all(address in self._opened_at for address in addresses)

    def _check_all(self, addresses: Collection[Address], brokers: Collection[Address]) -> None:
        """Check brokers after a time-out, if `brokers` has others to use."""
        if len(brokers) > 1:
            for address in addresses:
                self.check(*address)

    def _timed(
        self, client: Any, call: Callable[..., Awaitable[Any]], brokers: Callable[[], Collection[Address]]
    ) -> Callable[..., Awaitable[Any]]:
        async def timed(*arguments: Any) -> Any:
            start = time.monotonic()
            try:
                return await call(*arguments)
            finally:
                if _is_timeout(client, time.monotonic() - start):
                    self._check_all(brokers(), brokers())

        return timed


def _addresses(client: Any) -> list[Address]:
    return [(broker.host, broker.port) for broker in client.cluster.brokers()]


def _is_timeout(client: Any, seconds: float) -> bool:
    return seconds > _TIMEOUT_SHARE * float(client._request_timeout_ms) / 1000
