"""Signs that the file of an embedded log was lost: it is missing or empty, but eilpost has run before."""

from __future__ import annotations

import os
from pathlib import Path

ADVICE = "before you start eilpost: check log.url, or restore the file; a start makes a new log without that mail"

_CONTENT_BYTES = 1024  # the test content of `eilpost doctor` is smaller


def is_missing(log: Path) -> bool:
    return not log.exists() or log.stat().st_size == 0


def was_used(log: Path) -> bool:
    """Whether a process has used the log: its lock file has the process id."""
    lock = log.with_name(log.name + ".lock")
    return lock.exists() and lock.stat().st_size > 0


def has_content(spool: Path) -> bool:
    """Whether a spool directory has content of mail. Content stays there for a while after its delivery."""
    for folder, _, names in os.walk(spool):
        for name in names:
            try:
                if os.stat(os.path.join(folder, name)).st_size >= _CONTENT_BYTES:
                    return True
            except OSError:  # removed meanwhile
                continue
    return False
