"""Opens a file where there may be something else: a FIFO would hold a thread for ever, and where others write, a
symbolic link lead out of the folder.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_NOT_REGULAR_ERRNOS = (errno.ELOOP, errno.ENXIO, errno.EISDIR)  # a link, a FIFO nobody reads or a socket, a directory


class NotRegularFile(OSError):
    """There is something else than a file."""


def open_regular(path: Path, flags: int = os.O_RDONLY, *, follow_symlinks: bool = False) -> int:
    """A descriptor of a file, and of nothing else; made with mode 0600 where `flags` has O_CREAT. Never waits.
    `follow`: a symbolic link to a file will do, as in what an operator gives us (Kubernetes mounts are links).

    Raises OSError, NotPlain among them.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_symlinks else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in _NOT_REGULAR_ERRNOS:
            raise _not_regular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return descriptor


def read_regular(path: Path) -> tuple[bytes, os.stat_result]:
    """The whole of a file, or of the one a link leads to, and the state it was in. Raises as `open_plain`."""
    with open(open_regular(path, follow_symlinks=True), "rb") as file:
        status = os.fstat(file.fileno())
        return file.read(), status


def _not_regular(path: Path) -> NotRegularFile:
    return NotRegularFile(errno.EINVAL, "is not a plain file", str(path))
