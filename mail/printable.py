"""Escapes for unprintable characters: text of a peer must not control a terminal.

Unprintable are control characters, C1 included, and format characters, such as bidirectional overrides and zero-width
spaces (`str.isprintable`).
"""

from __future__ import annotations


def escape(text: str) -> str:
    """The text with escapes as in a Python string."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def escape_json(data: bytes) -> bytes:
    r"""The JSON document with `\u` escapes; it has the same value."""
    if data.isascii() and b"\x7f" not in data:
        return data
    return "".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in data.decode()).encode()


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[index]:02x}{units[index + 1]:02x}" for index in range(0, len(units), 2))
