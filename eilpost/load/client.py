"""SMTP client connection that sends commands and returns whole replies in order.

Waiting for a reply on a closed connection raises ConnectionLost. The caller sets time limits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from delivery.reply_parser import MalformedReply, ReplyParser, ServerReply

_MAX_UNREAD = 1000  # unread replies; a transaction has at most 102
_MAX_UNREAD_BYTES = 1 << 20


class ConnectionLost(Exception):
    """The server closed the connection, violated the protocol, or sent far more replies than commands."""


class Client(asyncio.Protocol):
    def __init__(self) -> None:
        self.pipelining = False
        self.supports_size = False
        self.is_closed = False
        self._reader = ReplyParser()
        self._replies: deque[ServerReply] = deque()
        self._unread_bytes = 0  # since the last time all replies were read
        self._has_news = asyncio.Event()  # a reply, or the end of the connection
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._close_reason = "the server closed the connection"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        try:
            self._replies.extend(self._reader.feed(data))
        except MalformedReply as error:
            self._replies.extend(error.replies)
            self._close_reason = str(error)
            self.transport.abort()
        self._unread_bytes += len(data)
        if len(self._replies) > _MAX_UNREAD or self._unread_bytes > _MAX_UNREAD_BYTES:
            self._close_reason = "unexpected replies"
            self._replies.clear()
            self.transport.abort()
        self._has_news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        if exc is not None:
            self._close_reason = str(exc) or type(exc).__name__
        self._can_write.set()
        self._has_news.set()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    @property
    def is_idle(self) -> bool:
        """Whether it is open and the server has sent no unsolicited reply (421 on time-out)."""
        return not self.is_closed and not self._replies

    def write(self, *parts: bytes) -> None:
        if not self.is_closed:
            self.transport.writelines(parts)

    async def drain(self) -> None:
        """Wait until most of the written data is sent, or the connection is closed."""
        await self._can_write.wait()

    async def reply(self) -> ServerReply:
        """The next reply. Raises ConnectionLost."""
        while not self._replies:
            if self.is_closed:
                raise ConnectionLost(self._close_reason)
            self._has_news.clear()
            await self._has_news.wait()
        reply = self._replies.popleft()
        if not self._replies:
            self._unread_bytes = 0
        return reply

    async def command(self, line: bytes) -> ServerReply:
        self.write(line)
        return await self.reply()

    async def greet(self, name: str) -> ServerReply:
        """The reply to EHLO, or the greeting if it was not 220."""
        greeting = await self.reply()
        if greeting.code != 220:
            return greeting
        hello = await self.command(f"EHLO {name}\r\n".encode())
        keywords = {line.split(b" ", 1)[0].upper() for line in hello.lines[1:]}
        self.pipelining = b"PIPELINING" in keywords
        self.supports_size = b"SIZE" in keywords
        return hello
