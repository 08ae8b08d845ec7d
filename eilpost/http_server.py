"""The HTTP face of a process: /metrics for Prometheus, /healthz for liveness, /readyz for readiness.

Liveness is the heartbeat of the event loop and never the log: a broker that is away must not restart our processes.
It serves nobody's mail and no control. It runs as a service's `support`: it ends last, so that draining can be
watched. Source: Prometheus text format.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import platform
import socket
from collections.abc import Callable, Generator
from typing import Any, assert_never

import h11
import uvicorn
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from eilpost import __version__
from mail.endpoint import parse
from mail.log import Down, Full, Log, Usable
from mail.log.stopped import STOPPED_SHARDS
from mail.service import Health, ServiceError
from mail.settings import HttpSettings
from mail.telemetry import REGISTRY
from mail.telemetry.runtime import BUILD_INFO, READY

_CONNECTIONS = 64  # open at once; above it one is closed: the oldest of those that wait for a request, or of all
_REQUEST_SECONDS = 5.0  # from the connection to the end of its first request's header
_CONNECTION_SECONDS = 60.0  # of a connection in all
_WORKER_ROLES = {"router", "delivery"}
_NOT_READY = {role: f"{role} has not joined its group yet" for role in _WORKER_ROLES}


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, telling when it listens."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()


class _Protocol(H11Protocol):
    """uvicorn's protocol with time-outs and a bound on connections. Clients that connect and send nothing take neither
    the answers of probes nor the file descriptors of SMTP. A malformed request body is answered once: uvicorn's reply
    and the application's reply to it collided, with a traceback.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made_at = self.loop.time()
        self._has_request = False
        self._abort_timer = self.loop.call_later(_REQUEST_SECONDS, transport.abort)
        if len(self.connections) > _CONNECTIONS:
            others = [each for each in self.connections if isinstance(each, _Protocol) and each is not self]
            oldest = min(others, key=lambda each: (each._is_answering, each._made_at), default=self)
            oldest.connections.discard(oldest)  # before its end is seen: a burst closes one each
            oldest.transport.abort()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self._has_request:
            self._has_request = True
            self._abort_timer.cancel()
            self._abort_timer = self.loop.call_later(_CONNECTION_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._abort_timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what the application may still say goes nowhere
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # an answer is there already, and no second one may follow
            self.transport.close()

    def _should_upgrade(self) -> bool:
        return False  # RFC 9110 section 7.8: a server may ignore it; uvicorn's tells the log what to install


class HttpServer:
    """The role. `log`: None where it has no log (mailstore alone)."""

    name = "http"

    def __init__(self, *, settings: HttpSettings, health: Health, log: Log | None = None) -> None:
        self._settings = settings
        self._health = health
        self._log = log
        self.address: tuple[str, int] | None = None  # once it listens; the port is real even where 0 was asked for

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        BUILD_INFO.labels(__version__, platform.python_version()).set(1)
        READY.set_function(lambda: float(readiness(self._health, self._log)[0]))
        if self._settings.listen:
            await self._serve(ready, stop)
        else:
            ready()
            await stop.wait()

    async def _serve(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        listener = _listen(self._settings.listen)
        self.address = listener.getsockname()[:2]
        config = uvicorn.Config(
            self._application(),
            log_config=None,
            log_level="error",  # errors of clients are not logged
            access_log=False,
            lifespan="off",
            ws="none",
            http=_Protocol,
            server_header=False,
            backlog=64,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=1,
        )
        server = _Server(config, ready)

        async def end() -> None:
            await stop.wait()
            server.should_exit = True

        ending = asyncio.create_task(end(), name="http end")
        try:
            await server.serve(sockets=[listener])
        finally:
            ending.cancel()
            listener.close()

    def _application(self) -> Starlette:
        async def metrics(_request: Request) -> Response:
            return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

        async def healthz(_request: Request) -> Response:
            if not self._health.is_alive:
                return PlainTextResponse("the event loop was stuck\n", status_code=503)
            return PlainTextResponse("ok\n")

        async def readyz(_request: Request) -> Response:
            is_ready, answer = readiness(self._health, self._log)
            return _JsonLine(answer, status_code=200 if is_ready else 503)

        return Starlette(
            routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)],
        )


class _JsonLine(JSONResponse):
    """JSON that a terminal shows as a line of its own."""

    def render(self, content: Any) -> bytes:
        return super().render(content) + b"\n"


def readiness(health: Health, log: Log | None) -> tuple[bool, dict[str, Any]]:
    """Whether this process is ready, and why not, fit for JSON (docs/kafka.md, "Readiness").

    A router or delivery process is ready once it has joined its group and while the log is usable. An ingress is ready
    once it has seen the log usable, and stays ready while the log is down: it answers with 4xx, and no endpoint of a
    Service vanishes. A shard that waits for an operator is told, and its process stays ready: it serves the others.
    """
    waiting = {name for name, is_ready in health.roles.items() if not is_ready}
    answer: dict[str, Any] = {"roles": dict(health.roles)}
    reasons = []
    if log is not None:
        match log.worker_condition():
            case Usable():
                answer["log"] = {"condition": "usable"}
            case Full(reason):
                answer["log"] = {"condition": "full", "reason": reason}  # old mail flows: ready
            case Down(reason):
                answer["log"] = {"condition": "down", "reason": reason}
                if _WORKER_ROLES & health.roles.keys() or "ingress" in waiting:
                    reasons.append(f"the log is down: {reason}")
                    waiting -= {"ingress", *_WORKER_ROLES}  # they wait for the log
            case unknown:
                assert_never(unknown)
    reasons += [_NOT_READY.get(name, f"{name} is not ready") for name in health.roles if name in waiting]
    if log is not None and (warnings := log.warnings()):
        answer["warnings"] = list(warnings)
    if stopped := STOPPED_SHARDS.reasons():
        answer["stopped"] = stopped
    if health.is_draining:
        reasons = ["draining"]  # whatever else is missing follows from it
    return not reasons, {"ready": not reasons, "reasons": reasons} | answer


def _listen(endpoint: str) -> socket.socket:
    """A listening socket, or a ServiceError that names `http.listen`."""
    host, port = parse(endpoint)
    try:
        family, kind, proto, _name, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        what = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise ServiceError(
            f"http.listen: cannot listen on {endpoint}: {what}; set another address there, or by "
            "EILPOST_HTTP__LISTEN=HOST:PORT"
        ) from None
    return listener
