"""Exponential back-off. Pure."""

from __future__ import annotations

from collections.abc import Iterator


def backoff(first_seconds: float, longest_seconds: float) -> Iterator[float]:
    """The pause after each failure in a row: doubled each time, up to the longest one. Never ends."""
    seconds = first_seconds
    while True:
        yield seconds
        seconds = min(2 * seconds, longest_seconds)
