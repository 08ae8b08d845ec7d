"""Files written by other programs, read in parts with CRLF line endings.

Dovecot stores uploaded messages with LF; POP3 sends and counts CRLF (RFC 1939 section 11), as `,W=` does. Memory is
bounded by one chunk, and the end of the last part is cached so that the next part does not start from the beginning of
the file.
"""

from __future__ import annotations

import threading
from pathlib import Path

from cachetools import LRUCache

from mail.regular_file import open_regular

CHUNK_BYTES = 64 * 1024
_POSITIONS_MAX = 256  # cached files


class ExternalFiles:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By path: start of the chunk needed next, as octets with CRLF and as file offset, and whether it follows a CR.
        self._positions: LRUCache[Path, tuple[int, int, bool]] = LRUCache(_POSITIONS_MAX)

    def read(self, path: Path, start: int, limit_bytes: int | None) -> bytes:
        """Octets from `start` on, counted with CRLF line endings. Raises FileNotFoundError."""
        with self._lock:
            position, file_offset, after_cr = self._positions.get(path, (0, 0, False))
        if position > start:
            position, file_offset, after_cr = 0, 0, False
        end = None if limit_bytes is None else start + limit_bytes
        resume = (position, file_offset, after_cr)
        parts: list[bytes] = []
        with open(open_regular(path), "rb") as file:
            file.seek(file_offset)
            while end is None or position < end:
                chunk = file.read(CHUNK_BYTES)
                if not chunk:
                    break
                part = _with_crlf(chunk, after_cr=after_cr)
                after_cr = chunk.endswith(b"\r")
                if position + len(part) > start:
                    parts.append(part[max(0, start - position) : None if end is None else end - position])
                position, file_offset = position + len(part), file_offset + len(chunk)
                if end is None or position <= end:
                    resume = (position, file_offset, after_cr)
        if parts:
            with self._lock:
                self._positions[path] = resume
        return b"".join(parts)


def virtual_size(path: Path) -> int:
    """Size of a file with CRLF line endings, also after its last line. Raises FileNotFoundError."""
    size, after_cr, ends_in_line = 0, False, True
    with open(open_regular(path), "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size += len(_with_crlf(chunk, after_cr=after_cr))
            after_cr, ends_in_line = chunk.endswith(b"\r"), chunk.endswith(b"\n")
    # RFC 1939 section 3: each line of a response ends in CRLF; `transfer` adds the last one.
    return size if ends_in_line else size + 2


def _with_crlf(chunk: bytes, *, after_cr: bool) -> bytes:
    converted = chunk.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return converted[1:] if after_cr and chunk.startswith(b"\n") else converted
