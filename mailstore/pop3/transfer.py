"""Encoder of a POP3 multi-line response: dot-stuffing, truncation for TOP, terminator. Pure.

Source: RFC 1939 sections 3 and 7 (TOP).
"""

from __future__ import annotations


class MultiLineResponse:
    """One multi-line response. `top_lines`: the header and that many body lines; None: the whole message."""

    def __init__(self, top_lines: int | None = None) -> None:
        self._tail = b"\n"  # last octets before stuffing; initially at the start of a line
        self._lines_left = top_lines
        self._in_header = top_lines is not None
        self.complete = False  # no more of the content is needed

    def encode(self, content: bytes) -> bytes:
        """Encode the next part of the content."""
        if self._lines_left is not None:
            content = self._truncate(content)
        if not content:
            return b""
        stuffed = content.replace(b"\n.", b"\n..")  # RFC 1939 section 3
        if self._tail.endswith(b"\n") and content.startswith(b"."):
            stuffed = b"." + stuffed
        self._tail = (self._tail + content[-2:])[-2:]
        return stuffed

    def terminator(self) -> bytes:
        """The final dot, after a CRLF when the content does not end in one."""
        return b".\r\n" if self._tail in (b"\n", b"\r\n") else b"\r\n.\r\n"

    def _truncate(self, content: bytes) -> bytes:
        """The part of `content` within the header and the requested body lines."""
        position = 0
        if self._in_header:
            position = self._header_end(content)
            if position < 0:
                return content
            self._in_header = False
        assert self._lines_left is not None
        while self._lines_left > 0:
            end = content.find(b"\n", position)
            if end < 0:
                return content
            position = end + 1
            self._lines_left -= 1
        self.complete = True
        return content[:position]

    def _header_end(self, content: bytes) -> int:
        """Offset of the body after the empty line; -1 when it is not in this slice."""
        joined = self._tail + content  # an empty line may span two slices
        ends = [(at, len(empty)) for empty in (b"\n\r\n", b"\n\n") if (at := joined.find(empty)) >= 0]
        if not ends:
            return -1
        at, length = min(ends)
        return at + length - len(self._tail)
