"""First protocol of a connection: refuses it at a connection limit, or makes its `Connection`.

A refusal costs no session and no task, so that a flood of connections delays the clients that are served less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import structlog

from ingress import replies
from ingress.access_policy import normalize_ip
from ingress.connection import Connection
from ingress.listener import Listener
from ingress.services import Services
from ingress.session import SessionEnd
from mail.telemetry.ingress import SMTP_REPLIES, SMTP_SESSIONS

logger = structlog.get_logger()

_REFUSAL = replies.TOO_MANY_CONNECTIONS


class Admission(asyncio.Protocol):
    def __init__(
        self, listener: Listener, services: Services, make: Callable[[], Connection], begin_stress: Callable[[], None]
    ) -> None:
        """`begin_stress` is called when this connection begins the stress."""
        self._listener = listener
        self._services = services
        self._make = make
        self._begin_stress = begin_stress

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)  # that of uvloop is no subclass
        peer = transport.get_extra_info("peername")  # None: the client has already disconnected
        ip = normalize_ip(peer[0]) if peer else ""
        limiter = self._services.connection_limiter
        was_under_stress = limiter.is_under_stress
        if not self._services.admit(ip, exempt=self._listener.policy.client_policy(ip).may_relay):
            logger.info("command refused", client=ip, verb="CONNECT", reply=str(_REFUSAL))
            SMTP_REPLIES.labels("CONNECT", "4").inc()
            SMTP_SESSIONS.labels(self._listener.name, SessionEnd.REJECTED.value).inc()
            stream.write(_REFUSAL.to_bytes())
            stream.close()
            return
        connection = self._make()
        stream.set_protocol(connection)
        connection.connection_made(stream)
        if limiter.is_under_stress and not was_under_stress:
            self._begin_stress()
