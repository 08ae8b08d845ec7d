"""140 exchangers that accept a connection and say nothing: mail to a new destination does not wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mail.record import DeliveryAttempted, MessageAccepted
from tests.support.servers.in_memory import InMemoryMailServer
from tests.support.servers.ports import wait_until
from tests.support.servers.scripted_remote import ScriptedRemote, Stall
from tests.support.servers.static_resolver import StaticResolver

pytestmark = pytest.mark.fault

SILENT = 140
NEW = 200
CONTENT = b"Subject: hello\r\n\r\n" + b"x" * 76 + b"\r\n" * 100


@asynccontextmanager
async def mail_server(good: ScriptedRemote, max_connections: int = 500) -> AsyncIterator[InMemoryMailServer]:
    resolver = StaticResolver(addresses={})
    for name, count, address in (("silent", SILENT, "127.0.0.2"), ("new", NEW, "127.0.0.1")):
        for number in range(count):
            resolver.mx_records[f"{name}{number}.test"] = [(10, f"mx.{name}{number}.test")]
            resolver.address_records[f"mx.{name}{number}.test"] = [address]
    settings = {"delivery": {"mx_port": good.port, "max_connections": max_connections}}
    async with InMemoryMailServer(settings, resolver=resolver) as server:
        yield server


async def seconds_to_new_destinations(server: InMemoryMailServer) -> list[float]:
    """From acceptance to the end of the attempt, for one message to each new destination, one after another."""
    seconds = []
    for number in range(NEW):
        queue_id = await server.send(CONTENT, to=[f"user@new{number}.test"])
        details = await server.wait_closed(queue_id)
        (accepted,) = (detail for detail in details if isinstance(detail, MessageAccepted))
        (attempt,) = (detail for detail in details if isinstance(detail, DeliveryAttempted))
        seconds.append((attempt.started + attempt.duration - accepted.message.received).total_seconds())
    return sorted(seconds)


@pytest.mark.timeout(120)
async def test_new_destinations_do_not_wait_for_silent_exchangers() -> None:
    async with ScriptedRemote() as good, mail_server(good) as server:
        before = await seconds_to_new_destinations(server)
    async with (
        ScriptedRemote() as good,
        ScriptedRemote({"GREETING": [Stall()]}, host="127.0.0.2", port=good.port) as silent,
        mail_server(good) as server,
    ):
        for _ in range(2):
            await asyncio.gather(*(server.send(CONTENT, to=[f"user@silent{number}.test"]) for number in range(SILENT)))
        await wait_until(lambda: len(silent.sessions) >= SILENT, what="the connections to the silent exchangers")
        during = await seconds_to_new_destinations(server)
        assert len(silent.sessions) == SILENT  # one connection to each
        assert silent.open_connections == SILENT
    for name, seconds in (("without silent exchangers", before), (f"with {SILENT}", during)):
        print(f"{name}: p50 {seconds[NEW // 2]:.3f} s, p99 {seconds[NEW * 99 // 100]:.3f} s, max {seconds[-1]:.3f} s")
