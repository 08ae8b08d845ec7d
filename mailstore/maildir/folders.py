"""Access to `new`, `cur` and `tmp` of a mailbox that follows no symbolic link.

The user of a mailbox, who may own its directory, could otherwise make a server that runs as root read and write
elsewhere. NotADirectoryError: the folder is a link, or no directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A descriptor of the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def create(file: Path) -> int:
    """A descriptor of a new file."""
    with opened(file.parent) as folder:
        return os.open(file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)


def link(source: Path, target: Path) -> None:
    with opened(source.parent) as source_folder, opened(target.parent) as target_folder:
        os.link(source.name, target.name, src_dir_fd=source_folder, dst_dir_fd=target_folder, follow_symlinks=False)


def rename(source: Path, target: Path) -> None:
    with opened(source.parent) as source_folder, opened(target.parent) as target_folder:
        os.rename(source.name, target.name, src_dir_fd=source_folder, dst_dir_fd=target_folder)
