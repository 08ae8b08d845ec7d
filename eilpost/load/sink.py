"""SMTP server for the destinations of a load; a `Destinations` object chooses replies and receives the messages.

It offers PIPELINING, 8BITMIME, SMTPUTF8, SIZE and ENHANCEDSTATUSCODES, and stores no message. Connections above a limit
get 421.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from eilpost.load.workload import MAX_MESSAGE_BYTES

_LINE_BYTES = 4096
_OUT_BYTES = 65536  # of replies per write
_MAX_CONNECTIONS = 2000
_MAX_BUFFERED_BYTES = 1 << 30  # over all sessions; above it the largest session is closed
_MAX_RECIPIENTS = 1000  # RFC 5321 section 4.5.3.1.8: at least 100
_END = b"\r\n.\r\n"
_EHLO = (
    b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-SIZE %d\r\n250 ENHANCEDSTATUSCODES\r\n"
    % MAX_MESSAGE_BYTES
)


class Destinations(Protocol):
    """The destinations behind the sink."""

    def recipient(self, address: str) -> bytes | None:
        """The 4xx or 5xx reply to RCPT; None: 250."""

    def message(self, sender: str, recipients: list[str], content: bytes) -> bytes | None:
        """The reply to a message, with `content` as received, dot-stuffed; None: 250."""


class Sink:
    """Listens on `hosts`; port 0: a free port, which is used again after a restart."""

    def __init__(self, destinations: Destinations, hosts: tuple[str, ...] = ("127.0.0.1",), port: int = 0) -> None:
        self.destinations = destinations
        self.hosts = hosts
        self.port = port
        self.connections = 0  # opened so far
        self.buffered_bytes = 0  # of incomplete content and commands
        self.open: set[SinkSession] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises OSError when it cannot listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self.make_session, list(self.hosts), self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Abort all connections and release the port."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for session in list(self.open):
            session.transport.abort()
        await server.wait_closed()
        while self.open:  # noqa: ASYNC110  # connection_lost is called in one of the next iterations
            await asyncio.sleep(0)

    def make_session(self) -> SinkSession:
        return SinkSession(self)

    async def __aenter__(self) -> Sink:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class SinkSession(asyncio.Protocol):
    """One connection. Received data is processed at once, and its replies are sent in one write.

    While the client does not read its replies, its commands are not read.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.host = ""  # the local address of the connection
        self._buffer = bytearray()
        self.counted_bytes = 0  # octets of the buffer included in `Sink.buffered_bytes`
        self._searched = 0  # octets of the content already searched for its end
        self._in_data = self._closing = self._is_paused = False
        self._sender = ""
        self._recipients: list[str] = []
        self._out = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.host = self.transport.get_extra_info("sockname")[0]
        self.sink.open.add(self)
        self.sink.connections += 1
        self.greet()

    def greet(self) -> None:
        if len(self.sink.open) > _MAX_CONNECTIONS:
            self.transport.write(b"421 4.3.2 Too many connections\r\n")
            self.transport.close()
        else:
            self.transport.write(b"220 sink.test ESMTP\r\n")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.sink.open.discard(self)
        self._buffer.clear()
        self._count()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self.process_buffer()
        self._count()
        if self.sink.buffered_bytes > _MAX_BUFFERED_BYTES:
            max(self.sink.open, key=lambda session: session.counted_bytes).transport.abort()

    def _count(self) -> None:
        self.sink.buffered_bytes += len(self._buffer) - self.counted_bytes
        self.counted_bytes = len(self._buffer)

    def pause_writing(self) -> None:
        self._is_paused = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_paused = False
        self.data_received(b"")  # processes the buffered commands, and may pause again
        if not self._is_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def process_buffer(self) -> None:
        while not (self._closing or self._is_paused) and (self._read_content() if self._in_data else self._read_line()):
            if len(self._out) >= _OUT_BYTES:
                self._flush()
        self._flush()
        if self._closing:
            self.transport.close()

    def _flush(self) -> None:
        if self._out:
            out = bytes(self._out)
            self._out.clear()
            if not self.transport.is_closing():
                self.transport.write(out)  # may call pause_writing()

    def reply(self, reply: bytes) -> None:
        self._out += reply

    def _read_line(self) -> bool:
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > _LINE_BYTES:
                self.reply(b"500 5.5.6 Line too long\r\n")
                self._closing = True
            return False
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        self._handle(line)
        return True

    def _handle(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"RCPT" and len(self._recipients) >= _MAX_RECIPIENTS:  # RFC 5321 section 4.5.3.1.10
            self.reply(b"452 4.5.3 Too many recipients\r\n")
        elif verb == b"RCPT":
            address = _path(line)
            refusal = self.sink.destinations.recipient(address)
            if refusal is None:
                self._recipients.append(address)
            self.reply(refusal or b"250 2.1.5 Ok\r\n")
        elif verb == b"MAIL":
            self._sender, self._recipients = _path(line), []
            self.reply(b"250 2.1.0 Ok\r\n")
        elif verb == b"DATA" and not self._recipients:
            self.reply(b"554 5.5.1 No valid recipients\r\n")
        elif verb == b"DATA":
            self._in_data, self._searched = True, 0
            self.reply(b"354 End data with <CR><LF>.<CR><LF>\r\n")
        elif verb == b"EHLO":
            self.reply(_EHLO)
        elif verb == b"QUIT":
            self.reply(b"221 2.0.0 Bye\r\n")
            self._closing = True
        elif verb == b"RSET":
            self._recipients = []
            self.reply(b"250 2.0.0 Ok\r\n")
        else:
            self.reply(b"250 2.0.0 Ok\r\n" if verb in (b"NOOP", b"HELO") else b"502 5.5.1 Not implemented\r\n")

    def _read_content(self) -> bool:
        buffer = self._buffer
        if not self._searched and buffer.startswith(b".\r\n"):
            end, rest = 0, 3
        else:
            end = buffer.find(_END, self._searched)
            if end < 0:
                self._searched = max(1, len(buffer) - len(_END)) if len(buffer) > 2 else 0
                if len(buffer) > MAX_MESSAGE_BYTES + _LINE_BYTES:
                    self.transport.abort()
                return False
            end, rest = end + 2, end + len(_END)
        content = bytes(buffer[:end])
        del buffer[:rest]
        self._in_data = False
        return self.accept_message(content)

    def accept_message(self, content: bytes) -> bool:
        """Handle a complete message. False: the reply follows later, and nothing is read until `process_buffer()`."""
        reply = self.sink.destinations.message(self._sender, self._recipients, content)
        self._recipients = []
        self.reply(reply or b"250 2.0.0 Message accepted\r\n")
        return True


def _path(line: bytes) -> str:
    start = line.find(b"<")
    return line[start + 1 : line.find(b">", start)].decode("utf-8", "replace")
