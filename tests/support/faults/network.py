"""Cuttable network between one process and its brokers.

During a cut, outgoing data is buffered, incoming data is not read, and connecting hangs. A cut ends `whole`
(connections live and buffered data is sent, as after a TCP retransmission) or `reset` (connections are aborted). SMTP,
HTTP and POP3 connections are not affected.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from weakref import WeakSet


class Network:
    """The Kafka connections of this process."""

    def __init__(self) -> None:
        self._connections: WeakSet[_CuttableWriter] = WeakSet()
        self._restored: asyncio.Event | None = None

    @property
    def is_cut(self) -> bool:
        return self._restored is not None

    def cut(self, seconds: float, reset: bool) -> None:
        self._restored = asyncio.Event()
        for writer in list(self._connections):
            writer.pause()
        asyncio.get_running_loop().call_later(seconds, self._restore, reset)

    def _restore(self, reset: bool) -> None:
        restored, self._restored = self._restored, None
        for writer in list(self._connections):
            writer.resume(reset)
        if restored is not None:
            restored.set()

    async def wait(self) -> None:
        """Block a new connection while the network is cut."""
        if self._restored is not None:
            await self._restored.wait()

    def install(self) -> None:
        from aiokafka.conn import AIOKafkaConnection

        lookup = AIOKafkaConnection._do_version_lookup

        async def looking(connection: Any) -> None:
            # The first call of a new connection. The kernel's handshake is not held back; no data passes.
            connection._writer = writer = _CuttableWriter(connection._writer)
            self._connections.add(writer)
            if self.is_cut:
                writer.pause()
                await asyncio.wait_for(self.wait(), connection._request_timeout)
            await lookup(connection)

        AIOKafkaConnection._do_version_lookup = looking


class _CuttableWriter:
    """A StreamWriter whose two directions can be cut."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._held: list[bytes] | None = None

    def write(self, data: bytes) -> None:
        if self._held is None:
            self._writer.write(data)
        else:
            self._held.append(bytes(data))

    def pause(self) -> None:
        if self._held is None:
            self._held = []
            with suppress(RuntimeError):
                self._writer.transport.pause_reading()

    def resume(self, reset: bool) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        if reset:
            self._writer.transport.abort()
            return
        for data in held:
            self._writer.write(data)
        with suppress(RuntimeError):
            self._writer.transport.resume_reading()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)
