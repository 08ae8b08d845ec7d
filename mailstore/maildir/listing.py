"""Listing of a Maildir, which other programs may change at any time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mail.message import DeliveryId
from mailstore.maildir.folders import opened
from mailstore.maildir.names import MessageName, parse_name


@dataclass(frozen=True, slots=True)
class MailboxFile:
    """One message file and its parsed name."""

    folder: Path
    filename: str
    name: MessageName

    @property
    def path(self) -> Path:
        return self.folder / self.filename


def tmp_files_of(tmp: Path, delivery_id: DeliveryId) -> list[str]:
    infix = f"_{delivery_id}."
    return [name for name in os.listdir(tmp) if infix in name]


def list_files(path: Path, *, folders: bool = False) -> Iterator[MailboxFile]:
    """Yield the regular files of a mailbox, `new` before `cur`; with `folders` also those of Maildir++ folders."""
    directories = [path]
    if folders:
        with suppress(FileNotFoundError):
            directories += [path / name for name in os.listdir(path) if name.startswith(".") and len(name) > 1]
    for directory in directories:
        for part in ("new", "cur"):
            folder = directory / part
            try:
                with opened(folder) as descriptor, os.scandir(descriptor) as entries:
                    files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
            except (FileNotFoundError, NotADirectoryError):
                continue
            for filename in files:
                if not filename.startswith("."):
                    yield MailboxFile(folder, filename, parse_name(filename))


def change_files(path: Path, files: list[MailboxFile], change: Callable[[MailboxFile], None]) -> None:
    """Apply `change` to files; files that Dovecot renamed meanwhile are searched again, removed files are ignored."""
    for _round in range(3):
        missing: set[str] = set()
        for file in files:
            try:
                change(file)
            except FileNotFoundError:
                missing.add(file.name.uid)
        if not missing:
            return
        files = [file for file in list_files(path) if file.name.uid in missing]
