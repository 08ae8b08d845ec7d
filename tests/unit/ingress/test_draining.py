"""Start and shutdown of ingress: refused settings, and open sessions at shutdown."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from mail.service import ServiceError
from mail.settings import NodeSettings
from tests.support.servers.ingress import RunningIngress, running_ingress


async def test_draining_sends_421_when_idle_and_finishes_messages_in_progress() -> None:
    server = RunningIngress(node=NodeSettings(hostname="mx.example.test", drain_timeout="20s"))
    await server.start()
    idle, busy = await server.connect(), await server.connect()
    await idle.read_reply()
    await busy.start_data()
    server.stop.set()
    assert await idle.read_reply() == "421 4.3.2 Shutting down, try again later"
    assert await idle.read_to_end() == b""
    assert (await busy.command("Subject: x\r\n\r\n.")).startswith("250 ")
    assert await busy.read_reply() == "421 4.3.2 Shutting down, try again later"
    await server.close()
    assert len(server.log.accepted) == 1


async def test_draining_waits_for_quit_after_250() -> None:
    """Python's smtplib treats 421 in reply to QUIT as a failure, and its caller sends the accepted message again."""
    server = RunningIngress(node=NodeSettings(hostname="mx.example.test", drain_timeout="20s"))
    await server.start()
    done, busy, idle = await server.connect(), await server.connect(), await server.connect()
    await done.start_data()
    assert (await done.command("Subject: x\r\n\r\n.")).startswith("250 ")
    await busy.start_data()
    await idle.read_reply()
    server.stop.set()
    with suppress(ConnectionError):  # connections are refused once the drain has begun
        while True:
            await server.connect()
    assert (await done.command("QUIT")).startswith("221 ")
    assert (await idle.read_reply()).startswith("421 ")  # the time for QUIT is over
    assert (await busy.command("Subject: x\r\n\r\n.")).startswith("250 ")
    assert (await busy.command("QUIT")).startswith("221 ")
    await server.close()


async def test_draining_aborts_sessions_after_the_drain_time() -> None:
    server = RunningIngress(node=NodeSettings(hostname="mx.example.test", drain_timeout="100ms"))
    await server.start()
    client = await server.connect()
    await client.start_data()
    client.send(b"Subject: x\r\n")
    with capture_logs() as lines:
        await asyncio.wait_for(server.close(), 10)
    assert [line["sessions_aborted"] for line in lines if line["event"] == "drain timed out"] == [1]
    assert await client.read_to_end() == b"421 4.3.2 Shutting down, try again later\r\n"
    assert server.log.accepted == []
    assert server.ingress.connections == set()


async def test_port_in_use_is_a_service_error() -> None:
    async with running_ingress() as server:
        host, port = server.ingress.bound_addresses["mx"]
        with pytest.raises(ServiceError, match=r"ingress\.smtp_listen"):
            await RunningIngress(smtp_listen=f"{host}:{port}").start()


def test_invalid_relay_network_is_a_service_error() -> None:
    with pytest.raises(ServiceError, match=r"ingress\.relay_networks.*10\.0\.0\.1/8"):
        RunningIngress(relay_networks=["10.0.0.1/8"])
