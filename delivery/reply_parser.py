"""Parser for SMTP replies (RFC 5321 section 4.2), fed with bytes in pieces of any size. No I/O.

Replies are bounded in size, and control characters are removed from their text.
"""

from __future__ import annotations

import re

from mail.reply import Reply

# RFC 5321 section 4.5.3.1.5 allows 512 octets; some servers send more.
LINE_BYTES_MAX = 4096
# EHLO replies have about 20 lines, policy texts a few more.
LINES_MAX = 200
TEXT_MAX = 1000  # characters of a reply's text that are kept

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ \-])(.*))?\Z", re.DOTALL)
_ENHANCED = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?:\s+|\Z)")
# C0, DEL, C1, and separators that some programs treat as line breaks.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")


class MalformedReply(Exception):
    """The server sent no SMTP reply, or too large a one; the message is shown to people. `replies`: those before it
    that the same call completed.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.replies: list[ServerReply] = []


class ServerReply:
    """One complete reply: `code` and the raw text of its lines. `to_reply()` converts it to a `Reply`.

    A plain class for speed: each message creates three, and most are used for their code only.
    """

    __slots__ = ("code", "lines")

    def __init__(self, code: int, lines: list[bytes]) -> None:
        self.code = code
        self.lines = lines

    @property
    def positive(self) -> bool:
        """2xx."""
        return 200 <= self.code < 300

    @property
    def negative(self) -> bool:
        """4xx or 5xx."""
        return self.code >= 400

    def to_reply(self) -> Reply:
        """The reply as a value for records: enhanced code separated, no control characters, bounded."""
        texts = []
        enhanced = ""
        for raw in self.lines:
            text = _CONTROL.sub(" ", raw.decode("utf-8", "replace")).strip()
            match = _ENHANCED.match(text)
            # RFC 2034 section 4: the class of an enhanced code must match the reply code. Another one stays in the
            # text, where the operator sees it.
            if match is not None and int(match[1]) == self.code // 100:
                text = text[match.end() :]
                enhanced = enhanced or match[0].strip()
            texts.append(text)
        return Reply(self.code, enhanced, "\n".join(texts)[:TEXT_MAX])


class ReplyParser:
    """Incremental parser: bytes in, complete replies out."""

    __slots__ = ("_buffer", "_lines")

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[bytes] = []

    def feed(self, data: bytes) -> list[ServerReply]:
        """The replies completed by `data`. Raises MalformedReply; the parser must not be used after that."""
        if self._buffer:
            data = self._buffer + data
        replies: list[ServerReply] = []
        try:
            self._buffer = self._parse_lines(data, replies)
        except MalformedReply as error:
            error.replies = replies
            raise
        return replies

    def _parse_lines(self, data: bytes, replies: list[ServerReply]) -> bytes:
        """Append the complete replies to `replies`; returns the rest of `data`."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            # A bare LF also ends a line: refusing it here has no benefit.
            line = data[start : end - 1] if data[end - 1 : end] == b"\r" and end > start else data[start:end]
            start = end + 1
            reply = self._parse_line(line)
            if reply is not None:
                replies.append(reply)
        if len(data) - start > LINE_BYTES_MAX:
            raise MalformedReply("a reply line is too long")
        return data[start:]

    def _parse_line(self, line: bytes) -> ServerReply | None:
        match = _REPLY_LINE.match(line)
        if match is None or len(line) > LINE_BYTES_MAX:
            shown = _CONTROL.sub(" ", line[:80].decode("utf-8", "replace"))
            raise MalformedReply(f"not an SMTP reply: {shown!r}")
        code, separator, text = match.groups()
        self._lines.append(text or b"")
        if separator == b"-":  # RFC 5321 section 4.2.1: more lines follow
            if len(self._lines) >= LINES_MAX:
                raise MalformedReply("a reply has too many lines")
            return None
        # If the codes of the lines differ, the last one counts, as in Postfix.
        reply = ServerReply(int(code), self._lines)
        self._lines = []
        return reply
