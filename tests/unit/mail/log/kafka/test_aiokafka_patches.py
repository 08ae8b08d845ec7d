"""Patches of aiokafka's connections: errors of uvloop, and the time-out of a join. Also what the versions in the lock
file still do, so that an upgrade shows which workaround can go.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiokafka.client
import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.group import HeartbeatRequest, SyncGroupRequest
from aiokafka.protocol.metadata import MetadataRequest

import mail.log.kafka.access  # noqa: F401  # installs the patches
from mail.log.kafka.timeouts import TIMEOUTS


class Writer:
    """A StreamWriter that keeps what is written, or raises as uvloop's does for a connection that was just reset."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.closed = False

    def write(self, data: bytes) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed = True


def connected(writer: Writer, closed: list[CloseReason]) -> AIOKafkaConnection:
    connection = AIOKafkaConnection("k.test", 9092, on_close=lambda _, reason: closed.append(reason))
    connection._versions = dict.fromkeys(range(50), (0, 9))
    connection._reader, connection._writer = asyncio.StreamReader(), writer
    connection._closed_fut = connection._read_task = asyncio.get_running_loop().create_future()
    return connection


@pytest.mark.parametrize("method", ["send", "_send_sasl_token"])
async def test_a_write_to_a_reset_connection_closes_it_with_a_connection_error(method: str) -> None:
    writer, closed = Writer(RuntimeError("unable to perform operation; the handler is closed")), []
    connection = connected(writer, closed)
    with pytest.raises(KafkaConnectionError, match=r"k\.test:9092 broken"):
        getattr(connection, method)(MetadataRequest([]) if method == "send" else b"token")
    assert writer.closed
    assert closed == [CloseReason.CONNECTION_BROKEN]


async def test_only_a_join_waits_as_long_as_a_rebalance(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def wait_for(_: Any, seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("aiokafka.conn.wait_for", wait_for)
    connection = connected(Writer(), [])
    await connection.send(SyncGroupRequest("group", 1, "member", None, []))
    await connection.send(HeartbeatRequest("group", 1, "member"))
    assert waits == [TIMEOUTS.join_seconds, 40.0]
    connection.close()


async def test_metadata_requests_of_clients_create_no_topics() -> None:
    assert aiokafka.client.MetadataRequest(["a"])._allow_auto_topic_creation is False


def test_uvloop_still_raises_for_a_write_to_a_closed_connection() -> None:
    """When this fails, `raise_connection_error` can go."""

    async def write_after_close() -> None:
        server = await asyncio.start_server(lambda _, accepted: accepted.close(), "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.transport.abort()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        with pytest.raises(RuntimeError, match="the handler is closed"):
            writer.write(b"x")

    uvloop.run(write_after_close())
