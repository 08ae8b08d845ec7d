"""Network namespace of the test cluster for a thread: sockets created inside `inside()` belong to it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_OWN = Path("/proc/thread-self/ns/net")
_AT_START = _OWN.stat().st_ino
NETWORKS = ("10.123.", "10.96.", "10.244.")  # of the host, Services and pods


@contextlib.contextmanager
def inside(pid: int) -> Iterator[None]:
    """Within the block this thread is in the network of process `pid`. The thread must run nothing else."""
    with _OWN.open() as own, Path(f"/proc/{pid}/ns/net").open() as other:
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


def is_inside() -> bool:
    return _OWN.stat().st_ino != _AT_START


def _enter(file: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
