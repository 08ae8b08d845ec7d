"""Editor of the directory file (TOML) as text, so that comments and order stay.

The new text is parsed before it replaces the old one and must differ in exactly the intended change. A lock on the
folder admits one editor at a time, and the change is on disk before the lock is released. A running server reloads the
file by itself.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mail.address import Address, AddressError
from mail.directory import IsRemote, IsUnknown, Snapshot
from mail.directory.file import read_text
from mail.directory.toml import parse_directory
from mail.settings_section import SettingsError

# Measured with 10,000 users: an edit takes 1.6 s, the parser of tomlkit 0.15 alone 3.9 s.
_LOCK_SECONDS = 10.0  # how long to wait for another editor
_HEADER = re.compile(r"^[ \t]*\[(?P<name>[^\n]*)\][ \t]*(?:#[^\n]*)?$", re.M)

Tables = dict[str, Any]


class EditRefused(Exception):
    """The object does not exist, exists already, or is in use: one line, exit status 1."""


def parse_address(text: str) -> Address:
    """Raises SettingsError."""
    try:
        return Address.parse(text, utf8=True)
    except AddressError as error:
        raise SettingsError(f"{text!r} is not an address like alice@example.test: {error}") from None


@dataclass(slots=True)
class DirectoryFile:
    """The file's text and tables, which every method changes alike, and the snapshot of the text that was read."""

    path: Path
    text: str
    tables: Tables
    snapshot: Snapshot

    def entries(self, section: str) -> dict[str, Any]:
        """The tables or aliases of a section, by name."""
        entries: dict[str, Any] = self.tables.setdefault(section, {})
        return entries

    def find(self, section: str, is_same: Callable[[str], bool]) -> str | None:
        """The name of an entry as the file writes it."""
        return next(filter(is_same, self.entries(section)), None)

    def add_table(self, section: str, name: str, entry: dict[str, str]) -> None:
        """Insert `[section."name"]` after the last table of its section, else at the end."""
        lines = [
            f"[{section}.{_toml_string(name)}]",
            *(f"{key} = {_toml_string(value)}" for key, value in entry.items()),
        ]
        self.text = _insert(self.text, _section_end(self.text, section), "\n".join(lines) + "\n", "\n\n")
        self.entries(section)[name] = entry

    def remove_table(self, section: str, name: str) -> None:
        """Remove `[section."name"]`; comments before it and before the next table stay. Raises SettingsError."""
        table = self._find_table(section, name)
        self.text = _remove(self.text, table.start, _without_trailing_comments(self.text, table.end))
        del self.entries(section)[name]

    def set_string(self, section: str, name: str, key: str, value: str) -> None:
        """Set a key of `[section."name"]`. Raises SettingsError."""
        table = self._find_table(section, name)
        line = f"{key} = {_toml_string(value)}"
        old = re.compile(rf"""^([ \t]*){key}[ \t]*=[ \t]*(?:"[^"\n]*"|'[^'\n]*')""", re.M)
        body, count = old.subn(lambda match: match[1] + line, self.text[table.body : table.end], count=1)
        if not count:
            body = f"{line}\n{body}"
        self.text = self.text[: table.body] + body + self.text[table.end :]
        self.entries(section)[name][key] = value

    def add_alias(self, name: str, targets: Sequence[str]) -> None:
        """Insert an alias at the end of `[aliases]`, which is added where it is missing."""
        line = f"{_toml_string(name)} = [{', '.join(map(_toml_string, targets))}]\n"
        table = next((table for table in _text_tables(self.text) if table.path == ["aliases"]), None)
        if table is None:
            self.text = _insert(self.text, len(self.text), f"[aliases]\n{line}", "\n\n")
        else:
            self.text = _insert(self.text, _without_trailing_comments(self.text, table.end), line, "\n")
        self.entries("aliases")[name] = list(targets)

    def remove_alias(self, name: str) -> None:
        """Remove the alias written as `name`, with the comment in its line. Raises SettingsError."""
        for table in _text_tables(self.text):
            position = table.body
            for statement in _statements(self.text[table.body : table.end]) if table.path == ["aliases"] else ():
                if name in (_parse(statement) or {}):
                    self.text = self.text[:position] + self.text[position + len(statement) :]
                    del self.entries("aliases")[name]
                    return
                position += len(statement)
        raise SettingsError(f"{self.path}: {name} is not written as a line of [aliases]; remove it by hand")

    def check(self) -> Snapshot:
        """Parse the text, which must contain exactly the tables. Raises SettingsError, DirectoryUnusable."""
        if _without_empty_sections(_parse(self.text)) != _without_empty_sections(self.tables):
            raise SettingsError(f"{self.path}: its layout is too unusual to be edited safely; change it by hand")
        return parse_directory(self.text, str(self.path))

    def _find_table(self, section: str, name: str) -> _TextTable:
        for table in _text_tables(self.text):
            if table.path == [section, name]:
                return table
        raise SettingsError(f'{self.path}: {name} is not written as a table [{section}."{name}"]; change it by hand')


