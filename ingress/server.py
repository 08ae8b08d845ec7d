"""The ingress role: opens the listeners, counts who is inside, drains.

It says "421 4.3.2" to whoever is between messages when the process ends, and waits for messages under way (DESIGN
section 4: a client that has no 250 tries again, so nothing is lost by going). It knows nothing about commands or
messages. Next: `ingress/session.py`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

import structlog

from ingress import policy
from ingress.accept import Acceptance
from ingress.door import Door, ehlo
from ingress.outbox import Outbox
from ingress.pressure import Crowd, Meter
from ingress.session import SmtpSession
from ingress.storeroom import Storeroom
from mail import endpoint
from mail.directory import Directory
from mail.log import Appender, Down
from mail.reply import Reply
from mail.resolver import Resolver
from mail.service import ServiceError, stopped_within
from mail.settings import IngressSettings, LogSettings, NodeSettings, SpoolSettings
from mail.spool import Spool
from mail.telemetry.ingress import IN_FLIGHT_BYTES

log = structlog.get_logger()

_BACKLOG = 1024  # connections the kernel holds for us; smtp-source alone opens 20 at once
_GRACE_SECONDS = 5.0  # the log's own time-out is this much shorter than ours
_LOOK_SECONDS = 0.25
_CUT_SECONDS = 5.0  # for a session that was told to end at once


class Ingress:
    """Takes messages in by SMTP."""

    name = "ingress"

    def __init__(
        self,
        *,
        settings: IngressSettings,
        node: NodeSettings,
        spool_settings: SpoolSettings,
        log_settings: LogSettings,
        alias_depth: int,
        log: Appender,
        spool: Spool,
        directory: Directory,
        resolver: Resolver,
    ) -> None:
        self._settings = settings
        self._drain_seconds = node.drain.total_seconds()
        self._meter = Meter(
            settings.bytes_in_flight,
            # One message always fits, all its lines with transparent dots (`session.read_content`).
            max(settings.bytes_in_flight_per_client, min(settings.bytes_in_flight, settings.max_size * 4 // 3 + 1)),
        )
        self._storeroom = Storeroom(spool, log_settings.min_free_disk)
        self._log = log
        self._sessions: set[SmtpSession] = set()
        self.listening: list[tuple[str, int]] = []  # where, once ready; of use when the port was 0
        try:
            networks = policy.parse_networks(settings.relay_networks)
        except ValueError as error:
            raise ServiceError(f"ingress.relay_networks: {error}") from None
        self._door = Door(
            name="mx",
            hostname=node.hostname,
            relay_networks=networks,
            sender_must_resolve=settings.sender_domain_must_resolve,
            sender_check_exempts_relay=settings.sender_check_exempts_relay,
            truthful_vrfy=settings.vrfy,
            max_size=settings.max_size,
            max_recipients=settings.max_recipients,
            max_errors=settings.max_errors,
            max_hops=settings.max_hops,
            alias_depth=alias_depth,
            command_seconds=settings.command_timeout.total_seconds(),
            data_seconds=settings.data_timeout.total_seconds(),
            directory=directory,
            resolver=resolver,
            log=log,
            acceptance=Acceptance(
                appender=log,
                spool=spool,
                inline_max=spool_settings.inline_max,
                timeout_seconds=log_settings.append_timeout.total_seconds() + _GRACE_SECONDS,
            ),
            crowd=Crowd(settings.max_connections, settings.max_connections_per_client),
            meter=self._meter,
            storeroom=self._storeroom,
            greeting=f"220 {node.hostname} ESMTP eilpost\r\n".encode(),
            ehlo=ehlo(node.hostname, settings.max_size),
            helo=Reply(250, "", node.hostname).wire(),
        )

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Serve until `stop`, then drain. Raises ServiceError when the port cannot be had."""
        if not self._settings.mx:
            ready()
            await stop.wait()
            return
        server = await self._listen(self._settings.mx)
        IN_FLIGHT_BYTES.set_function(lambda: self._meter.used_bytes)
        watching = asyncio.create_task(self._storeroom.watch(), name="storeroom")
        try:
            await self._see_the_log(stop)
            ready()
            await stop.wait()
        finally:
            watching.cancel()
            server.close()
            await self._drain()

    async def _see_the_log(self, stop: asyncio.Event) -> None:
        """Wait until the log is usable once. Clients that come earlier get 421."""
        while isinstance(self._log.condition(), Down) and not await stopped_within(stop, _LOOK_SECONDS):
            pass

    async def _listen(self, where: str) -> asyncio.Server:
        try:
            host, port = endpoint.parse(where)
        except ValueError as error:
            raise ServiceError(f"ingress.mx: {where!r}: {error}") from None
        loop = asyncio.get_running_loop()
        outbox = Outbox(loop)
        try:
            server = await loop.create_server(
                lambda: SmtpSession(self._door, self._sessions, outbox, loop), host, port, backlog=_BACKLOG
            )
        except OSError as error:
            reason = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
            raise ServiceError(
                f"ingress.mx: cannot listen on {where}: {reason}; set another address there, or by "
                "EILPOST_INGRESS__MX=HOST:PORT"
            ) from None
        self.listening = [socket.getsockname()[:2] for socket in server.sockets]
        log.debug("listening", role=self.name, door=self._door.name, address=where)
        return server

    async def _drain(self) -> None:
        """Tell everyone, wait for those with a message under way, cut what is left."""
        for session in list(self._sessions):
            session.drain()
        tasks = {session.task for session in self._sessions if session.task is not None}
        if not tasks:
            return
        _done, late = await asyncio.wait(tasks, timeout=self._drain_seconds)
        if late:
            log.warning("sessions cut", role=self.name, count=len(late))
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_CUT_SECONDS)
        for session in list(self._sessions):
            session.cut()
