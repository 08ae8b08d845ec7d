"""Cleanup after a test run: a folder, and the cgroups of one name.

As a script it waits for the end of its standard input, which its starter holds open, and then removes them. Standard
library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CGROUPS = Path("/sys/fs/cgroup")


def cgroups(name: str) -> Iterator[Path]:
    """The cgroup `name` in every hierarchy: one in version 2, one for each controller in version 1."""
    if (_CGROUPS / "cgroup.controllers").exists():
        yield _CGROUPS / name
        return
    for hierarchy in sorted(_CGROUPS.iterdir()):
        if hierarchy.is_dir() and not hierarchy.is_symlink():
            yield hierarchy / name


def remove(folder: Path, cgroup: str) -> None:
    """Retry for a minute: killed processes leave their cgroup and stop writing after some seconds."""
    end = time.monotonic() + 60
    groups = list(cgroups(cgroup))
    while time.monotonic() < end:
        for group in groups:
            for path, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        if not any(group.exists() for group in groups):
            shutil.rmtree(folder, ignore_errors=True)  # last: it may hold its owner's lock
            if not folder.exists():
                return
        time.sleep(0.05)


def at_the_end(folder: Path, cgroup: str, locks: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start the script. It inherits the files `locks`, so that their locks are held until everything is removed."""
    return subprocess.Popen(
        [sys.executable, "-S", "-m", __name__, str(folder), cgroup],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=locks,
        process_group=0,
    )


if __name__ == "__main__":
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin.buffer.read(1):
        pass
    remove(Path(sys.argv[1]), sys.argv[2])
