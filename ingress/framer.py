"""Bytes from the wire to command lines and message content, sans I/O: the framing, and nothing else.

Smuggling dies here. A command ends at CRLF; a line ending in LF alone is handed on as `Malformed`, to be refused.
Content ends at CRLF "." CRLF and at nothing else (RFC 5321 section 4.1.1.4), however the bytes were cut into packets.
The reader holds at most one oversize line, or the content up to its limit; beyond it content is counted and dropped.
Content comes out as it stood on the wire, dots still stuffed.
"""

from __future__ import annotations

from enum import Enum

_END_OF_DATA = b"\r\n.\r\n"
_END_OF_EMPTY_DATA = b".\r\n"  # the CRLF before it ended the DATA command


class Malformed(Enum):
    """A line that is no command. It was taken off the input; the next one can be read."""

    TOO_LONG = "too long"
    BARE_LF = "bare LF"


class Framer:
    """One connection's input. `feed` bytes; take `next_line()`s; between `begin_content` and `take_content`,
    content."""

    def __init__(self, line_max: int) -> None:
        self._line_max = line_max
        self._buffer = bytearray()
        self._scanned = 0  # bytes of the buffer known to hold no end
        self._overlong = False
        self._in_data = False
        self._data_max = 0
        self._data_end = -1  # where the final "." stands in the buffer; -1: not seen yet
        self._discarding = False
        self._at_start = False

    def feed(self, chunk: bytes) -> None:
        """Take in what the wire gave."""
        self._buffer += chunk
        if self._in_data and self._data_end < 0:
            self._find_end_of_data()

    @property
    def pipelined_bytes(self) -> int:
        """Bytes nobody has asked for yet: what the client pipelined. The reason to stop reading."""
        if not self._in_data:
            return len(self._buffer)
        return len(self._buffer) - self._data_end if self._data_end >= 0 else 0

    @property
    def has_line(self) -> bool:
        """Whether `next_line` may have news: a line end, or too much without one."""
        return self._buffer.find(b"\n", self._scanned) >= 0 or len(self._buffer) > self._line_max

    def next_line(self) -> bytes | Malformed | None:
        """The next command line without its CRLF; None when there is no whole one yet."""
        buffer = self._buffer
        at = buffer.find(b"\n", self._scanned)
        if at < 0:
            if len(buffer) > self._line_max:
                self._overlong = True
                buffer.clear()
            self._scanned = len(buffer)
            return None
        self._scanned = 0
        line = bytes(memoryview(buffer)[: at + 1])
        del buffer[: at + 1]
        if self._overlong or at >= self._line_max:
            self._overlong = False
            return Malformed.TOO_LONG
        return line[:-2] if line.endswith(b"\r\n") else Malformed.BARE_LF

    # Content.

    def begin_data(self, limit: int) -> None:
        """From here on the input is content, of which `limit` bytes are kept. What was fed already counts."""
        self._in_data = True
        self._data_max = limit
        self._data_end = -1
        self._scanned = 0
        self._discarding = False
        self._at_start = True
        self._find_end_of_data()

    @property
    def in_data(self) -> bool:
        return self._in_data

    @property
    def data_is_complete(self) -> bool:
        return self._data_end >= 0

    @property
    def data_held_bytes(self) -> int:
        """Bytes of content in memory."""
        if self._discarding:
            return 0
        return self._data_end if self._data_end >= 0 else len(self._buffer)

    @property
    def data_is_discarded(self) -> bool:
        """Content was thrown away: there is none to take."""
        return self._discarding

    def discard_data(self) -> None:
        """Keep nothing of this content; go on looking for its end."""
        self._discarding = True
        if self._data_end < 0:
            self._trim()
        else:
            del self._buffer[: self._data_end]
            self._data_end = 0

    def peek_data(self, octets: int) -> bytes:
        """The first bytes of complete content."""
        return bytes(memoryview(self._buffer)[: min(octets, self._data_end)])

    def take_data(self, prefix: bytes) -> bytes:
        """`prefix` and the complete content, joined once; the input goes back to command lines."""
        with memoryview(self._buffer) as view:
            content = b"".join((prefix, view[: self._data_end]))
        self.skip_data()
        return content

    def skip_data(self) -> None:
        """Leave complete content behind; the input goes back to command lines."""
        del self._buffer[: self._data_end + len(_END_OF_EMPTY_DATA)]
        self._in_data = False
        self._scanned = 0

    def _find_end_of_data(self) -> None:
        buffer = self._buffer
        if self._at_start:
            if len(buffer) < len(_END_OF_EMPTY_DATA):
                return
            self._at_start = False
            if buffer.startswith(_END_OF_EMPTY_DATA):
                self._data_end = 0
                return
        at = buffer.find(_END_OF_DATA, max(0, self._scanned - len(_END_OF_DATA) + 1))
        if at < 0:
            self._scanned = len(buffer)
            # The last four bytes may belong to the end.
            if self._discarding or len(buffer) > self._data_max + len(_END_OF_DATA) - 1:
                self._discarding = True
                self._trim()
            return
        self._data_end = at + 2
        if self._discarding or self._data_end > self._data_max:
            self.discard_data()

    def _trim(self) -> None:
        """Throw all away but what may be the beginning of the end."""
        excess = len(self._buffer) - len(_END_OF_DATA) + 1
        if excess > 0:
            del self._buffer[:excess]
        self._scanned = 0
