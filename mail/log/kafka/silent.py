"""Which brokers do not answer: found out once by any client of a process, and then waited for by none.

A broker that hangs, or whose machine has lost its power, closes no connection. Until the cluster counts it out, any
client may ask it who leads or coordinates now, and aiokafka does, again and again, a time-out each. So a request that
timed out makes its broker *suspect*, and a suspect is greeted on a connection of its own, which has to be quick: a
leader that only waits for its followers answers. One that does not is *silent*: no client is connected to it, which
aiokafka takes for "ask another, and then me again". It is greeted again when somebody wants it. Never the only broker
there is. Next: `mail/log/kafka/access.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaError

from mail import endpoint

log = structlog.get_logger()

_GREETING_SECONDS = 1.5
_AGAIN_SECONDS = 1.0  # between two greetings of one that is silent
_OF_THE_TIME = 0.9  # that a request may take, spent on a connection that did not come about: it timed out

Greet = Callable[[str, int], Awaitable[None]]


class Silent:
    """Brokers by "HOST:PORT"; of one process, whose clients are all on one event loop. `greet` returns when a broker
    has answered on a new connection.
    """

    def __init__(self, greet: Greet) -> None:
        self._greet = greet
        self._greeted_at: dict[str, float] = {}  # those that are silent
        self._greetings: dict[str, asyncio.Task[bool]] = {}

    def those_that_answer(self, addresses: Sequence[str]) -> list[str]:
        """All of them when none does."""
        return [address for address in addresses if address not in self._greeted_at] or list(addresses)

    def suspect(self, host: str, port: int) -> asyncio.Task[bool]:
        """It did not answer: is it there at all? The task says."""
        address = endpoint.format(host, port)
        if address not in self._greetings:
            self._greetings[address] = asyncio.create_task(self._ask(address, host, port), name=f"greet {address}")
        return self._greetings[address]

    async def answers(self, host: str, port: int) -> bool:
        """Known at once, unless it is being asked for the first time."""
        address = endpoint.format(host, port)
        if address not in self._greeted_at:
            return address not in self._greetings or await asyncio.shield(self._greetings[address])
        if asyncio.get_running_loop().time() - self._greeted_at[address] >= _AGAIN_SECONDS:
            self.suspect(host, port)
        return False

    async def _ask(self, address: str, host: str, port: int) -> bool:
        try:
            async with asyncio.timeout(_GREETING_SECONDS):
                await self._greet(host, port)
        except (KafkaError, TimeoutError, OSError, RuntimeError):  # the last: `severed.py`
            if address not in self._greeted_at:
                log.warning("broker is silent, others are asked", broker=address)
            self._greeted_at[address] = asyncio.get_running_loop().time()
            return False
        else:
            if self._greeted_at.pop(address, None) is not None:
                log.info("broker answers again", broker=address)
            return True
        finally:
            del self._greetings[address]

    def guard(self, client: Any) -> None:
        """Let an AIOKafkaClient learn from the others, and they from it."""
        connect, closed = client._get_conn, client._on_connection_closed

        async def connect_unless_silent(node_id: Any, **how: Any) -> Any:
            broker = client.cluster.broker_metadata(node_id)
            if broker is None or len(client.cluster.brokers()) == 1:
                return await connect(node_id, **how)
            if not await self.answers(broker.host, broker.port):
                client.force_metadata_update()  # as aiokafka does for a connection that fails
                return None
            began = client._loop.time()
            connection = await connect(node_id, **how)
            if connection is None and client._loop.time() - began > _OF_THE_TIME * client._request_timeout_ms / 1000:
                self.suspect(broker.host, broker.port)
            return connection

        def learn(connection: Any, reason: CloseReason | None) -> None:
            if reason is CloseReason.CONNECTION_TIMEOUT:
                self.suspect(connection.host, connection.port)
            closed(connection, reason)

        client._get_conn, client._on_connection_closed = connect_unless_silent, learn
