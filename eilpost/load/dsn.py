"""Parser of delivery status notifications: the failed recipients (RFC 3464). Pure.

A DSN has a part of type message/delivery-status or message/global-delivery-status (RFC 6533).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_LIMIT = 1 << 20
_PART = re.compile(rb"^content-type:\s*message/(?:global-)?delivery-status", re.IGNORECASE | re.MULTILINE)
_FOLD = re.compile(rb"\r?\n[ \t]+")


def failed_recipients(content: bytes) -> Iterator[str]:
    """The final recipients with `Action: failed`; none if the content is not a DSN."""
    start = _PART.search(content, 0, _LIMIT)
    if start is None:
        return
    for block in re.split(rb"\r?\n[ \t]*\r?\n", content[start.end() : _LIMIT]):
        fields = _fields(block)
        if fields.get(b"action", b"").lower().startswith(b"failed") and b"final-recipient" in fields:
            address = fields[b"final-recipient"].rpartition(b";")[2].strip()
            yield address.strip(b"<>").decode("utf-8", "replace")


def _fields(block: bytes) -> dict[bytes, bytes]:
    """Fields by lower-case name. Not by a regular expression: its backtracking took quadratic time."""
    fields = {}
    for line in _FOLD.sub(b" ", block).split(b"\n"):
        name, _, value = line.partition(b":")
        fields[name.lower()] = value.strip()
    return fields
