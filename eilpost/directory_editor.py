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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mail.address import Address, AddressError
from mail.directory import IsRemote, IsUnknown, Snapshot
from mail.directory.file import read_text
from mail.directory.toml import parse_directory
from mail.settings import SettingsError

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


def read(path: Path) -> tuple[str, Tables]:
    """The file's text and tables, if a server would accept them. Raises DirectoryUnusable."""
    text, _ = read_text(path)
    parse_directory(text, str(path))
    return text, tomllib.loads(text)


def toml_string(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def add_table(text: str, section: str, name: str, entry: dict[str, str]) -> str:
    """Insert `[section."name"]` after the last table of its section, else at the end."""
    lines = [f"[{section}.{toml_string(name)}]", *(f"{key} = {toml_string(value)}" for key, value in entry.items())]
    return _insert(text, _section_end(text, section), "\n".join(lines) + "\n", "\n\n")


def remove_table(path: Path, text: str, section: str, name: str) -> str:
    """Remove `[section."name"]`; comments before it and before the next table stay. Raises SettingsError."""
    start, _, end = find_table(path, text, section, name)
    return _remove(text, start, _without_trailing_comments(text, end))


def add_alias(text: str, name: str, targets: list[str]) -> str:
    """Insert an alias at the end of `[aliases]`, which is added where it is missing."""
    line = f"{toml_string(name)} = [{', '.join(map(toml_string, targets))}]\n"
    for header, _, _, end in _headers(text):
        if header == ["aliases"]:
            return _insert(text, _without_trailing_comments(text, end), line, "\n")
    return _insert(text, len(text), f"[aliases]\n{line}", "\n\n")


def remove_alias(path: Path, text: str, name: str) -> str:
    """Remove the alias written as `name`, with the comment in its line. Raises SettingsError."""
    for header, _, start, end in _headers(text):
        position = start
        lines = text[start:end].splitlines(keepends=True) if header == ["aliases"] else []
        while lines:
            count = next((n for n in range(1, len(lines) + 1) if _is_toml("".join(lines[:n]))), len(lines))
            statement = "".join(lines[:count])
            if _is_toml(statement) and name in tomllib.loads(statement):
                return text[:position] + text[position + len(statement) :]
            position += len(statement)
            del lines[:count]
    raise SettingsError(f"{path}: {name} is not written as a line of [aliases]; remove it by hand")


def find_table(path: Path, text: str, section: str, name: str) -> tuple[int, int, int]:
    """Where the table's header starts, its body starts, and the next table starts. Raises SettingsError."""
    for header, header_start, start, end in _headers(text):
        if header == [section, name]:
            return header_start, start, end
    raise SettingsError(f'{path}: {name} is not written as a table [{section}."{name}"]; change it by hand')


def check_alias_targets(path: Path, old_text: str, new_text: str) -> None:
    """Refuse a text in which an alias loses a target that exists in the old one. Raises EditRefused."""
    old, new = (parse_directory(text, str(path)) for text in (old_text, new_text))
    for alias, targets in new.aliases.items():
        for target in targets:
            if _is_ours(old, target) and not _is_ours(new, target):
                raise EditRefused(f"{target} is a target of the alias {alias}; change or remove that alias first")


def _is_ours(snapshot: Snapshot, address: Address) -> bool:
    return not isinstance(snapshot.lookup(address), IsUnknown | IsRemote)


def _headers(text: str) -> list[tuple[list[str], int, int, int]]:
    """Each table header as (its parsed path, its start, end of its line, start of the next header)."""
    matches = list(_HEADER.finditer(text))
    headers = []
    for number, match in enumerate(matches):
        following = matches[number + 1].start() if number + 1 < len(matches) else len(text)
        headers.append((_path_of(match["name"]), match.start(), min(match.end() + 1, len(text)), following))
    return headers


def _path_of(header: str) -> list[str]:
    try:
        table: Any = tomllib.loads(f"[{header}]\n")
    except tomllib.TOMLDecodeError:
        return []  # a line inside an array or a long string that only looks like a header
    path = []
    while isinstance(table, dict) and table:
        key, table = next(iter(table.items()))
        path.append(key)
    return path


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _section_end(text: str, section: str) -> int:
    """The end of the section's last table, before the comments of the next one; else the end of the text."""
    ends = [end for header, _, _, end in _headers(text) if header[:1] == [section]]
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
    before, rest = text[:position].rstrip("\n"), text[position:]
    return (before + separator if before else "") + new + ("\n" + rest.lstrip("\n") if rest.strip() else "")


def _remove(text: str, start: int, end: int) -> str:
    before, rest = text[:start].rstrip("\n"), text[end:].lstrip("\n")
    return (before + "\n" if before else "") + ("\n" if before and rest else "") + rest


@contextmanager
def locked(path: Path) -> Iterator[None]:
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


def check_edit(path: Path, text: str, expected: Tables) -> Snapshot:
    """Parse the new text, which must contain `expected`. Raises SettingsError, DirectoryUnusable."""
    try:
        is_expected = tomllib.loads(text) == expected
    except tomllib.TOMLDecodeError:
        is_expected = False
    if not is_expected:
        raise SettingsError(f"{path}: its layout is too unusual to be edited safely; change it by hand")
    return parse_directory(text, str(path))


def write(path: Path, text: str, expected: Tables) -> None:
    """Replace the file atomically if the new text parses to `expected`. Raises SettingsError, DirectoryUnusable."""
    check_edit(path, text, expected)
    target = path.resolve()  # a symbolic link stays one
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    mode = target.stat().st_mode & 0o777
    try:
        with open(temporary, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
