"""Files that other programs put into a mailbox, part by part and with the line ends of the wire.

Dovecot keeps what a mail client uploads with LF alone; POP3 wants CRLF, as `,W=` counts it. Holds one chunk of a file,
however large that is, and remembers where the last part ended, so that the next does not begin at the start.
Next: `mailstore/reading.py`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from mail.plainfile import open_plain

CHUNK_OCTETS = 64 * 1024
_PLACES_MAX = 256  # files that are being read


class ForeignFiles:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By path: where the chunk begins that the next part needs, in octets of the wire and of the file, and whether a
        # CR stands before it.
        self._places: OrderedDict[Path, tuple[int, int, bool]] = OrderedDict()

    def read(self, path: Path, start: int, limit_bytes: int | None) -> bytes:
        """The octets of the wire from `start` on. Raises FileNotFoundError."""
        with self._lock:
            wire, place, after_cr = self._places.get(path, (0, 0, False))
        if wire > start:
            wire, place, after_cr = 0, 0, False
        end = None if limit_bytes is None else start + limit_bytes
        resume = (wire, place, after_cr)
        parts: list[bytes] = []
        with open(open_plain(path), "rb") as file:
            file.seek(place)
            while end is None or wire < end:
                chunk = file.read(CHUNK_OCTETS)
                if not chunk:
                    break
                part = _as_wire(chunk, after_cr=after_cr)
                after_cr = chunk.endswith(b"\r")
                if wire + len(part) > start:
                    parts.append(part[max(0, start - wire) : None if end is None else end - wire])
                wire, place = wire + len(part), place + len(chunk)
                if end is None or wire <= end:
                    resume = (wire, place, after_cr)
        if parts:
            with self._lock:
                self._places[path] = resume
                self._places.move_to_end(path)
                while len(self._places) > _PLACES_MAX:
                    self._places.popitem(last=False)
        return b"".join(parts)


def wire_size(path: Path) -> int:
    """How many octets of the wire a file is. Raises FileNotFoundError."""
    size, after_cr = 0, False
    with open(open_plain(path), "rb") as file:
        while chunk := file.read(CHUNK_OCTETS):
            size += len(_as_wire(chunk, after_cr=after_cr))
            after_cr = chunk.endswith(b"\r")
    return size


def _as_wire(chunk: bytes, *, after_cr: bool) -> bytes:
    wire = chunk.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return wire[1:] if after_cr and chunk.startswith(b"\n") else wire
