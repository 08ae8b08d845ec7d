"""Connector: opens one outbound connection up to its EHLO reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from delivery.client_session import ClientSession
from delivery.connection import Connection
from delivery.exchangers import Exchangers, Pipelining
from delivery.peer import PeerKey
from delivery.source_addresses import NoSource, SourceAddresses
from delivery.targets import NoTarget, Target
from delivery.timeouts import Timeouts
from mail.reply import LOOPS_BACK, Reply
from mail.route import RelayProtocol, Route, ToMx, ToRelay
from mail.telemetry.delivery import CONNECTION_ERRORS

# RFC 3463 section 3.5: X.4.1 no answer from host, X.4.2 bad connection.
NOT_CONNECTED = Reply(451, "4.4.1", "not connected")
CONNECTION_LOST = Reply(451, "4.4.2", "connection lost")
_CONNECT_ERRORS = {
    TimeoutError: ("timeout", "connection timed out"),
    ConnectionRefusedError: ("refused", "connection refused"),
}


class Connector:
    """`own_names`: of this server. `handshakes`: connections whose server has not replied to EHLO yet."""

    def __init__(
        self,
        sources: SourceAddresses,
        exchangers: Exchangers,
        own_names: frozenset[str],
        *,
        timeouts: Timeouts,
        connect_seconds: float,
        on_closed: Callable[[Connection], None],
    ) -> None:
        self._sources = sources
        self._exchangers = exchangers
        self._own_names = own_names
        self._timeouts = timeouts
        self._connect_seconds = connect_seconds
        self._on_closed = on_closed
        self.handshakes: set[Connection] = set()

    async def connect(self, key: PeerKey, target: Target, route: Route) -> Connection | NoTarget:
        """Connect to one address up to READY, or return the failure."""
        remote = str(target)
        protocol = route.protocol if isinstance(route, ToRelay) else RelayProtocol.SMTP
        own_names = self._own_names if isinstance(route, ToMx) else frozenset()
        exchanger = self._exchangers.use(target.host, target.port)
        may_pipeline = exchanger.pipelining is not Pipelining.NOT_USED
        session = ClientSession(
            key.ehlo_name,
            remote,
            protocol,
            own_names,
            tls=key.tls,
            credentials=key.credentials,
            may_pipeline=may_pipeline,
        )
        loop = asyncio.get_running_loop()
        exchanger.on_tried(loop.time())
        connection = Connection(key, session, self._timeouts, self._on_closed, loop)
        connection.ip, connection.route, connection.exchanger = target.ip, route, exchanger
        try:
            async with asyncio.timeout(self._connect_seconds):
                await self._sources.connect(key.source_addresses, lambda: connection, target.ip, target.port)
        except NoSource as error:
            return NoTarget(target.host, target.host, error.reply, is_without_source=True)
        except OSError as error:  # TimeoutError is one
            kind, text = _CONNECT_ERRORS.get(type(error), ("unreachable", error.strerror or type(error).__name__))
            CONNECTION_ERRORS.labels(kind).inc()
            return NoTarget(target.host, remote, NOT_CONNECTED.with_text(text).about(remote))
        connection.opened_at = loop.time()
        self.handshakes.add(connection)
        try:
            failure = await connection.handshake()
        except asyncio.CancelledError:
            connection.abort("cancelled")
            raise
        finally:
            self.handshakes.discard(connection)
        if failure is not None:
            CONNECTION_ERRORS.labels("greeting").inc()
            return NoTarget(
                target.host,
                remote,
                LOOPS_BACK if failure.is_own else failure.reply,
                failure.server_reply,
                is_own=failure.is_own,
                is_by_policy=failure.is_by_policy,
                rejects_mail=failure.rejects_mail,
            )
        return connection if connection.usable else NoTarget(target.host, remote, CONNECTION_LOST.about(remote))
