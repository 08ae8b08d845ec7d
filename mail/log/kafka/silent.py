"""Which brokers do not answer: found out once by any client of a process, and then waited for by none.

A broker that hangs, or whose machine has lost its power, closes no connection. Until the cluster counts it out, any
client may ask it who leads or coordinates now, and aiokafka does, again and again, a time-out each. So whoever waited
for a time-out makes a broker *suspect*, and a suspect is greeted on a connection of its own, which has to be quick: a
leader that only waits for its followers answers. One that does not is *silent*: no client is connected to it, which
aiokafka takes for "ask another, and then me again", and it is greeted again when somebody wants it. A connection on
which it has answered since is used all the same, and where all are silent there is nothing to go round to: they are
asked. Next: `mail/log/kafka/access.py`.
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

log = structlog.get_logger()

_GREETING_SECONDS = 1.5  # or longer, where connecting takes long as a rule
_GREETING_SECONDS_MOST = 5.0
_TIMES_AS_USUAL = 4
_AGAIN_SECONDS = 1.0  # between two greetings of one that is silent
_OF_THE_TIME = 0.9  # that a request may take, spent without a connection or an answer: something timed out

Address = tuple[str, int]
Greet = Callable[[str, int], Awaitable[None]]


class Silent:
    """Of one process, whose clients are all on one event loop. `greet` returns when a broker has answered on a new
    connection.
    """

    def __init__(self, greet: Greet) -> None:
        self._greet = greet
        self._suspected_at: dict[Address, float] = {}  # until it answers
        self._greeted_at: dict[Address, float] = {}  # those that are silent
        self._greetings: dict[Address, asyncio.Task[bool]] = {}
        self._usual_seconds = 0.0  # the longest that a connection took to be made

    def those_that_answer(self, addresses: Sequence[str]) -> list[str]:
        """Of "HOST:PORT"; all of them when none does. Those that do not are greeted again."""
        there = [address for address in addresses if not self._is_silent(endpoint.parse(address))]
        return there or list(addresses)

    def suspect(self, host: str, port: int) -> asyncio.Task[bool]:
        """It did not answer: is it there at all? The task says."""
        address = host, port
        if address not in self._greetings:
            self._suspected_at.setdefault(address, time.monotonic())
            self._greetings[address] = asyncio.create_task(
                self._ask(address), name=f"greet {endpoint.format(*address)}"
            )
        return self._greetings[address]

    async def answers(self, host: str, port: int) -> bool:
        """Known at once, unless it is being asked for the first time."""
        address = host, port
        if self._is_silent(address):
            return False
        return address not in self._greetings or await asyncio.shield(self._greetings[address])

    def _is_silent(self, address: Address) -> bool:
        if address not in self._greeted_at:
            return False
        if time.monotonic() - self._greeted_at[address] >= _AGAIN_SECONDS:
            self.suspect(*address)
        return True

    async def _ask(self, address: Address) -> bool:
        name = endpoint.format(*address)
        try:
            usual = _TIMES_AS_USUAL * self._usual_seconds
            async with asyncio.timeout(min(_GREETING_SECONDS_MOST, max(_GREETING_SECONDS, usual))):
                await self._greet(*address)
        except Exception as error:  # whatever it is, it must not end the task of aiokafka that waits for us
            if address not in self._greeted_at:
                log.warning("broker is silent, others are asked", broker=name, reason=type(error).__name__)
            self._greeted_at[address] = time.monotonic()
            return False
        else:
            self._suspected_at.pop(address, None)
            if self._greeted_at.pop(address, None) is not None:
                log.info("broker answers again", broker=name)
            return True
        finally:
            del self._greetings[address]

    async def close(self) -> None:
        greetings = list(self._greetings.values())
        for greeting in greetings:
            greeting.cancel()
        await asyncio.gather(*greetings, return_exceptions=True)

    # --- clients

    def guard(self, client: Any) -> None:
        """Let an AIOKafkaClient learn from the others, and they from it."""
        connect, closed = client._get_conn, client._on_connection_closed

        async def connect_unless_silent(node_id: Any, *, group: Any = ConnectionGroup.DEFAULT, **how: Any) -> Any:
            broker = client.cluster.broker_metadata(node_id)
            if not (
                broker is None
                or self._has_answered(client, (node_id, group), broker)
                or await self.answers(broker.host, broker.port)
                or self._are_silent(_addresses(client))
            ):
                client.force_metadata_update()  # as aiokafka does for a connection that fails
                return None
            began = time.monotonic()
            connection = await connect(node_id, group=group, **how)
            took = time.monotonic() - began
            if connection is not None:
                self._usual_seconds = max(self._usual_seconds, took)
            elif broker is not None and _is_late(client, took):
                self._suspect_all([(broker.host, broker.port)], _addresses(client))
            return connection

        def learn(connection: Any, reason: CloseReason | None) -> None:
            if reason is CloseReason.CONNECTION_TIMEOUT:
                self._suspect_all([(connection.host, connection.port)], _addresses(client))
            closed(connection, reason)

        client._get_conn, client._on_connection_closed = connect_unless_silent, learn
        # In these aiokafka goes from one broker to the next, and does not say which of them let it wait.
        client._metadata_update = self._timed(client, client._metadata_update, lambda: _addresses(client))
        client.bootstrap = self._timed(
            client, client.bootstrap, lambda: [(host, port) for host, port, _ in client.hosts]
        )

    def _has_answered(self, client: Any, connection_id: Any, broker: Any) -> bool:
        """Whether it is not suspect, or this connection says that it need not be."""
        since = self._suspected_at.get((broker.host, broker.port))
        held = client._conns.get(connection_id)
        return since is None or (held is not None and held.connected() and held._last_action > since)

    def _are_silent(self, addresses: Collection[Address]) -> bool:
        return all(address in self._greeted_at for address in addresses)

    def _suspect_all(self, late: Collection[Address], known: Collection[Address]) -> None:
        if len(known) > 1:  # or there is nobody else to ask
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
    return seconds > _OF_THE_TIME * float(client._request_timeout_ms) / 1000
