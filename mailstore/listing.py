"""What lies in a Maildir at this moment. Another program may change it at the next.

In charge of listing, of what the names say, and of finding again what has moved since. Next: `mailstore/maildir.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mail.message import DeliveryId
from mailstore.names import MessageName, parse_name


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a mailbox."""

    folder: Path
    file: str
    name: MessageName

    @property
    def path(self) -> Path:
        return self.folder / self.file


def drafts_of(tmp: Path, delivery_id: DeliveryId) -> list[str]:
    mark = f"_{delivery_id}."
    return [name for name in os.listdir(tmp) if mark in name]


def list_files(path: Path, *, folders: bool = False) -> Iterator[Found]:
    """The files of a mailbox, `new` before `cur`; with `folders` those of its Maildir++ folders too. What is no plain
    file (a link, a FIFO) is no message.
    """
    places = [path]
    if folders:
        with suppress(FileNotFoundError):
            places += [path / name for name in os.listdir(path) if name.startswith(".") and len(name) > 1]
    for place in places:
        for part in ("new", "cur"):
            folder = place / part
            try:
                with os.scandir(folder) as entries:
                    files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
            except (FileNotFoundError, NotADirectoryError):
                continue
            for file in files:
                if not file.startswith("."):
                    yield Found(folder, file, parse_name(file))


def change_files(path: Path, files: list[Found], change: Callable[[Found], None]) -> None:
    """Change files that Dovecot may rename at the same time: those are looked for again; gone is no error."""
    for _round in range(3):
        missed: set[str] = set()
        for found in files:
            try:
                change(found)
            except FileNotFoundError:
                missed.add(found.name.uid)
        if not missed:
            return
        files = [found for found in list_files(path) if found.name.uid in missed]
