"""Tests of the writer of log lines: it never blocks, and counts the lines that it drops."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mail.line_writer import QUEUED_BYTES_MAX, LineWriter, RawStream
from tests.support.servers.ports import block_until


class FullDisk:
    """Has `room` for a number of octets, and fails once when it is used up; afterwards it has room again.

    Writes wait for `may_write`, so that lines that come meanwhile are one write.
    """

    def __init__(self, room: int) -> None:
        self.written = b""
        self.may_write = threading.Event()
        self._room = room

    def write(self, data: memoryview, /) -> int | None:
        self.may_write.wait(10)
        if self._room == 0:
            self._room = 1 << 20
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = bytes(data[: self._room])
        self.written += taken
        self._room -= len(taken)
        return len(taken)

    def fileno(self) -> int:
        raise AssertionError


class Dropped:
    count = 0

    def add(self, count: int) -> None:
        self.count += count


@pytest.fixture
def dropped() -> Dropped:
    return Dropped()


@pytest.fixture
def start(dropped: Dropped) -> Iterator[Callable[[RawStream], LineWriter]]:
    writers: list[LineWriter] = []

    def start(out: RawStream) -> LineWriter:
        writers.append(LineWriter(out, lambda count: b"dropped %d" % count, dropped.add))
        return writers[-1]

    yield start
    for writer in writers:
        writer.close()


def test_lines_are_written_in_order(start: Callable[[RawStream], LineWriter], tmp_path: Path, dropped: Dropped) -> None:
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as out:
        writer = start(out)
        for number in range(10_000):
            writer.write(b"%d" % number)
        writer.flush(10.0)
    assert path.read_bytes().split() == [b"%d" % number for number in range(10_000)]
    assert dropped.count == 0


@pytest.mark.parametrize("is_blocking", [True, False])
def test_pipe_that_nobody_reads_drops_lines(
    start: Callable[[RawStream], LineWriter], dropped: Dropped, is_blocking: bool
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, is_blocking)
    line, count = b"x" * 999, 2 * QUEUED_BYTES_MAX // 1000
    with open(reading, "rb", buffering=0) as reader, open(writing, "wb", buffering=0) as out:
        writer = start(out)
        for _ in range(count):
            writer.write(line)  # returns although the pipe is full
        assert count / 3 < dropped.count < count
        received = b""
        while received.count(b"\n") < count - dropped.count:
            received += reader.read(1 << 20)
        writer.write(b"the next line")
        writer.flush(10.0)
        received += reader.read(1 << 20)
    others = [each for each in received.splitlines() if each != line]
    assert others == [b"dropped %d" % dropped.count, b"the next line"]


def test_lines_that_do_not_fit_on_a_full_disk_are_counted(
    start: Callable[[RawStream], LineWriter], dropped: Dropped
) -> None:
    """The disk is full in the middle of the third line."""
    out = FullDisk(room=10)
    writer = start(out)
    for line in (b"one", b"two", b"third", b"last"):
        writer.write(line)
    out.may_write.set()
    writer.flush(10.0)
    assert dropped.count == 2
    writer.write(b"next")
    writer.flush(10.0)
    assert out.written.split(b"\n") == [b"one", b"two", b"th", b"next", b"dropped 2", b""]
    assert dropped.count == 2


def test_closed_stream_drops_lines(start: Callable[[RawStream], LineWriter], dropped: Dropped, tmp_path: Path) -> None:
    out = (tmp_path / "log").open("wb", buffering=0)
    out.close()
    start(out).write(b"lost")
    block_until(lambda: dropped.count == 1)


def test_flush_returns_though_nobody_reads(start: Callable[[RawStream], LineWriter]) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0), open(writing, "wb", buffering=0) as out:
        writer = start(out)
        writer.write(b"x" * 200_000)
        writer.flush(0.01)
