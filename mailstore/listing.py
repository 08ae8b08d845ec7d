"""What lies in a Maildir at this moment. Another program may change it at the next.

In charge of listing and of what the names say; changes nothing. Next: `mailstore/maildir.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    """The files of a mailbox, `new` before `cur`; with `folders` those of its Maildir++ folders too."""
    places = [path]
    if folders:
        with suppress(FileNotFoundError):
            places += [path / name for name in os.listdir(path) if name.startswith(".") and len(name) > 1]
    for place in places:
        for part in ("new", "cur"):
            folder = place / part
            try:
                files = os.listdir(folder)
            except (FileNotFoundError, NotADirectoryError):
                continue
            for file in files:
                if not file.startswith("."):
                    yield Found(folder, file, parse_name(file))


def as_wire(found: Found) -> bytes:
    """A file somebody else wrote, with CRLF line ends as `,W=` counts them."""
    with open(found.path, "rb") as file:
        content = file.read()
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
