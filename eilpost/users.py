"""`eilpost user`: adds a mailbox to the directory file, changes a password, lists who exists.

It edits the file as text, so that comments and order stay; before the new text replaces the old, it is parsed again and
must differ in exactly the change that was asked for, else nothing is written. Editors take turns by a lock on the
folder, and the change is on the disk when they are done. A running server reloads the file by itself.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mail.address import Address, AddressError
from mail.directory.file import read_text
from mail.directory.passwords import hash_password
from mail.directory.toml import parse_directory
from mail.settings import SettingsError

_LOCK_SECONDS = 10.0  # how long to wait for another editor


class NoSuchUser(Exception):
    """One line; exit status 1."""


class UserExists(Exception):
    """One line; exit status 1."""


@dataclass(frozen=True, slots=True)
class UserListing:
    address: str
    can_log_in: bool
    quota: str
    aliases: tuple[str, ...]


def check_new(path: Path, login: str) -> Address:
    """The address, when it can be added. Raises SettingsError, UserExists."""
    address = _address(login)
    text, tables = _read(path)
    domain = parse_directory(text, str(path)).domains.get(address.domain_ascii)
    if domain is None:
        raise SettingsError(f'{path}: {address.domain} is not a domain of ours; add [domains."{address.domain}"]')
    if not domain.is_local:
        raise SettingsError(f"{path}: {address.domain} is a relay domain: its mailboxes are elsewhere")
    if _find_user(tables, address) is not None:
        raise UserExists(f"{address} exists already; change the password with `eilpost user passwd {address}`")
    return address


def is_alias_elsewhere(path: Path, address: Address) -> bool:
    """Whether the address is an alias that does not lead to its own mailbox too."""
    targets = parse_directory(_read(path)[0], str(path)).aliases.get(address.key, ())
    return bool(targets) and all(target.key != address.key for target in targets)


def check_exists(path: Path, login: str) -> str:
    """The user's name as it stands in the file. Raises SettingsError, NoSuchUser."""
    address = _address(login)
    name = _find_user(_read(path)[1], address)
    if name is None:
        raise NoSuchUser(f"{path}: there is no user {address}; add it with `eilpost user add {address}`")
    return name


def add(path: Path, login: str, password: str, quota: str = "") -> str:
    """Add a mailbox; its address as it stands in the file."""
    entry = {"password": hash_password(password)} | ({"quota": quota} if quota else {})
    with _directory_lock(path):
        name = str(check_new(path, login))
        text, tables = _read(path)
        lines = [f"[users.{_toml_string(name)}]", *(f"{key} = {_toml_string(value)}" for key, value in entry.items())]
        position = _insert_position(text)
        before = text[:position].rstrip("\n")
        new = (before + "\n\n" if before else "") + "\n".join(lines) + "\n" + _separated(text[position:])
        _write(path, new, {**tables, "users": {**tables.get("users", {}), name: entry}})
    return name


def change_password(path: Path, login: str, password: str) -> str:
    """Give a mailbox another password; its address as it stands in the file."""
    hashed = hash_password(password)
    with _directory_lock(path):
        name = check_exists(path, login)
        text, tables = _read(path)
        start, end = _user_table(path, text, name)
        line = f"password = {_toml_string(hashed)}"
        body, count = _PASSWORD.subn(lambda match: match[1] + line, text[start:end], count=1)
        if not count:
            body = line + "\n" + text[start:end]
        users = {**tables["users"], name: {**tables["users"][name], "password": hashed}}
        _write(path, text[:start] + body + text[end:], {**tables, "users": users})
    return name


def list_users(path: Path) -> list[UserListing]:
    """Everybody with a mailbox, and the addresses that lead to it directly."""
    _, tables = _read(path)
    aliases: dict[str, list[str]] = {}
    for alias, targets in tables.get("aliases", {}).items():
        for target in targets:
            aliases.setdefault(target.lower(), []).append(alias)
    return [
        UserListing(name, bool(user.get("password")), str(user.get("quota", "")), tuple(aliases.get(name.lower(), ())))
        for name, user in sorted(tables.get("users", {}).items())
    ]


def _address(text: str) -> Address:
    try:
        return Address.parse(text, utf8=True)
    except AddressError as error:
        raise SettingsError(f"{text!r} is not an address like alice@example.test: {error}") from None


def _find_user(tables: dict[str, Any], address: Address) -> str | None:
    """The user's name as the file writes it: any case, quoted or not, either form of its domain."""
    for name in tables.get("users", {}):
        with suppress(AddressError):
            if Address.parse(name, utf8=True).key == address.key:
                return str(name)
    return None


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """The file's text and tables, once it is one that a server would take. Raises DirectoryUnusable."""
    text, _ = read_text(path)
    parse_directory(text, str(path))
    return text, tomllib.loads(text)


_PASSWORD = re.compile(r"""^([ \t]*)password[ \t]*=[ \t]*(?:"[^"\n]*"|'[^'\n]*')""", re.M)
_HEADER = re.compile(r"^[ \t]*\[(?P<name>[^\n]*)\][ \t]*(?:#[^\n]*)?$", re.M)


def _headers(text: str) -> list[tuple[list[str], int, int]]:
    """Each table header as (its parsed path, end of its line, start of the next header's line)."""
    matches = list(_HEADER.finditer(text))
    found = []
    for number, match in enumerate(matches):
        following = matches[number + 1].start() if number + 1 < len(matches) else len(text)
        found.append((_path_of(match["name"]), min(match.end() + 1, len(text)), following))
    return found


def _path_of(header: str) -> list[str]:
    try:
        table: Any = tomllib.loads(f"[{header}]\n")
    except tomllib.TOMLDecodeError:
        return []  # a line that only looks like a header, inside an array or a long string
    path = []
    while isinstance(table, dict) and table:
        key, table = next(iter(table.items()))
        path.append(key)
    return path


def _user_table(path: Path, text: str, name: str) -> tuple[int, int]:
    for header, start, end in _headers(text):
        if header == ["users", name]:
            return start, end
    raise SettingsError(f'{path}: {name} is not written as a table [users."{name}"]; change its password by hand')


def _insert_position(text: str) -> int:
    """Where a new user goes: after the last one, before the comments of what follows; else at the end."""
    ends = [end for header, _, end in _headers(text) if header[:1] == ["users"]]
    if not ends:
        return len(text)
    end = ends[-1]
    if end == len(text):
        return end
    lines = text[:end].splitlines(keepends=True)
    while lines and lines[-1].lstrip().startswith("#"):
        end -= len(lines.pop())
    return end


def _separated(rest: str) -> str:
    return "\n" + rest.lstrip("\n") if rest.strip() else ""


def _toml_string(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@contextmanager
def _directory_lock(path: Path) -> Iterator[None]:
    """One editor at a time: who reads, changes and replaces the file meanwhile would undo what another has done.

    The lock is on the folder, since the file itself is replaced; it leaves nothing behind. Raises SettingsError when it
    cannot be had in time.
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
        os.fsync(folder)  # the new name is on the disk, and not only the new content
    finally:
        os.close(folder)


def _write(path: Path, text: str, expected: dict[str, Any]) -> None:
    """Replace the file in one step, when the new text says exactly what is expected."""
    try:
        is_right = tomllib.loads(text) == expected
    except tomllib.TOMLDecodeError:
        is_right = False
    if not is_right:
        raise SettingsError(f"{path}: its layout is too unusual to be edited safely; change it by hand")
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
