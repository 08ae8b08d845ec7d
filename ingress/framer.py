"""SMTP framing, sans I/O: octets to command lines and message data.

A command ends at CRLF; a line that ends in LF alone is returned as `Malformed`. Message data ends at CRLF "." CRLF only
(RFC 5321 section 4.1.1.4), however the input is split into packets, which prevents SMTP smuggling. Memory is bounded by
one line, or by the data limit; data beyond it is discarded up to its end.
"""

from __future__ import annotations

from enum import Enum

_END_OF_DATA = b"\r\n.\r\n"
_END_OF_EMPTY_DATA = b".\r\n"  # the CRLF before it ended the DATA command


class Malformed(Enum):
    """A line that is not a command. It has been consumed; the next line can be read."""

    TOO_LONG = "too long"
    BARE_LF = "bare LF"


class Framer:
    """Input of one connection. Call `feed`, then `next_line`; between `begin_data` and `take_data` or `skip_data` the
    input is message data, which stays dot-stuffed.
    """

    def __init__(self, line_max: int) -> None:
        self.line_max = line_max
        self._buffer = bytearray()
        self._scanned = 0  # prefix of the buffer that contains no terminator
        self._overlong = False
        self.in_data = False
        self._data_max = 0
        self._data_end = -1  # offset of the final "."; -1: not received yet
        self.data_is_discarded = False  # it cannot be taken
        self._at_data_start = False

    def feed(self, chunk: bytes) -> None:
        """Add received octets."""
        self._buffer += chunk
        if self.in_data and self._data_end < 0:
            self._find_end_of_data()

    def clear(self) -> None:
        """Discard everything that was received and not handled; between commands only."""
        self._buffer.clear()
        self._scanned = 0

    @property
    def pipelined_bytes(self) -> int:
        """Octets received ahead of the current command or data; the session pauses reading when there are too many."""
        if not self.in_data:
            return len(self._buffer)
        return len(self._buffer) - self._data_end if self._data_end >= 0 else 0

    @property
    def has_line(self) -> bool:
        """Whether `next_line` can make progress: a line ending, or more octets than a line may have."""
        return self._buffer.find(b"\n", self._scanned) >= 0 or len(self._buffer) > self.line_max

    def next_line(self) -> bytes | Malformed | None:
        """The next command line without its CRLF; None when it is incomplete."""
        buffer = self._buffer
        line_end = buffer.find(b"\n", self._scanned)
        if line_end < 0:
            if len(buffer) > self.line_max:
                self._overlong = True
                buffer.clear()
            self._scanned = len(buffer)
            return None
        self._scanned = 0
        line = bytes(buffer[: line_end + 1])
        del buffer[: line_end + 1]
        if self._overlong or line_end >= self.line_max:
            self._overlong = False
            return Malformed.TOO_LONG
        return line[:-2] if line.endswith(b"\r\n") else Malformed.BARE_LF

    # Message data

    def begin_data(self, limit: int) -> None:
        """Treat the input, including buffered octets, as message data, of which at most `limit` bytes are held."""
        self.in_data = True
        self._data_max = limit
        self._data_end = -1
        self._scanned = 0
        self.data_is_discarded = False
        self._at_data_start = True
        self._find_end_of_data()

    @property
    def data_is_complete(self) -> bool:
        return self._data_end >= 0

    @property
    def data_held_bytes(self) -> int:
        """Message data in memory."""
        if self.data_is_discarded:
            return 0
        return self._data_end if self._data_end >= 0 else len(self._buffer)

    def discard_data(self) -> None:
        """Discard the message data, but still search for its end."""
        self.data_is_discarded = True
        if self._data_end < 0:
            self._trim()
        else:
            del self._buffer[: self._data_end]
            self._data_end = 0

    def take_data(self) -> bytearray:
        """Return the complete data, without a copy, and return to command lines."""
        data, end = self._buffer, self._data_end
        self._buffer = data[end:]
        del data[end:]
        self._data_end = 0
        self.skip_data()
        return data

    def skip_data(self) -> None:
        """Drop complete data and return to command lines."""
        del self._buffer[: self._data_end + len(_END_OF_EMPTY_DATA)]
        self.in_data = False
        self._scanned = 0

    def _find_end_of_data(self) -> None:
        buffer = self._buffer
        if self._at_data_start:
            if len(buffer) < len(_END_OF_EMPTY_DATA):
                return
            self._at_data_start = False
            if buffer.startswith(_END_OF_EMPTY_DATA):
                self._data_end = 0
                return
        end = buffer.find(_END_OF_DATA, max(0, self._scanned - len(_END_OF_DATA) + 1))
        if end < 0:
            self._scanned = len(buffer)
            # The last four octets may belong to the terminator.
            if self.data_is_discarded or len(buffer) > self._data_max + len(_END_OF_DATA) - 1:
                self.data_is_discarded = True
                self._trim()
            return
        self._data_end = end + 2
        if self.data_is_discarded or self._data_end > self._data_max:
            self.discard_data()

    def _trim(self) -> None:
        """Discard everything except a possible prefix of the terminator."""
        excess = len(self._buffer) - len(_END_OF_DATA) + 1
        if excess > 0:
            del self._buffer[:excess]
        self._scanned = 0
