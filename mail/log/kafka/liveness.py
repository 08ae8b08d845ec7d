"""Whether the group hears its member: the one thing that says that nobody else has been given its shards; and how a
member ends that cannot be heard any more.

A coordinator that got no heartbeat for a session gives the member's shards to others, and cannot tell it so. aiokafka
goes on as before: it only looks for another coordinator, and waits for every answer as long as for that of a join,
which takes as long as a rebalance. So the answers to heartbeats are seen here, and only a join is waited for that long.
Belongs to `membership.py`, and knows no shard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest

_LEAVE_SECONDS = 5.0
_END_SECONDS = 1.0


class MemberLiveness:
    """`join_seconds`: how long the answer to a join may take."""

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
        """Whether the group has heard this member within a session, so that its shards are still its own."""
        return self._clock() - self._heartbeat_at <= self._session_seconds

    @property
    def is_hung(self) -> bool:
        """Whether the group has not answered for so long that this member hangs: longer than any join takes."""
        silent_seconds = self._clock() - max(self._heartbeat_at, self._attached_at)
        return silent_seconds > self._session_seconds + self._join_seconds

    def has_failed(self, consumer: AIOKafkaConsumer) -> bool:
        """Whether aiokafka has stopped telling the group that we live, or would wait for ever at the next rebalance.
        Its heartbeat ends at any error it does not know, and its coordination with it, and it only repeats the error;
        its look-out for metadata ends without a word. Or it waits for ever already.
        """
        coordinator: Any = consumer._coordinator
        beat = coordinator._heartbeat_task
        ended = beat is not None and beat.done() and not beat.cancelled() and beat.exception() is not None
        ends = coordinator._coordination_task.done() or consumer._client._sync_task.done()
        return bool(ended or ends or self.is_hung)

    def attach(self, consumer: AIOKafkaConsumer) -> None:
        """To a consumer that has started as a member."""
        coordinator: Any = consumer._coordinator
        client: Any = consumer._client
        self._attached_at = self._clock()
        beat, send = coordinator._do_heartbeat, client.send

        async def heartbeat() -> bool:
            began = self._clock()
            is_member = await beat()
            if is_member:
                self._heartbeat_at = max(
                    self._heartbeat_at, began
                )  # the session runs from when it was heard: not before this
            return bool(is_member)

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
        usual, connection._request_timeout = connection._request_timeout, self._join_seconds
        try:
            return await send(node, request, **group)
        finally:
            connection._request_timeout = usual


async def leave_group(consumer: AIOKafkaConsumer, *, is_hung: bool = False) -> None:
    """Leave the group and end the consumer, one whose tasks have ended in errors or hang included. Whatever comes of
    it, nothing of it comes back as a member that tends nothing.
    """
    coordinator: Any = consumer._coordinator
    client: Any = consumer._client
    tasks = [] if coordinator is None else [coordinator._coordination_task, coordinator._heartbeat_task]
    if is_hung and tasks:
        # Or leaving would wait for it, and the others for the end of our session.
        await _cancel_task(tasks[0])
    if client._sync_task is not None and client._sync_task.done():
        client._sync_task = None  # or closing would raise its error, before any connection is closed
    with suppress(Exception):
        await asyncio.wait_for(consumer.stop(), _LEAVE_SECONDS)
        return
    for task in (*tasks, client._sync_task):
        if task is not None:
            await _cancel_task(task)
    client._sync_task = None
    for close in (consumer._fetcher.close, client.close) if consumer._fetcher is not None else (client.close,):
        with suppress(Exception):
            await asyncio.wait_for(close(), _END_SECONDS)


async def _cancel_task(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=_END_SECONDS)
