"""Masking of passwords in values that error lines quote, and truncation of long values. Pure."""

from __future__ import annotations

import json
import re

MASK = "***"
LENGTH_MAX = 100

_SCHEME = re.compile(r'"?(?:[A-Za-z][A-Za-z0-9+.-]*:/+)?')
# An invalid port in a URL may be a password whose @ is missing or escaped.
_NO_PORT = re.compile(
    r'(\A"?[A-Za-z][A-Za-z0-9+.-]*://(?:(?:\[[^\[\]]*\]|[^/:,\[\]]*)(?::[0-9]{1,5})?,)*[^/:,\[\]]*:)'
    r'(?![0-9]{1,5}(?:[/,"]|\Z)).+',
    re.DOTALL,
)


def mask_password(value: str) -> str:
    """A value with everything before its last `@`, its query and a possible password masked: "smtp://***@host:587"."""
    match = _SCHEME.match(value)
    scheme = match[0] if match else ""
    user, at, address = value[len(scheme) :].rpartition("@")
    if at and "?" in user:  # the password may be in either part
        return scheme + MASK
    host, question, query = address.partition("?")
    masked = f"{scheme}{MASK if at else ''}{at}{host}{question}{MASK if query else ''}"
    return _NO_PORT.sub(rf"\1{MASK}", masked)


def without_url_password(path: str) -> str:
    """A path unchanged; a URL given instead of a path with its password masked."""
    scheme = _SCHEME.match(path)
    return mask_password(path) if scheme and scheme[0] else path


def masked(value: object) -> str:
    """`mask_password` cut to LENGTH_MAX characters, for error lines."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, default=str, ensure_ascii=False)
        except (ValueError, RecursionError):  # an integer of more than 4300 digits, a list in a list in a list ...
            return f"a value of the type {type(value).__name__}"
    text = mask_password(value)
    return text if len(text) <= LENGTH_MAX else f"{text[: LENGTH_MAX - 3]}..."
