"""Opens a file where others may have put something else: a FIFO would hold a thread for ever, and a symbolic link lead
out of the folder. Next: `mail/spool/disk.py`.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_ELSE = (errno.ELOOP, errno.ENXIO, errno.EISDIR)  # a link, a FIFO nobody reads or a socket, a directory


class NotPlain(OSError):
    """There is something else than a file."""


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file, and of nothing else; made with mode 0600 where `flags` has O_CREAT. Never waits.

    Raises OSError, NotPlain among them.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _ELSE:
            raise _not_plain(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_plain(path)
    return descriptor


def _not_plain(path: Path) -> NotPlain:
    return NotPlain(errno.EINVAL, "is not a plain file", str(path))
