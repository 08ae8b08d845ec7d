"""Faults of the environment of a process: its log output, signals, directory file, volumes and limits.

Each is a context manager, entered and left under load.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.servers.eilpost_process import EILPOST, EilpostProcess

HOLD_SECONDS = 2.0
_MIB = 1 << 20
_PAGE_BYTES = 4096
_LOGGED_BYTES = 500  # of the lines of a message, at least


Apply = Callable[["FaultyEnvironmentProcess"], AbstractContextManager[None]]


class EnvironmentFault(NamedTuple):
    """`shows`: text of the log that proves the fault; `ends`: exit status if it ends the process; `stderr`: a file for
    the log output, or "pipe", instead of the usual file.
    """

    apply: Apply
    shows: str = ""
    ends: int | None = None
    stderr: str | None = None


@contextmanager
def _lines_are_dropped(box: FaultyEnvironmentProcess) -> Iterator[None]:
    """Each write fails from the start."""
    yield
    assert box.has_dropped_lines()


@contextmanager
def _log_reader_stops(box: FaultyEnvironmentProcess) -> Iterator[None]:
    """Nobody reads the pipe, and writes block when it is full: its bytes are fewer than the lines of all messages."""
    yield
    assert (
        _PAGE_BYTES
        < box.unread_log_bytes()
        < _LOGGED_BYTES * box.metric("eilpost_messages_received_total", result="accepted")
    )


@contextmanager
def _log_reader_ends(box: FaultyEnvironmentProcess) -> Iterator[None]:
    """EPIPE for each line."""
    box.close_stderr()
    yield
    assert box.has_dropped_lines()


def _signals(*numbers: signal.Signals) -> Apply:
    @contextmanager
    def apply(box: FaultyEnvironmentProcess) -> Iterator[None]:
        for number in numbers:
            box.signal(number)
            time.sleep(0.2)
        yield

    return apply


def _directory(change: Callable[[Path], object]) -> Apply:
    @contextmanager
    def apply(box: FaultyEnvironmentProcess) -> Iterator[None]:
        path = box.home / "directory.toml"
        text = path.read_text()
        change(path)
        box.signal(signal.SIGHUP)  # read it now, not at the next poll
        yield
        if path.is_dir():
            path.rmdir()
        path.write_text(text)
        path.chmod(0o600)

    return apply


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _read_only(name: str) -> Apply:
    """EROFS for every file that is created: a mount for root, whom modes do not stop."""

    @contextmanager
    def apply(box: FaultyEnvironmentProcess) -> Iterator[None]:
        path = box.home / name
        if os.geteuid() != 0:
            modes = {folder: folder.stat().st_mode for folder in (path, *path.rglob("*")) if folder.is_dir()}
            for folder in modes:
                folder.chmod(0o500)
            yield
            for folder, mode in modes.items():
                folder.chmod(mode)
            return
        mount = shutil.which("mount")
        assert mount is not None
        subprocess.run([mount, "--bind", path, path], check=True)
        try:
            subprocess.run([mount, "-o", "remount,ro,bind", path], check=True)
            yield
        finally:
            subprocess.run(["umount", "--lazy", path], check=True)

    return apply


def _limit(number: int, amount: Callable[[FaultyEnvironmentProcess], int]) -> Apply:
    @contextmanager
    def apply(box: FaultyEnvironmentProcess) -> Iterator[None]:
        before = resource.prlimit(box.pid, number)
        resource.prlimit(box.pid, number, (amount(box), before[1]))
        yield
        if box.is_running:
            resource.prlimit(box.pid, number, before)

    return apply


def _open_files(box: FaultyEnvironmentProcess) -> int:
    return len(os.listdir(f"/proc/{box.pid}/fd"))


def _address_space(box: FaultyEnvironmentProcess) -> int:
    """What it has and 1 MiB: memory for a large message, and the stack of a thread, are refused."""
    return box.resident_bytes("VmSize") + _MIB


_OLD_DIRECTORY = "last good version stays in use"
ENVIRONMENT_FAULTS: Mapping[str, EnvironmentFault] = {
    "log output: disk full": EnvironmentFault(_lines_are_dropped, stderr="/dev/full"),
    "log output: reader stops": EnvironmentFault(_log_reader_stops, stderr="pipe"),
    "log output: reader ends": EnvironmentFault(_log_reader_ends, stderr="pipe"),
    "signals that end nothing": EnvironmentFault(
        _signals(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE), "SIGALRM"
    ),
    "signal TERM": EnvironmentFault(_signals(signal.SIGTERM), "SIGTERM", ends=0),
    "signal INT": EnvironmentFault(_signals(signal.SIGINT), "SIGINT", ends=0),
    "signal QUIT": EnvironmentFault(_signals(signal.SIGQUIT), "SIGQUIT", ends=0),
    "signal KILL": EnvironmentFault(_signals(signal.SIGKILL), ends=-signal.SIGKILL),
    "directory file emptied": EnvironmentFault(_directory(lambda path: path.write_text("")), _OLD_DIRECTORY),
    "directory file malformed": EnvironmentFault(_directory(lambda path: path.write_text("[domains.")), _OLD_DIRECTORY),
    "directory file removed": EnvironmentFault(_directory(Path.unlink), _OLD_DIRECTORY),
    "directory file is a folder": EnvironmentFault(_directory(_replace_by_folder), _OLD_DIRECTORY),
    "spool read-only": EnvironmentFault(_read_only("spool"), "spool unavailable"),
    "mailboxes read-only": EnvironmentFault(_read_only("mail"), "mailbox unavailable"),
    "open files used up": EnvironmentFault(_limit(resource.RLIMIT_NOFILE, _open_files), "Too many open files"),
    "memory and threads refused": EnvironmentFault(_limit(resource.RLIMIT_AS, _address_space)),
}
# What the machine refuses is not expected where it happens: deferred, and logged with its place.
REFUSED_BY_MACHINE = ("can't start new thread", "MemoryError")


class FaultyEnvironmentProcess(EilpostProcess):
    """All roles in one process, whose log output goes to a file or a pipe that nobody reads."""

    def __init__(self, home: Path, settings: Mapping[str, Mapping[str, object]], stderr: str | None) -> None:
        self._reader: int | None = None
        command = ()
        if stderr is not None:
            if stderr == "pipe":
                home.mkdir(parents=True, exist_ok=True)
                stderr = str(home / "stderr")
                os.mkfifo(stderr)
                self._reader = os.open(stderr, os.O_RDONLY | os.O_NONBLOCK)
            command = ("bash", "-c", f'exec "$0" "$@" 2>{stderr}', str(EILPOST), "up")
        super().__init__(home, settings, command=command)

    def has_dropped_lines(self) -> bool:
        return self.metric("eilpost_log_lines_dropped_total") > 0

    def unread_log_bytes(self) -> int:
        assert self._reader is not None
        return int.from_bytes(fcntl.ioctl(self._reader, termios.FIONREAD, bytes(4)), sys.byteorder)

    def close_stderr(self) -> None:
        """Close the reading end of the pipe."""
        if self._reader is not None:
            os.close(self._reader)
            self._reader = None
