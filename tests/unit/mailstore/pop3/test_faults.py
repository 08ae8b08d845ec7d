"""POP3 when the connection, the directory or the store fails: no message is deleted or truncated."""

from __future__ import annotations

import asyncio
import socket
import struct
from datetime import timedelta

import pytest
import uvloop
from structlog.testing import capture_logs

from mail.message import DeliveryId
from mail.settings import NodeSettings
from mailstore.memory import MemoryMailboxes
from tests.support.clients.pop3 import LOG_IN, OWNER, FailingMailboxes, exchange, log_in, make_directory, running_pop3
from tests.support.servers.ports import wait_until


@pytest.mark.parametrize("disconnect", ["close", "abort", "half"])
async def test_lost_connection_deletes_nothing(mailboxes: MemoryMailboxes, disconnect: str) -> None:
    async with running_pop3(mailboxes) as role:
        reader, writer = await log_in(role)
        writer.write(b"DELE 1\r\nDELE 2\r\nRETR 1\r\n")
        await reader.readline()
        match disconnect:
            case "close":
                writer.close()
            case "abort":
                writer.transport.abort()
            case "half":
                writer.write_eof()
        await wait_until(lambda: not mailboxes.locked)
        assert len(await mailboxes.messages(OWNER)) == 2
        writer.close()


async def test_disconnect_after_quit_still_deletes(mailboxes: MemoryMailboxes) -> None:
    async with running_pop3(mailboxes) as role:
        _reader, writer = await log_in(role)
        writer.write(b"DELE 1\r\nQUIT\r\n")
        writer.close()
        await wait_until(lambda: not mailboxes.locked)
        assert [stored.uid for stored in await mailboxes.messages(OWNER)] == ["B-0"]


async def test_unavailable_directory_or_store_is_a_temporary_error(mailboxes: MemoryMailboxes) -> None:
    directory = make_directory()
    async with running_pop3(mailboxes, directory=directory) as role:
        directory.is_down = True
        assert b"-ERR [SYS/TEMP]" in await exchange(role, LOG_IN + b"QUIT\r\n")
        directory.is_down = False
        role.services.mailboxes = FailingMailboxes(mailboxes, method="messages")
        assert b"-ERR [SYS/TEMP]" in await exchange(role, LOG_IN + b"QUIT\r\n")
        assert not mailboxes.locked
        role.services.mailboxes = FailingMailboxes(mailboxes, method="expunge")
        assert (await exchange(role, LOG_IN + b"DELE 1\r\nQUIT\r\n")).endswith(
            b"-ERR [SYS/TEMP] some deleted messages were not removed\r\n"
        )
        role.services.mailboxes = FailingMailboxes(mailboxes, method="mark_seen")
        answers = await exchange(role, LOG_IN + b"RETR 1\r\nDELE 2\r\nQUIT\r\n")
        assert answers.endswith(b"+OK bye\r\n")  # the deletion succeeded; a missing flag is only logged
        assert [stored.uid for stored in await mailboxes.messages(OWNER)] == ["A-0"]
        role.services.mailboxes = FailingMailboxes(mailboxes, method="read")
        answers = await exchange(role, LOG_IN + b"RETR 1\r\nNOOP\r\nQUIT\r\n")
        assert answers.endswith(b"-ERR [SYS/TEMP] message not available, try again later\r\n+OK\r\n+OK bye\r\n")


async def test_session_in_a_command_is_aborted_after_the_drain_time(mailboxes: MemoryMailboxes) -> None:
    is_reading = asyncio.Event()

    class HangingMailboxes(MemoryMailboxes):
        async def read(self, owner: str, uid: str, start: int = 0, limit_bytes: int | None = None) -> bytes:
            is_reading.set()
            await asyncio.Event().wait()
            raise AssertionError

    with capture_logs() as lines:
        async with running_pop3(mailboxes, node=NodeSettings(drain_timeout="50ms")) as role:
            reader, writer = await log_in(role)
            role.services.mailboxes = HangingMailboxes()
            writer.write(b"RETR 1\r\n")
            await asyncio.wait_for(is_reading.wait(), 10)
        assert b"\r\n.\r\n" not in await asyncio.wait_for(reader.read(), 10)
        writer.close()
    (line,) = [line for line in lines if line["event"] == "drain timed out"]
    assert (line["role"], line["listener"], line["sessions_aborted"]) == ("mailstore", "pop3", 1)


async def test_interrupted_message_has_no_final_dot(mailboxes: MemoryMailboxes) -> None:
    await mailboxes.append(OWNER, DeliveryId("C-0"), b"line\r\n" * 100_000)
    async with running_pop3(mailboxes) as role:
        role.services.mailboxes = FailingMailboxes(mailboxes, method="read", successes=2)
        reader, writer = await log_in(role)
        writer.write(b"RETR 3\r\n")
        received = b""
        try:
            while data := await asyncio.wait_for(reader.read(65536), 10):
                received += data
        except ConnectionResetError:
            pass
        assert not received.endswith(b"\r\n.\r\n")
        assert len(received) < 600_000
        writer.close()


async def test_reset_after_pipelined_commands_is_a_disconnect(mailboxes: MemoryMailboxes) -> None:
    """uvloop, which serves in production, raises RuntimeError for a write to a connection that was reset."""

    async def reset_while_the_password_is_checked() -> list[str]:
        with capture_logs() as lines:
            async with running_pop3(mailboxes, failure_delay=timedelta(seconds=0.1)) as role:
                with socket.create_connection(("127.0.0.1", role.port)) as client:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
                    client.sendall(b"USER alice@example.test\r\nPASS no\r\n" + b"CAPA\r\n" * 20)
                    await wait_until(lambda: any(line["event"] == "login" for line in lines))
                await wait_until(lambda: any(line["event"] == "pop3 session ended" for line in lines))
        return [line["end"] for line in lines if "end" in line] + [
            line["event"] for line in lines if "exc_info" in line
        ]

    assert await asyncio.to_thread(uvloop.run, reset_while_the_password_is_checked()) == ["disconnected"]
