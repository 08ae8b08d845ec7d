"""Parsers and formatters of durations ("5m") and sizes ("25MiB") in settings. Pure."""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction

_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)\Z")
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_LONGEST_MILLISECONDS = 36500 * 86_400_000  # 100 years: no overflow when added to a datetime
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)\Z")
_BYTES = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_LARGEST_BYTES = 1 << 50


def parse_duration(text: object) -> timedelta:
    """`"500ms"`, `"30s"`, `"5m"`, `"2h"`, `"5d"`, `"1w"`. Raises ValueError with the expected form."""
    if isinstance(text, timedelta):
        return text
    match = _TIME.match(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('a time with its unit is expected, like "500ms", "30s", "5m", "2h" or "5d"')
    milliseconds = float(match[1]) * _MILLISECONDS[match[2]]
    if milliseconds > _LONGEST_MILLISECONDS:
        raise ValueError("a time of at most 36500d is expected")
    return timedelta(milliseconds=milliseconds)


def parse_size(text: object) -> int:
    """`"256KiB"`, `"25MiB"`, `"10GB"`, to bytes. Raises ValueError with the expected form."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text  # a default; the loader refuses TOML numbers without a unit
    match = _SIZE.match(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('a size with its unit is expected, like "256KiB", "25MiB" or "10GB"')
    size = int(Fraction(match[1]) * _BYTES[match[2]])
    if size > _LARGEST_BYTES:
        raise ValueError("a size of at most 1024TiB is expected")
    return size


def format_duration(value: timedelta) -> str:
    """The inverse of `parse_duration`, in the largest exact unit up to days."""
    milliseconds = value // timedelta(milliseconds=1)
    for unit in ("d", "h", "m", "s"):
        whole, remainder = divmod(milliseconds, _MILLISECONDS[unit])
        if whole and not remainder:
            return f"{whole}{unit}"
    return f"{milliseconds}ms"


def format_size(value: int) -> str:
    """The inverse of `parse_size`, in the largest exact unit."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        whole, remainder = divmod(value, _BYTES[unit])
        if whole and not remainder:
            return f"{whole}{unit}"
    return f"{value}B"
