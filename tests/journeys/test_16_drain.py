"""Journey 16: SIGTERM, as Kubernetes sends it, to a process that accepts and delivers mail at the same time.

An idle client gets 421 4.3.2, a client inside its message is served, and new clients are refused. A delivery before its
final dot is aborted and retried after the next start; one after its final dot is completed and reported once. A second
SIGTERM ends the process at once without loss.
"""

from __future__ import annotations

import asyncio
import signal
import smtplib
from pathlib import Path

import pytest

from tests.support.servers.eilpost_process import EilpostProcess
from tests.support.servers.ports import wait_until
from tests.support.servers.scripted_remote import ScriptedRemote, Stall, Wait

pytestmark = pytest.mark.timeout(120)


def make(home: Path, remote: ScriptedRemote) -> EilpostProcess:
    relayed = {"relay": f"smtp://127.0.0.1:{remote.port}"}
    return EilpostProcess(
        home, {"node": {"drain_timeout": "60s"}, "delivery": relayed, "router": {"retry_delays": ["1s"]}}
    )


async def send(box: EilpostProcess, recipient: str) -> None:
    def one() -> None:
        with smtplib.SMTP("127.0.0.1", box.mx) as client:
            client.sendmail("me@elsewhere.test", recipient, f"Subject: {recipient}\n\nx\n")

    await asyncio.to_thread(one)


async def test_drain_ends_idle_sessions_and_completes_active_ones(tmp_path: Path) -> None:
    answer = asyncio.Event()
    script = {"MAIL": ["250 ok", Stall(), "250 ok"], "DOT": [Wait(answer, "250 2.0.0 taken"), "250 2.0.0 taken"]}
    async with ScriptedRemote(script) as remote:
        box = make(tmp_path, remote)
        try:
            await asyncio.to_thread(box.start)
            await send(box, "past@far.test")
            await remote.wait_command("DOT")
            await send(box, "before@far.test")
            await wait_until(lambda: sum("MAIL" in each for each in remote.commands) == 2, what="a second connection")
            idle = await asyncio.open_connection("127.0.0.1", box.mx)
            busy = await asyncio.open_connection("127.0.0.1", box.mx)
            for reader, _ in (idle, busy):
                assert (await reader.readline()).startswith(b"220 ")
            reader, writer = busy
            for line in ("HELO c", "MAIL FROM:<me@elsewhere.test>", "RCPT TO:<alice@example.test>", "DATA"):
                writer.write(f"{line}\r\n".encode())
                assert (await reader.readline())[:1] in b"23"

            assert box.metric("eilpost_delivery_connections") == 2
            box.signal(signal.SIGTERM)
            assert (await idle[0].read()).startswith(b"421 4.3.2 ")
            await wait_until(
                lambda: box.metric("eilpost_delivery_connections") == 1, what="the end of what is before its dot"
            )
            assert box.get("/readyz")[0] == 503
            with pytest.raises(OSError, match=r"."):
                await asyncio.open_connection("127.0.0.1", box.mx)
            writer.write(b"Subject: x\r\n\r\nx\r\n.\r\n")
            assert (await reader.readline()).startswith(b"250 ")
            assert (await reader.readline()).startswith(b"421 4.3.2 ")
            assert box.is_running
            answer.set()
            assert await asyncio.to_thread(box.wait) == 0
            for _, each in (idle, busy):
                each.close()
            assert "drain timed out" not in box.output()

            await asyncio.to_thread(box.start)
            await remote.wait_messages(2, timeout=30)
            await wait_until(lambda: len(box.maildir("alice")) == 1, what="the message that came in the drain")
            assert [message.rcpts for message in remote.messages] == [["TO:<past@far.test>"], ["TO:<before@far.test>"]]
        finally:
            box.kill()


async def test_second_sigterm_ends_at_once_without_loss(tmp_path: Path) -> None:
    async with ScriptedRemote({"DOT": [Stall(), "250 2.0.0 taken"]}) as remote:
        box = make(tmp_path, remote)
        try:
            await asyncio.to_thread(box.start)
            await send(box, "past@far.test")
            await remote.wait_command("DOT")
            box.signal(signal.SIGTERM)
            await wait_until(lambda: "draining" in box.output(), what="the drain")
            await asyncio.sleep(0.5)
            assert box.is_running
            assert await asyncio.to_thread(box.stop, 15.0) == 0  # the second one
            assert "drain ended by a signal" in box.output()
            await asyncio.to_thread(box.start)
            await remote.wait_messages(1, timeout=30)
        finally:
            box.kill()