def read(path: Path) -> DirectoryFile:
    """Read the file, if a server would accept it. Raises DirectoryUnusable."""
    text, _ = read_text(path)
    snapshot = parse_directory(text, str(path))
    return DirectoryFile(path, text, tomllib.loads(text), snapshot)


@contextmanager
def edit(path: Path) -> Iterator[DirectoryFile]:
    """Lock and read the file, and replace it at the end of the block.

    Raises EditRefused where an alias would lose a target, SettingsError, DirectoryUnusable.
    """
    with _locked(path):
        file = read(path)
        yield file
        _refuse_lost_targets(file.snapshot, file.check())
        _replace(path, file.text)


def _without_empty_sections(tables: Tables | None) -> Tables:
    return {section: entries for section, entries in (tables or {}).items() if entries != {}}


def _toml_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _refuse_lost_targets(old: Snapshot, new: Snapshot) -> None:
    for alias, targets in new.aliases.items():
        for target in targets:
            if _is_ours(old, target) and not _is_ours(new, target):
                raise EditRefused(
                    f"{target} is a target of the alias {alias}; first change the alias in the file, or remove it with"
                    f" `eilpost alias rm {alias}`"
                )


def _is_ours(snapshot: Snapshot, address: Address) -> bool:
    return not isinstance(snapshot.lookup(address), IsUnknown | IsRemote)


class _TextTable(NamedTuple):
    """A table as the text writes it: its parsed name, and where its header, its body and the next header start."""

    path: list[str]
    start: int
    body: int
    end: int


def _text_tables(text: str) -> list[_TextTable]:
    matches = list(_HEADER.finditer(text))
    ends = [*(match.start() for match in matches[1:]), len(text)]
    return [
        _TextTable(_path_of(match["name"]), match.start(), min(match.end() + 1, len(text)), end)
        for match, end in zip(matches, ends, strict=False)
    ]


def _path_of(header: str) -> list[str]:
    table: Any = _parse(f"[{header}]\n")  # None: a line of an array or a long string that only looks like a header
    path = []
    while isinstance(table, dict) and table:
        key, table = next(iter(table.items()))
        path.append(key)
    return path


def _statements(body: str) -> Iterator[str]:
    """The statements of a table, each with the lines that belong to it."""
    lines = body.splitlines(keepends=True)
    while lines:
        count = next((n for n in range(1, len(lines) + 1) if _parse("".join(lines[:n])) is not None), len(lines))
        yield "".join(lines[:count])
        del lines[:count]


def _parse(text: str) -> Tables | None:
    """The tables; None if the text is not TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _section_end(text: str, section: str) -> int:
    """The end of the section's last table, before the comments of the next one; else the end of the text."""
    ends = [table.end for table in _text_tables(text) if table.path[:1] == [section]]
    return _without_trailing_comments(text, ends[-1]) if ends else len(text)


def _without_trailing_comments(text: str, end: int) -> int:
    """`end` of a table, moved before the comment lines that stand directly above the next header."""
    if end == len(text):
        return end
    lines = text[:end].splitlines(keepends=True)
    while lines and lines[-1].lstrip().startswith("#"):
        end -= len(lines.pop())
    return end


def _insert(text: str, position: int, new: str, separator: str) -> str:
    before, after = text[:position].rstrip("\n"), text[position:]
    return (before + separator if before else "") + new + ("\n" + after.lstrip("\n") if after.strip() else "")


def _remove(text: str, start: int, end: int) -> str:
    before, after = text[:start].rstrip("\n"), text[end:].lstrip("\n")
    return (before + "\n" if before else "") + ("\n" if before and after else "") + after


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclude other editors: two at a time would lose one of the changes.

    The lock is on the folder, because the file itself is replaced. Raises SettingsError after `_LOCK_SECONDS`.
    """
    target = path.resolve()
    deadline = time.monotonic() + _LOCK_SECONDS
    try:
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsError(f"directory.url: {path}: {error.strerror}") from None
    try:
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SettingsError(f"{path}: another program is editing it; try again") from None
                time.sleep(0.01)
        yield
        os.fsync(folder)  # makes the new name durable, not only the new content
    finally:
        os.close(folder)


def _replace(path: Path, text: str) -> None:
    """Write the file atomically, with the owner, group and mode of the old one: a server of another user reads it.
    Raises SettingsError, and changes nothing, where this user may not give the file to them.
    """
    target = path.resolve()  # a symbolic link stays one
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    old = target.stat()
    mode = old.st_mode & 0o777
    try:
        with open(temporary, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(text)
            file.flush()
            try:
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            except OSError:
                text = f"this user cannot keep its owner and group ({old.st_uid}:{old.st_gid}); run the command as root"
                raise SettingsError(f"{path}: {text}") from None
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
