"""Membership liveness: whether the group coordinator confirms this member's heartbeats, and how a failed member leaves.

A coordinator that receives no heartbeat for a session reassigns the member's shards and cannot notify it. aiokafka does
not report this, and waits for every response as long as for that of a join, which takes as long as a rebalance. So
heartbeat responses are recorded here, and only joins get the long time-out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest

from mail.log.kafka.error_messages import error_message

_LEAVE_SECONDS = 5.0
_CANCEL_SECONDS = 1.0


class MemberLiveness:
    """`join_seconds`: time-out of a join."""

    def __init__(self, session_seconds: float, join_seconds: float, clock: Callable[[], float]) -> None:
        self._session_seconds = session_seconds
        self._join_seconds = join_seconds
        self._clock = clock
        self._heartbeat_at = float("-inf")
        self._attached_at = float("-inf")

    def record_heartbeat(self) -> None:
        self._heartbeat_at = self._clock()

    @property
    def is_alive(self) -> bool:
        """Whether a heartbeat was confirmed within a session, so that this member still owns its shards."""
        return self._clock() - self._heartbeat_at <= self._session_seconds

    def failure(self, consumer: AIOKafkaConsumer) -> str | None:
        """Why aiokafka's membership has failed, if it has: a task has ended, or no heartbeat was confirmed for longer
        than a session and a join. Its heartbeat and coordination tasks end at any unknown error, and then only repeat
        that error; its metadata task ends silently.
        """
        coordinator: Any = consumer._coordinator
        heartbeat = coordinator._heartbeat_task
        if heartbeat is not None and heartbeat.done() and not heartbeat.cancelled() and heartbeat.exception():
            return _end_of("heartbeat", heartbeat)
        if coordinator._coordination_task.done():
            return _end_of("coordination", coordinator._coordination_task)
        if consumer._client._sync_task.done():
            return _end_of("metadata", consumer._client._sync_task)
        seconds = self._clock() - max(self._heartbeat_at, self._attached_at)
        is_hung = seconds > self._session_seconds + self._join_seconds
        return f"no heartbeat confirmed for {seconds:.0f} s" if is_hung else None

    def attach(self, consumer: AIOKafkaConsumer) -> None:
        """Record the heartbeats of a consumer that has started as a member."""
        coordinator: Any = consumer._coordinator
        client: Any = consumer._client
        self._attached_at = self._clock()
        do_heartbeat, send = coordinator._do_heartbeat, client.send

        async def heartbeat() -> bool:
            sent_at = self._clock()  # the session runs from when the coordinator received it, not earlier
            is_member = bool(await do_heartbeat())
            if is_member:
                self._heartbeat_at = max(self._heartbeat_at, sent_at)
            return is_member

        async def send_with_timeout(node: Any, request: Any, **group: Any) -> Any:
            if not isinstance(request, JoinGroupRequest | SyncGroupRequest):
                return await send(node, request, **group)
            return await self._send_join(client, send, node, request, group)

        coordinator._do_heartbeat = heartbeat
        client.send = send_with_timeout

    async def _send_join(self, client: Any, send: Any, node: Any, request: Any, group: dict[str, Any]) -> Any:
        await client.ready(node, **group)
        connection = client._conns.get((node, group.get("group")))
        if connection is None:
            return await send(node, request, **group)
        request_timeout, connection._request_timeout = connection._request_timeout, self._join_seconds
        try:
            return await send(node, request, **group)
        finally:
            connection._request_timeout = request_timeout


async def leave_group(consumer: AIOKafkaConsumer, *, is_hung: bool = False) -> None:
    """Leave the group and stop the consumer and all its tasks, even if they have failed or hang."""
    coordinator: Any = consumer._coordinator
    client: Any = consumer._client
    tasks = [] if coordinator is None else [coordinator._coordination_task, coordinator._heartbeat_task]
    if is_hung and tasks:
        # Otherwise leaving would wait for this task, and the other members for the end of our session.
        await _cancel_task(tasks[0])
    if client._sync_task is not None and client._sync_task.done():
        client._sync_task = None  # otherwise close would raise its error before it closes any connection
    with suppress(Exception):
        await asyncio.wait_for(consumer.stop(), _LEAVE_SECONDS)
        return
    for task in (*tasks, client._sync_task):
        if task is not None:
            await _cancel_task(task)
    client._sync_task = None
    for part in (consumer._fetcher, client):
        if part is not None:
            with suppress(Exception):
                await asyncio.wait_for(part.close(), _CANCEL_SECONDS)


def _end_of(name: str, task: asyncio.Task[Any]) -> str:
    error = None if task.cancelled() else task.exception()
    return f"the client's {name} task ended" + ("" if error is None else f": {error_message(error)}")


async def _cancel_task(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=_CANCEL_SECONDS)
