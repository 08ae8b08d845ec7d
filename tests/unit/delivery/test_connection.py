"""Tests of the outbound connection with a transport that stops accepting data."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from delivery.client_session import ClientSession, Timeouts
from delivery.connection import SLICE_BYTES, Connection
from delivery.peer import PeerKey
from tests.support.builders.delivery import envelope

_CONTENT = b"Subject: large\r\n\r\n" + b"x\r\n" * SLICE_BYTES


class _Transport(asyncio.Transport):
    """Pauses writing after each write."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.written = b""
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written += data
        if len(data) == SLICE_BYTES:
            self.connection.pause_writing()

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


async def _connection_in_content() -> tuple[Connection, _Transport, asyncio.Task[Any]]:
    session = ClientSession("us.test", "remote")
    connection = Connection(PeerKey("mx:remote"), session, Timeouts(), lambda _: None, asyncio.get_running_loop())
    transport = _Transport(connection)
    connection.connection_made(transport)
    connection.data_received(b"220 remote\r\n250-remote\r\n250 PIPELINING\r\n")
    task = asyncio.create_task(connection.transact(envelope("a@remote.test"), _CONTENT))
    await asyncio.sleep(0)
    connection.data_received(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert len(transport.written) < len(_CONTENT)
    return connection, transport, task


async def test_attempt_is_cancelled_while_content_is_sent() -> None:
    connection, transport, task = await _connection_in_content()
    assert not connection.session.dot_sent
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert transport.aborted


async def test_attempt_is_not_cancelled_after_the_last_slice() -> None:
    connection, transport, task = await _connection_in_content()
    for _ in range(3):
        assert not connection.session.dot_sent
        connection.resume_writing()
    assert transport.written.endswith(b"\r\n.\r\n")
    assert connection.session.dot_sent
    task.cancel()
    await asyncio.sleep(0)
    connection.data_received(b"250 2.0.0 ok\r\n")
    assert [str(outcome.reply) for outcome in (await task).outcomes] == ["250 2.0.0 ok"]
