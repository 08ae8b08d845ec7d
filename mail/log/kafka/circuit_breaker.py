"""Per-process circuit breaker for unresponsive brokers.

A broker that hangs or lost power closes no connection, and until the cluster removes it, every aiokafka client sends it
metadata and coordinator requests that end in time-outs. After a time-out the broker is *suspected* and probed on a new
connection; a leader that only waits for its followers passes the probe. If the probe fails, the circuit *opens*:
clients do not connect to the broker (aiokafka then tries another one) and it is probed again on demand, but a
connection on which it has answered since stays in use, and with all circuits open all brokers are tried.
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

logger = structlog.get_logger()

_PROBE_SECONDS = 1.5  # or longer, where connecting is usually slow
_PROBE_SECONDS_MAX = 5.0
_CONNECT_TIME_FACTOR = 4
_REPROBE_SECONDS = 1.0  # between two probes of a broker whose circuit is open
_LATE_SHARE = 0.9  # share of the request time-out after which a call without a result counts as a time-out

Address = tuple[str, int]
ProbeBroker = Callable[[str, int], Awaitable[None]]


class CircuitBreaker:
    """Circuits of one process, whose clients share one event loop. `probe` returns when a broker has answered on a new
    connection.
    """

    def __init__(self, probe: ProbeBroker) -> None:
        self._probe = probe
        self._suspected_at: dict[Address, float] = {}  # until the broker answers a probe
        self._opened_at: dict[Address, float] = {}  # brokers whose circuit is open
        self._probes: dict[Address, asyncio.Task[bool]] = {}
        self._longest_connect_seconds = 0.0  # longest time to establish a connection

    def available(self, addresses: Sequence[str]) -> list[str]:
        """Those of `addresses` ("HOST:PORT") whose circuit is closed; all when none is. Open ones are probed again."""
        answering = [address for address in addresses if not self._is_open(endpoint.parse(address))]
        return answering or list(addresses)

    def suspect(self, host: str, port: int) -> asyncio.Task[bool]:
        """Probe a broker after a time-out; the task returns whether it answered."""
        address = host, port
        if address not in self._probes:
            self._suspected_at.setdefault(address, time.monotonic())
            self._probes[address] = asyncio.create_task(
                self._probe_broker(address), name=f"probe {endpoint.format(*address)}"
            )
        return self._probes[address]

    async def is_available(self, host: str, port: int) -> bool:
        """Whether the circuit is closed; waits only for the first probe."""
        address = host, port
        if self._is_open(address):
            return False
        return address not in self._probes or await asyncio.shield(self._probes[address])

    def _is_open(self, address: Address) -> bool:
        if address not in self._opened_at:
            return False
        if time.monotonic() - self._opened_at[address] >= _REPROBE_SECONDS:
            self.suspect(*address)
        return True

    async def _probe_broker(self, address: Address) -> bool:
        name = endpoint.format(*address)
        try:
            longest = _CONNECT_TIME_FACTOR * self._longest_connect_seconds
            async with asyncio.timeout(min(_PROBE_SECONDS_MAX, max(_PROBE_SECONDS, longest))):
                await self._probe(*address)
        except Exception as error:  # an exception would end the aiokafka task that waits for the probe
            if address not in self._opened_at:
                logger.warning("broker does not respond, circuit opened", broker=name, error=type(error).__name__)
            self._opened_at[address] = time.monotonic()
            return False
        else:
            self._suspected_at.pop(address, None)
            if self._opened_at.pop(address, None) is not None:
                logger.info("broker responds again, circuit closed", broker=name)
            return True
        finally:
            del self._probes[address]

    async def close(self) -> None:
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

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
            began = time.monotonic()
            connection = await connect(node_id, group=group, **options)
            elapsed = time.monotonic() - began
            if connection is not None:
                self._longest_connect_seconds = max(self._longest_connect_seconds, elapsed)
            elif broker is not None and _is_late(client, elapsed):
                self._suspect_all([(broker.host, broker.port)], _addresses(client))
            return connection

        def on_connection_closed(connection: Any, reason: CloseReason | None) -> None:
            if reason is CloseReason.CONNECTION_TIMEOUT:
                self._suspect_all([(connection.host, connection.port)], _addresses(client))
            closed(connection, reason)

        client._get_conn, client._on_connection_closed = connect_unless_open, on_connection_closed
        # In these calls aiokafka tries one broker after another and does not report which one timed out.
        client._metadata_update = self._timed(client, client._metadata_update, lambda: _addresses(client))
        client.bootstrap = self._timed(
            client, client.bootstrap, lambda: [(host, port) for host, port, _ in client.hosts]
        )

    def _has_answered(self, client: Any, connection_id: Any, broker: Any) -> bool:
        """Whether the broker is not suspected, or answered on this connection since."""
        since = self._suspected_at.get((broker.host, broker.port))
        connection = client._conns.get(connection_id)
        return since is None or (connection is not None and connection.connected() and connection._last_action > since)

    def _all_open(self, addresses: Collection[Address]) -> bool:
        return all(address in self._opened_at for address in addresses)

    def _suspect_all(self, late: Collection[Address], known: Collection[Address]) -> None:
        if len(known) > 1:  # otherwise there is no other broker to use
            for address in late:
                self.suspect(*address)

    def _timed(
        self, client: Any, call: Callable[..., Awaitable[Any]], asked: Callable[[], Collection[Address]]
    ) -> Callable[..., Awaitable[Any]]:
        async def timed(*arguments: Any) -> Any:
            began = time.monotonic()
            try:
                return await call(*arguments)
            finally:
                if _is_late(client, time.monotonic() - began):
                    self._suspect_all(asked(), asked())

        return timed


def _addresses(client: Any) -> list[Address]:
    return [(broker.host, broker.port) for broker in client.cluster.brokers()]


def _is_late(client: Any, seconds: float) -> bool:
    return seconds > _LATE_SHARE * float(client._request_timeout_ms) / 1000
