"""Safe opening of regular files: a FIFO would block a thread for ever, and a symbolic link could lead out of the
directory.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_MAX_READ_BYTES = 64 << 20  # a directory of about 400,000 users with password hashes

# A symbolic link; a FIFO without reader, or a socket; a directory.
_NOT_REGULAR_ERRNOS = (errno.ELOOP, errno.ENXIO, errno.EISDIR)


class NotRegularFile(OSError):
    """The path is not a regular file."""


def open_regular(path: Path, flags: int = os.O_RDONLY, *, follow_symlinks: bool = False) -> int:
    """A descriptor of a regular file, created with mode 0600 if `flags` has O_CREAT. Never blocks.
    `follow_symlinks`: accept a symbolic link to a regular file (files in Kubernetes mounts are links). Raises OSError,
    including NotRegularFile.
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
    """The content and the status of a regular file of at most 64 MiB; follows symbolic links. Raises OSError."""
    with open(open_regular(path, follow_symlinks=True), "rb") as file:
        status = os.fstat(file.fileno())
        content = file.read(_MAX_READ_BYTES + 1)
        if len(content) > _MAX_READ_BYTES:
            raise OSError(errno.EFBIG, f"is larger than {_MAX_READ_BYTES >> 20} MiB", str(path))
        return content, status


def _not_regular(path: Path) -> NotRegularFile:
    return NotRegularFile(errno.EINVAL, "is not a regular file", str(path))
