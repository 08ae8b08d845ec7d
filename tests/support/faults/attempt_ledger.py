"""What a delivery process has begun and not yet marked for good, at any instant: what a fault then may repeat.

In the child, `Ledger` writes a line for each delivery that begins, is marked, or is given up. In the test, `Tried`
reads them. It is a file and no question, because a process that stands still, is cut off or was killed answers none;
both sides look at the same monotonic clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple


class AttemptLedger:
    """In the child. A delivery is a number: one that is tried again is another."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._numbers = count(1)
        self._finished: dict[int, Any] = {}  # reported and not yet marked, and at which shard
        self._write("life")

    def begin(self) -> int:
        number = next(self._numbers)
        self._write("begun", number)
        return number

    def finish(self, number: int, shard: Any) -> None:
        """Reported: the next commit of the shard's mark has it."""
        self._finished[number] = shard

    def end(self, number: int) -> None:
        """Nobody works on it any more; if it was not finished, it is for the shard's next owner."""
        if number not in self._finished:
            self._write("lost", number)

    def select_committed(self, shards: Collection[Any], owned: Collection[Any]) -> list[int]:
        """What a commit of these shards' marks marks; what a shard that is not owned any more had, nobody marks."""
        here, ours = {id(shard) for shard in shards}, {id(shard) for shard in owned}
        for number in [number for number, shard in self._finished.items() if id(shard) not in ours]:
            del self._finished[number]
            self._write("lost", number)
        return [number for number, shard in self._finished.items() if id(shard) in here]

    def committed(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self._finished.pop(number, None)
        if numbers:
            self._write("marked", *numbers)

    def _write(self, what: str, *numbers: int) -> None:
        os.write(self._file, f"{time.monotonic()!r} {what} {' '.join(map(str, numbers))}\n".encode())


class Uncommitted(NamedTuple):
    """Begun and not yet marked when a fault began; and of these and all that was begun since, never marked."""

    at_once: int
    in_all: int


class AttemptLedgerReader:
    """In the test: reads on where it ended, so the instants it is asked for come one after the other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._start = 0
        self._open: set[tuple[int, str]] = set()

    def uncommitted(self, began: float, until: float) -> Uncommitted:
        """Of a fault that began then, looked at until then. Who was killed or lost its shard marks nothing more."""
        at_once: set[tuple[int, str]] | None = None
        never: set[tuple[int, str]] = set()
        for at, what, numbers in self._lines(until):
            if at > began and at_once is None:
                at_once, never = set(self._open), set(self._open)
            if what == "life":
                self._start += 1
                self._open.clear()
            deliveries = {(self._start, number) for number in numbers}
            if what == "begun":
                self._open |= deliveries
                never |= deliveries
            else:
                self._open -= deliveries
                if what == "marked":
                    never -= deliveries
        if at_once is None:
            at_once = never = set(self._open)
        return Uncommitted(len(at_once), len(never))

    def _lines(self, until: float) -> Iterator[tuple[float, str, list[str]]]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                at, what, *numbers = line.decode().split()
                if float(at) > until:
                    return
                self._offset += len(line)
                yield float(at), what, numbers
