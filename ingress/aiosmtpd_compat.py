"""All use of aiosmtpd's private attributes, for its version 1.4.

It keeps aiosmtpd's connection life cycle (task, writer, later TLS and AUTH). A test forbids private attributes of
libraries elsewhere.
"""

from __future__ import annotations

import asyncio
from ssl import SSLContext

from aiosmtpd.smtp import SMTP


class _NoHooks:
    """A handler without hooks, and without attributes to scan."""

    def __dir__(self) -> list[str]:
        return []


_NO_HOOKS = _NoHooks()


class SmtpProtocol(SMTP):
    """The subclass defines `serve` and `reset_timeout`, and replaces `eof_received` and `connection_lost`.
    Upstream: aiosmtpd issues 178 (closed; getfqdn() blocks where no `hostname` is given) and 110 (closed; a disconnect
    cancels the handler, here even an append). None was found for the attribute scan, which costs 360 us per
    connection, nor for the timer, which is one for all of DATA. Remove when aiosmtpd has hooks for the command loop,
    time-outs and disconnects.
    """

    def __init__(self, hostname: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            _NO_HOOKS, data_size_limit=None, enable_SMTPUTF8=True, hostname=hostname, ident="eilpost", loop=loop
        )

    def __dir__(self) -> list[str]:
        return []

    async def serve(self) -> None:
        """The command loop; its task ends with the session."""
        raise NotImplementedError

    def reset_timeout(self) -> None:
        """Called when the connection was made."""
        raise NotImplementedError

    @property
    def task(self) -> asyncio.Task[None] | None:
        return self._handler_coroutine

    async def drain_writer(self) -> None:
        """Wait until the write buffer has room. Raises ConnectionError."""
        await self._writer.drain()

    async def start_tls(self, context: SSLContext) -> asyncio.Transport:
        """Handshake as the server; the transport of the encrypted connection. Raises OSError."""
        await self._writer.start_tls(context)
        self.transport = self._writer.transport
        return self._writer.transport  # type: ignore[return-value]

    async def _handle_client(self) -> None:
        await self.serve()

    def _reset_timeout(self, duration: float | None = None) -> None:  # noqa: ARG002
        self.reset_timeout()
