"""Ledger of deliveries that a delivery process has started and not yet committed: what a fault may duplicate.

In the child, `AttemptLedger` appends a line when a delivery starts, is committed or is given up; in the test,
`AttemptLedgerReader` reads them. A file works where a query does not: a stopped or killed process cannot reply. Both
sides use the same monotonic clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple


class AttemptLedger:
    """Writer, in the child. Each attempt has its own number."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._numbers = count(1)
        self._finished: dict[int, Any] = {}  # shard by number: reported, not yet committed
        self._write("life")

    def begin(self) -> int:
        number = next(self._numbers)
        self._write("started", number)
        return number

    def finish(self, number: int, shard: Any) -> None:
        """The outcome is reported: the shard's next commit includes it."""
        self._finished[number] = shard

    def end(self, number: int) -> None:
        """The attempt has ended; if it was not reported, the shard's next owner repeats it."""
        if number not in self._finished:
            self._write("lost", number)

    def select_committed(self, shards: Collection[Any], owned: Collection[Any]) -> list[int]:
        """Numbers that a commit of these shards commits; reported attempts of a lost shard are marked lost."""
        here, ours = {id(shard) for shard in shards}, {id(shard) for shard in owned}
        for number in [number for number, shard in self._finished.items() if id(shard) not in ours]:
            del self._finished[number]
            self._write("lost", number)
        return [number for number, shard in self._finished.items() if id(shard) in here]

    def committed(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self._finished.pop(number, None)
        if numbers:
            self._write("committed", *numbers)

    def _write(self, what: str, *numbers: int) -> None:
        os.write(self._file, f"{time.monotonic()!r} {what} {' '.join(map(str, numbers))}\n".encode())


class Uncommitted(NamedTuple):
    """Attempts open at the start of a fault; and those of them and of later ones that were never committed."""

    at_once: int
    in_all: int


class AttemptLedgerReader:
    """Reader, in the test. Calls must come in order of time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._start = 0
        self._open: set[tuple[int, str]] = set()

    def uncommitted(self, began: float, until: float) -> Uncommitted:
        """Counts for a fault from `began` to `until`; a process that lost its shard commits nothing more."""
        at_once: set[tuple[int, str]] | None = None
        never: set[tuple[int, str]] = set()
        for at, what, numbers in self._lines(until):
            if at > began and at_once is None:
                at_once, never = set(self._open), set(self._open)
            if what == "life":
                self._start += 1
                self._open.clear()
            deliveries = {(self._start, number) for number in numbers}
            if what == "started":
                self._open |= deliveries
                never |= deliveries
            else:
                self._open -= deliveries
                if what == "committed":
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
