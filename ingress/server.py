"""The ingress role: opens the listeners, waits for the log, drains sessions at shutdown.

While draining, a session between messages gets 421 4.3.2 and a message in progress may finish. Ending a session is
safe: a client without a 250 sends the message again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from ingress.accept import Acceptance
from ingress.admission import Admission
from ingress.connection import Connection
from ingress.limits import ConnectionLimiter, MemoryBudget
from ingress.listener import Listener
from ingress.services import Services
from ingress.spool_monitor import SpoolMonitor
from ingress.write_coalescer import WriteCoalescer
from mail import endpoint
from mail.directory import Directory
from mail.log import Appender, Down
from mail.resolver import Resolver
from mail.service import ServiceError, cannot_listen
from mail.settings import LogSettings, NodeSettings, SpoolSettings
from mail.settings_roles import IngressSettings
from mail.spool import Spool
from mail.tasks import background, is_set_within
from mail.telemetry.ingress import IN_FLIGHT_BYTES, SMTP_STRESS, prepare_listener

logger = structlog.get_logger()

_BACKLOG = 1024  # listen backlog; smtp-source alone opens 20 connections at once
_APPEND_MARGIN_SECONDS = 5.0  # over the log's own append time-out
_LOG_POLL_SECONDS = 0.25
_ABORT_SECONDS = 5.0  # for cancelled sessions to end


class Ingress:
    """mail.service.Role: serves SMTP."""

    name = "ingress"

    def __init__(
        self,
        *,
        listeners: Sequence[Listener],
        settings: IngressSettings,
        node: NodeSettings,
        spool_settings: SpoolSettings,
        log_settings: LogSettings,
        log: Appender,
        spool: Spool,
        directory: Directory,
        resolver: Resolver,
    ) -> None:
        self._drain_seconds = node.drain_timeout.total_seconds()
        self.connections: set[Connection] = set()
        self._servers: list[asyncio.Server] = []
        self.listeners = list(listeners)
        # By name of the listener, after `ready`; tells the port when 0 was configured.
        self.bound_addresses: dict[str, tuple[str, int]] = {}
        self._services = Services(
            directory=directory,
            resolver=resolver,
            log=log,
            acceptance=Acceptance(
                appender=log,
                spool=spool,
                inline_max=spool_settings.max_inline_size,
                timeout_seconds=log_settings.append_timeout.total_seconds() + _APPEND_MARGIN_SECONDS,
            ),
            connection_limiter=ConnectionLimiter(
                settings.max_connections,
                settings.max_connections_per_client,
                settings.max_connections * settings.reserved_connections_percent // 100,
            ),
            memory_budget=MemoryBudget(
                settings.max_in_flight_bytes,
                # One message of max_size always fits, also with a transparent dot in every line.
                max(
                    settings.max_in_flight_bytes_per_client,
                    min(settings.max_in_flight_bytes, settings.max_message_size * 4 // 3 + 1),
                ),
            ),
            spool_monitor=SpoolMonitor(spool, log_settings.min_free_disk),
        )

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Serve until `stop`, then drain. Raises ServiceError when an address cannot be bound."""
        coalescer = WriteCoalescer(asyncio.get_running_loop())
        try:
            for listener in self.listeners:
                await self._listen(listener, coalescer)
            if self.listeners:
                services = self._services
                IN_FLIGHT_BYTES.set_function(lambda: services.memory_budget.used_bytes)
                SMTP_STRESS.set_function(lambda: float(services.connection_limiter.is_under_stress))
            async with background(*[self._services.spool_monitor.run()] if self.listeners else []):
                if self.listeners:
                    await self._wait_for_log(stop)
                ready()
                await stop.wait()
        finally:
            for server in self._servers:
                server.close()
            await self._drain()

    async def _wait_for_log(self, stop: asyncio.Event) -> None:
        """Wait until the log is usable for the first time. Earlier clients get 421."""
        while isinstance(self._services.log.condition(), Down) and not await is_set_within(stop, _LOG_POLL_SECONDS):
            pass

    async def _listen(self, listener: Listener, coalescer: WriteCoalescer) -> None:
        try:
            host, port = endpoint.parse(listener.address)
        except ValueError as error:
            raise ServiceError(f"{listener.setting}: {listener.address!r}: {error}") from None
        prepare_listener(listener.name)
        loop = asyncio.get_running_loop()

        def make_connection() -> Connection:
            return Connection(listener, self._services, self.connections, coalescer, loop)

        def connect() -> Admission:
            return Admission(listener, self._services, make_connection, self._begin_stress)

        try:
            implicit_tls = listener.tls if listener.implicit_tls else None
            server = await loop.create_server(connect, host, port, backlog=_BACKLOG, ssl=implicit_tls)
        except OSError as error:
            raise cannot_listen(listener.setting, listener.address, error) from None
        self._servers.append(server)
        self.bound_addresses[listener.name] = server.sockets[0].getsockname()[:2]
        logger.debug("listening", role=self.name, listener=listener.name, address=listener.address)

    def _begin_stress(self) -> None:
        for connection in self.connections:
            connection.shorten_timeout()

    async def _drain(self) -> None:
        """Drain all sessions, wait for messages in progress, then abort the remaining sessions."""
        for connection in list(self.connections):
            connection.drain()
        tasks = {connection.task for connection in self.connections if connection.task is not None}
        if not tasks:
            return
        _done, unfinished = await asyncio.wait(tasks, timeout=self._drain_seconds)
        if unfinished:
            logger.warning("drain timed out", role=self.name, sessions_aborted=len(unfinished))
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished, timeout=_ABORT_SECONDS)
        for connection in list(self.connections):
            connection.abort()
