"""HTTP server of a process: a status page, /metrics for Prometheus, /healthz for liveness, /readyz for readiness.

Liveness is the heartbeat of the event loop and never the log: an unreachable broker must not restart our processes.
The server runs as a service's `support` and stops last, so that draining can be observed.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import platform
import socket
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from typing import Any, assert_never

import h11
import uvicorn
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from eilpost import __version__
from mail.client_counts import client_networks
from mail.endpoint import parse
from mail.log import Down, Full, Log, Usable
from mail.log.stopped import STOPPED_SHARDS
from mail.printable import escape_json
from mail.service import Health, cannot_listen
from mail.settings import HttpSettings
from mail.telemetry import REGISTRY
from mail.telemetry.runtime import BUILD_INFO, READY

# Open at once. Above it one of the client with the most is closed: the oldest of those that wait for a request, or of
# all.
_CONNECTIONS = 64
_REQUEST_SECONDS = 5.0  # from the connection to the end of its first request's header
_CONNECTION_SECONDS = 60.0  # of a connection in all
_WORKER_ROLES = {"router", "delivery"}
_NOT_READY = {role: f"{role} has not joined its group yet" for role in _WORKER_ROLES}


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, with a callback once it listens, and until `stop` is set."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None], stop: asyncio.Event) -> None:
        super().__init__(config)
        self._listening = listening
        self._stop = stop

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._stop.is_set()


class _Protocol(H11Protocol):
    """uvicorn's protocol with time-outs and a connection limit, so that idle clients block neither probes nor SMTP.

    A malformed request body gets one response: uvicorn's and the application's collided, with a traceback.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.made_at = self.loop.time()
        self._has_request = False
        self._abort_timer = self.loop.call_later(_REQUEST_SECONDS, transport.abort)
        peer = transport.get_extra_info("peername")
        self.network = client_networks(peer[0].partition("%")[0] if peer else "")[0]
        if len(self.connections) > _CONNECTIONS:
            others = [other for other in self.connections if isinstance(other, _Protocol) and other is not self]
            by_network = Counter(other.network for other in others)
            oldest = min(
                others, key=lambda other: (-by_network[other.network], other.is_answering, other.made_at), default=self
            )
            oldest.connections.discard(oldest)  # at once: connection_lost comes later
            oldest.transport.abort()

    @property
    def is_answering(self) -> bool:
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
            self.cycle.disconnected = True  # drops the application's response
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # a response was sent already
            self.transport.close()


class HttpServer:
    """The HTTP role. `log` is None in a process without one (mailstore)."""

    name = "http"

    def __init__(self, *, settings: HttpSettings, health: Health, log: Log | None = None) -> None:
        self._settings = settings
        self._health = health
        self._log = log
        self.address: tuple[str, int] | None = None  # set once it listens, with the real port for port 0

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
            ws="none",  # RFC 9110 section 7.8: a server may ignore Upgrade; uvicorn logs a warning, below `log_level`
            http=_Protocol,
            server_header=False,
            backlog=64,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=1,
        )
        with listener:
            await _Server(config, ready, stop).serve(sockets=[listener])

    def _application(self) -> Starlette:
        async def metrics(_request: Request) -> Response:
            return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

        async def healthz(_request: Request) -> Response:
            if not self._health.is_alive:
                return PlainTextResponse("the event loop was stuck\n", status_code=503)
            return PlainTextResponse("ok\n")

        async def readyz(_request: Request) -> Response:
            is_ready, body = readiness(self._health, self._log)
            return _JsonLine(body, status_code=200 if is_ready else 503)

        async def status(_request: Request) -> Response:
            page = status_page(*readiness(self._health, self._log))
            return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'"})

        pages = {"/": status, "/metrics": metrics, "/healthz": healthz, "/readyz": readyz}
        return Starlette(routes=[Route(path, page) for path, page in pages.items()])


class _JsonLine(JSONResponse):
    """JSON with a line end, for terminals."""

    def render(self, content: Any) -> bytes:
        return escape_json(super().render(content)) + b"\n"


def readiness(health: Health, log: Log | None) -> tuple[bool, dict[str, Any]]:
    """Whether this process is ready, and the body of /readyz (docs/reference/doctor.md, "Readiness").

    Ready means that every role can commit: an ingress while it can append, and replies 421 otherwise; a router or
    delivery process while it has joined its group and the log is usable to it. A process with a stopped shard stays
    ready, because it serves the other shards.
    """
    waiting = {name for name, is_ready in health.roles.items() if not is_ready}
    body: dict[str, Any] = {"roles": dict(health.roles)}
    reasons = []
    if log is not None:
        has_workers = bool(_WORKER_ROLES & health.roles.keys())
        match log.worker_condition() if has_workers else log.condition():
            case Usable():
                body["log"] = {"condition": "usable"}
            case Full(reason):
                body["log"] = {"condition": "full", "reason": reason}  # accepted mail is delivered: ready
            case Down(reason):
                body["log"] = {"condition": "down", "reason": reason}
                reasons.append(f"the log is down: {reason}")
                waiting -= {"ingress", *_WORKER_ROLES}  # they wait for the log
            case unknown:
                assert_never(unknown)
    reasons += [_NOT_READY.get(name, f"{name} is not ready") for name in health.roles if name in waiting]
    if log is not None and (warnings := log.warnings()):
        body["warnings"] = list(warnings)
    if stopped := STOPPED_SHARDS.reasons():
        body["stopped"] = stopped
    if health.is_draining:
        reasons = ["draining"]  # the cause of the others
    return not reasons, {"ready": not reasons, "reasons": reasons} | body


def status_page(is_ready: bool, body: Mapping[str, Any]) -> str:
    """The page for people at `/`; `body` as of `readiness`."""
    state = "ready" if is_ready else f"not ready: {'; '.join(body['reasons'])}"
    roles = "".join(
        f"<li>{html.escape(name)}: {'ready' if is_role_ready else 'not ready'}</li>"
        for name, is_role_ready in body["roles"].items()
    )
    notes = [*body.get("warnings", ()), *(f"stopped: {text}" for text in body.get("stopped", ()))]
    warnings = "".join(f"<p>Warning: {html.escape(str(note))}</p>\n" for note in notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<title>eilpost</title>
<h1>eilpost {html.escape(__version__)}</h1>
<p>State: {html.escape(state)}</p>
{warnings}<ul>{roles}</ul>
<p><a href="/healthz">/healthz</a> <a href="/readyz">/readyz</a> <a href="/metrics">/metrics</a></p>
</html>
"""


def _listen(endpoint: str) -> socket.socket:
    """A listening socket, or a ServiceError that names `http.listen`."""
    host, port = parse(endpoint)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise cannot_listen("http.listen", endpoint, error) from None
