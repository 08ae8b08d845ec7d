"""A connection that has just been reset says so in aiokafka's words, so that the client that uses it survives.

uvloop refuses to write to such a connection with a RuntimeError, for the two turns of the loop until aiokafka has heard
of the reset; asyncio's own loop says nothing then. Of every task of aiokafka that meets it this is the end. The worst
is the one that keeps the cluster's metadata: it ends without a sign, and whoever waits for metadata from then on waits
for ever: a member that looks for its group's coordinator, a group's leader before it assigns, a producer whose
partition has moved. A process that was stopped while its connections were reset meets it nearly always: all its timers
are due in the turn in which it hears of the reset.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError


def handle_resets(client: Any) -> None:
    """Let an AIOKafkaClient that has not started take a reset for what it is."""
    connect, bootstrap = client._get_conn, client.bootstrap

    async def safe_connect(node: Any, **options: Any) -> AIOKafkaConnection | None:
        try:
            connection: AIOKafkaConnection | None = await connect(node, **options)
        except RuntimeError:  # it went before it was made
            client.force_metadata_update()
            return None
        if connection is not None and "send" not in vars(connection):
            connection.send = _safe_send(connection)
        return connection

    async def safe_bootstrap() -> None:
        try:
            try:
                await bootstrap()
            except RuntimeError:  # of one address: aiokafka has not tried the others
                await bootstrap()
        except RuntimeError as error:
            raise KafkaConnectionError(str(error)) from error

    client._get_conn, client.bootstrap = safe_connect, safe_bootstrap


async def stop_or_abort(stopping: Awaitable[object], client: Any, seconds: float) -> None:
    """Wait for the owner of an AIOKafkaClient to stop, for so long; whatever comes of it, no connection stays."""
    try:
        with suppress(Exception):
            await asyncio.wait_for(stopping, seconds)
    finally:
        if client._sync_task is not None:
            client._sync_task.cancel()
        for connection in client._conns.values():
            connection.close()


def _safe_send(connection: AIOKafkaConnection) -> Callable[..., Any]:
    reference = weakref.ref(
        connection
    )  # no cycle: aiokafka relies on it that a connection nobody has any more is freed

    def send(request: Any, expect_response: bool = True) -> Any:
        connection = reference()
        assert connection is not None
        try:
            return type(connection).send(connection, request, expect_response)
        except RuntimeError as error:
            connection.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)
            raise KafkaConnectionError(f"Connection at {connection.host}:{connection.port} broken: {error}") from error

    return send
