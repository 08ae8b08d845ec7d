"""A listener on loopback that leaves nothing behind.

A connection that the system accepted in the very moment a test ends, or whose task is cancelled before its first step,
is closed by nobody; the warning then falls on whatever test runs when the garbage is collected. A `Listener` closes
every connection it ever made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """Listens on `port` (0: one that the system chooses) with a protocol of `make` for each connection."""

    def __init__(self, make: Callable[[], asyncio.Protocol], host: str = "127.0.0.1", port: int = 0) -> None:
        self._make = make
        self._host = host
        self._server: asyncio.Server | None = None
        self._transports: set[asyncio.BaseTransport] = set()
        self.port = port

    async def start(self) -> None:
        """Listen; after `stop`, on the same port again."""
        self._server = await asyncio.get_running_loop().create_server(self._connection, self._host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the listener and every connection."""
        await settle()  # what the system has accepted already becomes a connection, or nobody could close it
        if self._server is not None:
            self._server.close()
            self._server = None
        await settle()
        await self.close_connections()

    async def close_connections(self) -> None:
        """Close every open connection, without waiting for what is still to be written."""
        for transport in list(self._transports):
            assert isinstance(transport, asyncio.Transport)
            transport.abort()
        await settle()

    def _connection(self) -> asyncio.Protocol:
        protocol = self._make()
        made, lost = protocol.connection_made, protocol.connection_lost

        def connection_made(transport: asyncio.BaseTransport) -> None:
            self._transports.add(transport)
            tracked.append(transport)
            made(transport)

        def connection_lost(exc: Exception | None) -> None:
            self._transports.difference_update(tracked)
            tracked.clear()
            lost(exc)

        tracked: list[asyncio.BaseTransport] = []
        protocol.connection_made = connection_made  # type: ignore[method-assign]
        protocol.connection_lost = connection_lost  # type: ignore[method-assign]
        return protocol


async def settle() -> None:
    """Let the loop finish what is under way."""
    for _ in range(5):
        await asyncio.sleep(0)


def streams(serve: Serve) -> Callable[[], asyncio.Protocol]:
    """Protocols for a coroutine that serves one connection, as `asyncio.start_server` has them."""
    return lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve)


@asynccontextmanager
async def listening(make: Callable[[], asyncio.Protocol]) -> AsyncIterator[int]:
    """A `Listener` for the length of a block; its port."""
    listener = Listener(make)
    await listener.start()
    try:
        yield listener.port
    finally:
        await listener.stop()
