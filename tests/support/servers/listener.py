"""A listener on loopback that closes every connection it accepted.

A connection accepted at the end of a test, or whose task is cancelled before its first step, stays open otherwise; its
ResourceWarning then fails whichever test runs during garbage collection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """Listens on `port` (0: any free port) with a protocol from `make` for each connection."""

    def __init__(self, make: Callable[[], asyncio.Protocol], host: str = "127.0.0.1", port: int = 0) -> None:
        self._make = make
        self._host = host
        self._server: asyncio.Server | None = None
        self._transports: set[asyncio.BaseTransport] = set()
        self.port = port

    async def start(self) -> None:
        """Listen; after `stop`, on the same port."""
        self._server = await asyncio.get_running_loop().create_server(self._connection, self._host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the listener and every connection."""
        await settle()  # connections accepted by the kernel get their protocol now; later nothing could close them
        if self._server is not None:
            self._server.close()
            self._server = None
        await settle()
        await self.close_connections()

    async def close_connections(self) -> None:
        """Abort every open connection without flushing its write buffer."""
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
    """Let the event loop finish pending callbacks."""
    for _ in range(5):
        await asyncio.sleep(0)


def streams(serve: Serve) -> Callable[[], asyncio.Protocol]:
    """Protocols for a coroutine that serves one connection, as in `asyncio.start_server`."""
    return lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve)


@asynccontextmanager
async def listening(make: Callable[[], asyncio.Protocol]) -> AsyncIterator[int]:
    """A `Listener` for the duration of a block; yields its port."""
    listener = Listener(make)
    await listener.start()
    try:
        yield listener.port
    finally:
        await listener.stop()
