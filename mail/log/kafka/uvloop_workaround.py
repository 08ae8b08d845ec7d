"""Workaround for uvloop: a write to a connection that was just reset raises KafkaConnectionError, not RuntimeError.

uvloop raises RuntimeError until the protocol has been notified of the reset, two loop iterations later; asyncio's loop
does not. The RuntimeError ends any aiokafka task, and after the end of the metadata task every wait for metadata is
endless: finding the coordinator, assigning shards, following a moved partition. A process that was stopped while its
connections were reset nearly always encounters it, because all its timers are due in the iteration in which it is
notified.
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
    """Install the workaround in an AIOKafkaClient that has not started."""
    connect, bootstrap = client._get_conn, client.bootstrap

    async def safe_connect(node: Any, **options: Any) -> AIOKafkaConnection | None:
        try:
            connection: AIOKafkaConnection | None = await connect(node, **options)
        except RuntimeError:  # reset while it was being established
            client.force_metadata_update()
            return None
        if connection is not None and "send" not in vars(connection):
            connection.send = _safe_send(connection)
        return connection

    async def safe_bootstrap() -> None:
        try:
            try:
                await bootstrap()
            except RuntimeError:  # from one address; aiokafka has not tried the others
                await bootstrap()
        except RuntimeError as error:
            raise KafkaConnectionError(str(error)) from error

    client._get_conn, client.bootstrap = safe_connect, safe_bootstrap


async def stop_or_abort(stopping: Awaitable[object], client: Any, seconds: float) -> None:
    """Wait `seconds` for the owner of an AIOKafkaClient to stop, then close all its connections."""
    try:
        with suppress(Exception):
            await asyncio.wait_for(stopping, seconds)
    finally:
        if client._sync_task is not None:
            client._sync_task.cancel()
        for connection in client._conns.values():
            connection.close()


def _safe_send(connection: AIOKafkaConnection) -> Callable[..., Any]:
    reference = weakref.ref(connection)  # no cycle: aiokafka relies on reference counting to free a connection

    def send(request: Any, expect_response: bool = True) -> Any:
        connection = reference()
        assert connection is not None
        try:
            return type(connection).send(connection, request, expect_response)
        except RuntimeError as error:
            connection.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)
            raise KafkaConnectionError(f"Connection at {connection.host}:{connection.port} broken: {error}") from error

    return send
