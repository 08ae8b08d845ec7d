"""Processes of tests end with the run that started them, even one that is killed hard: one guard for a whole run."""

from __future__ import annotations

import atexit
import functools

from eilpost.guard import Guard


@functools.cache
def group() -> int:
    """For `Popen(process_group=...)`. Ctrl-C does not go there: a test ends what it started."""
    guard = Guard()
    atexit.register(guard.close)
    return guard.group
