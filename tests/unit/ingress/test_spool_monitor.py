"""New mail is refused while the spool is full or fails, and accepted again afterwards."""

from __future__ import annotations

import asyncio

import pytest

from ingress.spool_monitor import SpoolMonitor
from mail.spool import SpoolUnavailable
from mail.tasks import background
from tests.support.servers.ingress import StubSpool, running_ingress
from tests.support.servers.ports import wait_until

FULL = "452 4.3.1 Insufficient system storage, try again later"
FAILED = "451 4.3.0 Local error, try again later"


@pytest.mark.parametrize("fault", ["full", "fails", "hangs"])
async def test_mail_gets_4xx_while_the_spool_is_unusable(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr("ingress.spool_monitor.CHECK_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr("ingress.spool_monitor.CHECK_TIMEOUT_SECONDS", 0.05)
    hangs = asyncio.Event()
    hangs.set()

    async def free(self: StubSpool) -> int | None:
        await hangs.wait()
        if self.free_bytes_error is not None:
            raise self.free_bytes_error
        return self.free_space

    monkeypatch.setattr(StubSpool, "free_bytes", free)
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("EHLO x")
        match fault:
            case "full":
                server.spool.free_space = 1 << 20
            case "fails":
                server.spool.free_bytes_error = SpoolUnavailable("read-only")
            case _:
                hangs.clear()
        mail = "MAIL FROM:<alice@example.test>"
        expected = FULL if fault == "full" else FAILED

        async def is_refused() -> bool:
            await client.command("RSET")
            return await client.command(mail) == expected

        await wait_until(is_refused)
        server.spool.free_space, server.spool.free_bytes_error = 1 << 40, None
        hangs.set()

        async def is_accepted() -> bool:
            return (await client.command(mail)).startswith("250")

        await wait_until(is_accepted)


async def test_check_that_raises_an_unexpected_error_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.spool_monitor.CHECK_INTERVAL_SECONDS", 0.001)
    spool = StubSpool()
    spool.free_space = 0
    monitor = SpoolMonitor(spool, 1)
    async with background(monitor.run()):
        await wait_until(lambda: monitor.refusal is not None)
        spool.free_bytes_error = OverflowError("a bug")
        await asyncio.sleep(0.01)
        spool.free_space, spool.free_bytes_error = 1 << 40, None
        await wait_until(lambda: monitor.refusal is None)
