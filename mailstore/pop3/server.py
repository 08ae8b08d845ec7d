"""The POP3 role: the listener, its connections and their limit, and the drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import structlog

from mail import endpoint
from mail.directory import Directory
from mail.service import ServiceError, cannot_listen
from mail.settings import NodeSettings
from mail.settings_roles import MailstoreSettings
from mail.telemetry.pop3 import POP3_CONNECTIONS, POP3_SESSIONS
from mailstore.mailboxes import Mailboxes
from mailstore.pop3.connection import READ_BYTES, Connection, Services
from mailstore.pop3.session import SHUTTING_DOWN, TOO_MANY_CONNECTIONS

logger = structlog.get_logger()


class Pop3Server:
    """mail.service.Role. `port` is valid after `ready`."""

    name = "mailstore"

    def __init__(
        self,
        *,
        settings: MailstoreSettings,
        node: NodeSettings,
        mailboxes: Mailboxes,
        directory: Directory,
        failure_delay: timedelta = timedelta(seconds=2),
        write_timeout: timedelta = timedelta(seconds=60),
    ) -> None:
        """`failure_delay` follows a failed login; `write_timeout` is the time a client has to read one slice."""
        self._settings = settings
        self._node = node
        self.services = Services(
            mailboxes,
            directory,
            failure_delay.total_seconds(),
            write_timeout.total_seconds(),
            settings.idle_timeout.total_seconds(),
        )
        self.stopping = False
        self.port = 0
        self._connections: dict[asyncio.Task[None], Connection] = {}

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        if not self._settings.pop3_listen:
            ready()
            await stop.wait()
            return
        try:
            host, port = endpoint.parse(self._settings.pop3_listen)
        except ValueError as error:
            raise ServiceError(f"mailstore.pop3_listen: {error}") from error
        try:
            server = await asyncio.start_server(self._connected, host, port, limit=READ_BYTES, backlog=256)
        except OSError as error:
            raise cannot_listen("mailstore.pop3_listen", self._settings.pop3_listen, error) from error
        self.port = server.sockets[0].getsockname()[1]
        logger.debug("listening", role=self.name, listener="pop3", address=f"{host}:{self.port}")
        ready()
        try:
            await stop.wait()
        finally:
            server.close()
            await self._drain()

    async def _drain(self) -> None:
        """End idle sessions at once, the others after their command or when the drain time expires."""
        self.stopping = True
        for connection in self._connections.values():
            connection.stop()
        tasks = set(self._connections)
        if tasks:
            _done, late = await asyncio.wait(tasks, timeout=self._node.drain_timeout.total_seconds())
            if late:
                logger.warning("drain timed out", role=self.name, listener="pop3", sessions_aborted=len(late))
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = Connection(self.services, reader, writer)
        if self.stopping or not self._has_room(connection):
            POP3_SESSIONS.labels("rejected").inc()
            writer.write((SHUTTING_DOWN if self.stopping else TOO_MANY_CONNECTIONS).data)
            writer.close()
            return
        self._connections[task] = connection
        connection.count_unauthenticated()
        POP3_CONNECTIONS.inc()
        try:
            await connection.run()
        finally:
            POP3_CONNECTIONS.dec()
            connection.uncount_unauthenticated()
            del self._connections[task]

    def _has_room(self, connection: Connection) -> bool:
        """At the limit of all connections, the oldest one that waits without login is closed for a new one, so that
        other machines cannot block the users.
        """
        if not connection.is_exempt and not self.services.unauthenticated.has_room(connection.ip):
            return False
        if len(self._connections) < self._settings.max_connections:
            return True
        oldest = next((other for other in self._connections.values() if other.is_replaceable), None)
        if oldest is not None:
            oldest.stop("rejected")
        return oldest is not None
