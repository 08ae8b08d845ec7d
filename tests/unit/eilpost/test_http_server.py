"""The HTTP server: status page, metrics, liveness without the log, readiness with reasons."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Sequence

import pytest

from eilpost import __version__
from eilpost.http_server import _CONNECTIONS, HttpServer, readiness, status_page
from mail.log import Condition, Down, Full, Usable
from mail.log.stopped import STOPPED_SHARDS
from mail.service import Health, ServiceError
from mail.settings import HttpSettings
from mail.telemetry import REGISTRY


class _Log:
    """A log in any condition."""

    def __init__(self, now: Condition) -> None:
        self.now = now

    def worker_condition(self) -> Condition:
        return self.now

    condition = worker_condition

    def warnings(self) -> Sequence[str]:
        return ("renew it",) if isinstance(self.now, Full) else ()


def _health(**roles: bool) -> Health:
    health = Health()
    health.roles = roles
    return health


def test_ready_once_every_role_is_ready() -> None:
    assert readiness(_health(ingress=True, router=True), _Log(Usable()))[0]
    is_ready, response = readiness(_health(ingress=True, router=False), _Log(Usable()))
    assert (is_ready, response["reasons"]) == (False, ["router has not joined its group yet"])


def test_the_status_page_shows_version_roles_state_and_links() -> None:
    page = status_page(*readiness(_health(ingress=True, router=False), _Log(Down("<gone>"))))
    assert f"<h1>eilpost {__version__}</h1>" in page
    assert "State: not ready: the log is down: &lt;gone&gt;" in page
    assert "<li>ingress: ready</li><li>router: not ready</li>" in page
    assert all(f'<a href="{path}">' in page for path in ("/healthz", "/readyz", "/metrics"))
    assert "State: ready<" in status_page(*readiness(_health(ingress=True), _Log(Usable())))
    assert "Warning: renew it" in status_page(*readiness(_health(ingress=True), _Log(Full("disk"))))


def test_draining_is_not_ready() -> None:
    health = _health(ingress=True, router=False)
    health.is_draining = True
    is_ready, response = readiness(health, _Log(Down("gone")))
    assert (is_ready, response["reasons"]) == (False, ["draining"])  # the rest follows from it
    assert response["roles"] == {"ingress": True, "router": False}


_DOWN = ["the log is down: gone"]


@pytest.mark.parametrize(
    ("log", "roles", "reasons"),
    [
        (Full("disk"), {"ingress": True, "router": True}, []),  # old mail flows
        (Down("gone"), {"ingress": True, "router": True}, _DOWN),
        (Down("gone"), {"router": False}, _DOWN),  # it has not joined because the log is down
        (Down("gone"), {"delivery": True}, _DOWN),
        (Down("gone"), {"ingress": False}, _DOWN),  # it has not seen the log usable yet
        (Down("gone"), {"ingress": True}, _DOWN),  # it replies 421
        (Down("gone"), {"ingress": False, "mailstore": False}, [*_DOWN, "mailstore is not ready"]),
        (Usable(), {"delivery": False}, ["delivery has not joined its group yet"]),
    ],
)
def test_no_role_that_cannot_commit_is_ready(log: Condition, roles: dict[str, bool], reasons: list[str]) -> None:
    is_ready, response = readiness(_health(**roles), _Log(log))
    assert (is_ready, response["ready"], response["reasons"]) == (not reasons, not reasons, reasons)
    assert response["log"]["condition"] == type(log).__name__.lower()
    assert response.get("warnings") == (["renew it"] if isinstance(log, Full) else None)


def test_a_stopped_shard_is_reported_and_its_process_stays_ready() -> None:
    health = _health(router=True, delivery=True)
    for role, shard in (("router", 3), ("delivery", 1)):
        STOPPED_SHARDS.record(role, shard, "a record cannot be read")
    STOPPED_SHARDS.record("router", 3, "its version is 9")  # its second reason
    try:
        is_ready, response = readiness(health, _Log(Usable()))
        assert is_ready
        assert response["stopped"] == [
            "delivery, shard 1: a record cannot be read",
            "router, shard 3: its version is 9",
        ]
        assert REGISTRY.get_sample_value("eilpost_shards_stopped", {"role": "router"}) == 1
    finally:
        STOPPED_SHARDS.resume("router", 3)
        STOPPED_SHARDS.resume("delivery", 1)
    assert "stopped" not in readiness(health, _Log(Usable()))[1]
    assert REGISTRY.get_sample_value("eilpost_shards_stopped", {"role": "router"}) == 0


async def _get(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    response = (await reader.read()).decode()
    writer.close()
    return int(response.split()[1]), response.partition("\r\n\r\n")[2]


@contextlib.asynccontextmanager
async def _serving(health: Health, log: _Log | None = None) -> AsyncIterator[int]:
    """The port of a running HTTP server, which is stopped at the end."""
    http = HttpServer(settings=HttpSettings(listen="127.0.0.1:0"), health=health, log=log)
    ready, stop = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(http.run(ready.set, stop))
    await ready.wait()
    assert http.address is not None
    try:
        yield http.address[1]
    finally:
        stop.set()
        await running


async def test_the_paths_are_served_over_http() -> None:
    health = _health(ingress=False)
    async with _serving(health, _Log(Down("gone"))) as port:
        assert await _get(port, "/healthz") == (200, "ok\n")
        status, body = await _get(port, "/readyz")
        assert body.endswith("}\n")
        assert (status, json.loads(body)["reasons"]) == (503, ["the log is down: gone"])
        status, body = await _get(port, "/metrics")
        assert status == 200
        assert "eilpost_build_info{" in body
        status, body = await _get(port, "/")
        assert (status, "not ready: the log is down: gone" in body) == (200, True)
        assert (await _get(port, "/other"))[0] == 404
    with pytest.raises(OSError, match=r"."):
        await _get(port, "/healthz")


@pytest.mark.slow
async def test_idle_connections_do_not_block_probes() -> None:
    async with _serving(_health()) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(_CONNECTIONS + 10)]
        for number, (_reader, writer) in enumerate(silent):
            if number % 2:
                writer.write(b"GET /healthz HTTP/1.1\r\nX: ")  # and never an end
        async with asyncio.timeout(2):
            for path in ("/healthz", "/readyz", "/metrics"):
                assert (await _get(port, path))[0] == 200
        async with asyncio.timeout(10):
            for reader, writer in silent:
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()


async def test_kept_alive_connections_do_not_block_probes() -> None:
    async with _serving(_health()) as port:
        busy = []
        for _ in range(_CONNECTIONS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readuntil(b"ok\n")
            busy.append(writer)
        async with asyncio.timeout(2):
            assert (await _get(port, "/healthz"))[0] == 200
        for writer in busy:
            writer.close()


async def test_above_the_limit_the_oldest_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eilpost.http_server._CONNECTIONS", 2)
    async with _serving(_health()) as port:
        connections = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readuntil(b"ok\n")
            connections.append((reader, writer))
        async with asyncio.timeout(2):
            with contextlib.suppress(ConnectionError):
                assert await connections[0][0].read() == b""
        for reader, writer in connections[1:]:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readuntil(b"ok\n")
        for _reader, writer in connections:
            writer.close()


async def test_above_the_limit_a_connection_of_the_client_with_the_most_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eilpost.http_server._CONNECTIONS", 3)
    async with _serving(_health()) as port:
        connections = []
        for ip in ("127.0.0.2", "127.0.0.3", "127.0.0.3", "127.0.0.4"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(ip, 0))
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readuntil(b"ok\n")
            connections.append((reader, writer))
        async with asyncio.timeout(2):
            with contextlib.suppress(ConnectionError):
                assert await connections[1][0].read() == b""
        reader, writer = connections[0]  # older, and the only one of its client
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.readuntil(b"ok\n")
        for _reader, writer in connections:
            writer.close()


async def _raw(port: int, *parts: bytes) -> bytes:
    """The response until the server closes the connection; the parts are sent with a pause between them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        response = await reader.read()
    writer.close()
    return response


async def test_malformed_requests_are_answered_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with _serving(_health()) as port:
        chunked = b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert (await _raw(port, chunked + b"zz\r\n")).startswith(b"HTTP/1.1 400 ")
        late = await _raw(port, chunked, b"zz\r\n")
        assert late.startswith(b"HTTP/1.1 200 ")
        assert late.count(b"HTTP/1.1") == 1
        assert (await _raw(port, b"\0\xff\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        upgrade = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
        assert (await _raw(port, upgrade)).startswith(b"HTTP/1.1 200 ")
        assert await _get(port, "/healthz") == (200, "ok\n")
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []


async def test_a_port_in_use_names_the_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        http = HttpServer(settings=HttpSettings(listen=f"127.0.0.1:{occupied.getsockname()[1]}"), health=Health())
        with pytest.raises(ServiceError, match=r"^http\.listen: cannot listen on .*EILPOST_HTTP__LISTEN"):
            await http.run(lambda: None, asyncio.Event())


async def test_nothing_listens_when_the_key_is_empty() -> None:
    stop = asyncio.Event()
    http = HttpServer(settings=HttpSettings(listen=""), health=Health())
    await http.run(stop.set, stop)
    assert http.address is None
