"""Tests of the outbound connection with a transport that stops accepting data."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from delivery.client_session import ClientSession
from delivery.connection import SLICE_BYTES, Connection
from delivery.peer import PeerKey
from delivery.timeouts import Timeouts
from mail.route import RelayProtocol
from tests.support.builders.delivery import envelope

_CONTENT = b"Subject: large\r\n\r\n" + b"x\r\n" * SLICE_BYTES


class _Transport(asyncio.Transport):
    """Pauses writing after each slice. `buffered`: octets that it did not pass to the kernel; `failing`: the next write
    fails, and `sock` has what the server sent before.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.written = b""
        self.aborted = False
        self.buffered = 0
        self.failing = False
        self.sock: socket.socket | None = None

    def write(self, data: Any) -> None:
        if self.failing:
            self.aborted = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, ConnectionResetError())
            return
        self.written += data
        if len(data) == SLICE_BYTES:
            self.connection.pause_writing()

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high == 0 and self.buffered:
            self.connection.pause_writing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.sock if name == "socket" else default

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True


def _ready_connection(
    ehlo_reply: bytes, protocol: RelayProtocol = RelayProtocol.SMTP, loop: Any = None
) -> tuple[Connection, _Transport]:
    session = ClientSession("us.test", "remote", protocol)
    own_loop = loop or asyncio.get_running_loop()
    connection = Connection(PeerKey("mx:remote", "us.test"), session, Timeouts(), lambda _: None, own_loop)
    transport = _Transport(connection)
    connection.connection_made(transport)
    connection.data_received(b"220 remote\r\n")
    connection.data_received(ehlo_reply)
    return connection, transport


async def _connection_in_content(content: bytes = _CONTENT) -> tuple[Connection, _Transport, asyncio.Task[Any]]:
    connection, transport = _ready_connection(b"250-remote\r\n250 PIPELINING\r\n")
    task = asyncio.create_task(connection.transact(envelope("a@remote.test"), content))
    await asyncio.sleep(0)
    connection.data_received(b"250 ok\r\n250 ok\r\n354 go\r\n")
    return connection, transport, task


async def test_attempt_is_cancelled_while_content_is_sent() -> None:
    connection, transport, task = await _connection_in_content()
    assert len(transport.written) < len(_CONTENT)
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


def _server_that_said(data: bytes) -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data)
    return ours


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        (b"554 5.7.1 listed\r\n", "554 5.7.1 listed"),
        (b"452 4.3.1 disk full\r\n", "452 4.3.1 disk full"),
        (b"421 4.3.2 closing\r\n", "421 4.3.2 closing"),
        (b"554 5.7.1 lis", "451 4.4.2 remote: connection lost (ConnectionResetError) (while sending the content)"),
        (b"", "451 4.4.2 remote: connection lost (ConnectionResetError) (while sending the content)"),
    ],
)
async def test_reply_that_arrived_before_a_failed_write_is_the_verdict(said: bytes, reply: str) -> None:
    connection, transport, task = await _connection_in_content()
    with _server_that_said(said) as transport.sock:
        transport.failing = True
        connection.resume_writing()
        result = await task
    assert [str(outcome.reply) for outcome in result.outcomes] == [reply]
    assert not result.dot_sent


async def test_reply_before_a_failed_command_is_no_verdict() -> None:
    """The command was not sent, so the reply is not about it; the text has it for the operator."""
    connection, transport = _ready_connection(b"250 remote\r\n")
    with _server_that_said(b"554 5.7.1 too many messages\r\n") as transport.sock:
        transport.failing = True
        result = await connection.transact(envelope("a@remote.test"), b"x\r\n")
    assert result.connection_lost
    assert "451 4.4.2" in str(result.outcomes[0].reply)
    assert "554 5.7.1 too many messages" in result.outcomes[0].reply.text


async def test_message_is_sent_whole_only_when_no_octet_is_left_here() -> None:
    connection, transport = _ready_connection(b"250-remote\r\n250 PIPELINING\r\n")
    task = asyncio.create_task(connection.transact(envelope("a@remote.test"), b"Subject: x\r\n\r\n"))
    await asyncio.sleep(0)
    transport.buffered = 20
    connection.data_received(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert transport.written.endswith(b"\r\n.\r\n")
    assert not connection.session.dot_sent
    connection.connection_lost(None)
    result = await task
    assert not result.dot_sent
    assert result.open == (0,)  # another exchanger may be asked
    assert "get it twice" not in result.outcomes[0].reply.text


async def test_connection_is_not_reused_if_content_is_refused_while_its_tail_is_buffered() -> None:
    """The next MAIL would follow the tail, which the server may parse as commands."""
    connection, transport, task = await _connection_in_content()
    transport.buffered = 20
    for _ in range(3):
        connection.resume_writing()
    assert transport.written.endswith(b"\r\n.\r\n")
    assert not connection.session.dot_sent
    connection.data_received(b"554 5.7.1 listed\r\n")
    assert [str(outcome.reply) for outcome in (await task).outcomes] == ["554 5.7.1 listed"]
    assert not connection.usable
    assert transport.aborted


async def test_message_is_sent_whole_when_the_transport_has_written_it() -> None:
    connection, transport, task = await _connection_in_content(b"Subject: x\r\n\r\n")
    assert connection.session.dot_sent
    connection.data_received(b"250 2.0.0 ok\r\n")
    await task
    transport.buffered = 20
    task = asyncio.create_task(connection.transact(envelope("a@remote.test"), b"Subject: x\r\n\r\n"))
    await asyncio.sleep(0)
    connection.data_received(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert not connection.session.dot_sent
    transport.buffered = 0
    connection.resume_writing()
    assert connection.session.dot_sent
    connection.connection_lost(None)
    assert (await task).open == ()


async def test_whole_transaction_is_bounded_however_each_reply_is_in_time() -> None:
    """A server that takes 4 minutes for each of 100 replies."""
    loop = FakeClock()
    connection, _ = _ready_connection(b"250 remote\r\n", loop=loop)
    names = [f"r{number}@remote.test" for number in range(100)]
    task = asyncio.create_task(connection.transact(envelope(*names), b"Subject: x\r\n\r\n"))
    await asyncio.sleep(0)
    replies = 0
    while not connection.session.closed:
        loop.now += 240.0
        connection.check_deadline(loop.now)
        connection.data_received(b"250 ok\r\n")
        replies += 1
    assert replies == 4
    result = await task
    assert "the whole transaction takes too long" in result.outcomes[0].reply.text
    assert result.open == tuple(range(100))


async def test_replies_after_the_final_dot_are_bounded_together() -> None:
    loop = FakeClock()
    connection, _ = _ready_connection(b"250-remote\r\n250 PIPELINING\r\n", RelayProtocol.LMTP, loop)
    names = [f"r{number}@remote.test" for number in range(100)]
    task = asyncio.create_task(connection.transact(envelope(*names), b"Subject: x\r\n\r\n"))
    await asyncio.sleep(0)
    loop.now += 290.0
    connection.data_received(b"250 ok\r\n" * 101 + b"354 go\r\n")
    replies = 0
    while not connection.session.closed:
        loop.now += 500.0
        connection.check_deadline(loop.now)
        connection.data_received(b"250 ok\r\n")
        replies += 1
    assert replies == 2
    assert [type(outcome).__name__ for outcome in (await task).outcomes] == ["Delivered"] + ["Deferred"] * 99


class FakeClock:
    """The parts of an event loop that a connection uses."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()
