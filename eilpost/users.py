"""`eilpost user`: adds, changes, removes and lists the mailboxes of the directory file."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eilpost.directory_editor import (
    EditRefused,
    Tables,
    add_table,
    check_alias_targets,
    find_table,
    locked,
    parse_address,
    read,
    remove_table,
    toml_string,
    write,
)
from mail.address import Address, AddressError
from mail.directory.passwords import hash_password
from mail.directory.toml import parse_directory
from mail.settings import SettingsError

_PASSWORD = re.compile(r"""^([ \t]*)password[ \t]*=[ \t]*(?:"[^"\n]*"|'[^'\n]*')""", re.M)


class NoSuchUser(EditRefused):
    """One line; exit status 1."""


class UserExists(EditRefused):
    """One line; exit status 1."""


@dataclass(frozen=True, slots=True)
class UserListing:
    address: str
    can_log_in: bool
    quota: str
    aliases: tuple[str, ...]


def check_new(path: Path, login: str) -> Address:
    """The address, if it can be added. Raises SettingsError, UserExists."""
    address = parse_address(login)
    text, tables = read(path)
    domain = parse_directory(text, str(path)).domains.get(address.domain_ascii)
    if domain is None:
        raise SettingsError(
            f"{path}: there is no domain {address.domain}; add it with `eilpost domain add {address.domain}`"
        )
    if not domain.is_local:
        raise SettingsError(f"{path}: {address.domain} is a relay domain and has no local mailboxes")
    if _find_user(tables, address) is not None:
        raise UserExists(f"{address} exists already; change the password with `eilpost user passwd {address}`")
    return address


def is_alias_elsewhere(path: Path, address: Address) -> bool:
    """Whether the address is an alias without its own mailbox among the targets."""
    targets = parse_directory(read(path)[0], str(path)).aliases.get(address.key, ())
    return bool(targets) and all(target.key != address.key for target in targets)


def check_exists(path: Path, login: str) -> str:
    """The user's name as the file writes it. Raises SettingsError, NoSuchUser."""
    address = parse_address(login)
    name = _find_user(read(path)[1], address)
    if name is None:
        raise NoSuchUser(f"{path}: there is no user {address}; add it with `eilpost user add {address}`")
    return name


def add(path: Path, login: str, password: str, quota: str = "") -> str:
    """Add a mailbox; its address as the file writes it."""
    entry = {"password": hash_password(password)} | ({"quota": quota} if quota else {})
    with locked(path):
        name = str(check_new(path, login))
        text, tables = read(path)
        new = add_table(text, "users", name, entry)
        write(path, new, {**tables, "users": {**tables.get("users", {}), name: entry}})
    return name


def remove(path: Path, login: str) -> str:
    """Remove a mailbox from the file, not its mail; its address as the file wrote it. Raises EditRefused."""
    with locked(path):
        name = check_exists(path, login)
        text, tables = read(path)
        new = remove_table(path, text, "users", name)
        users = {each: user for each, user in tables["users"].items() if each != name}
        check_alias_targets(path, text, new)
        write(path, new, {**tables, "users": users})
    return name


def change_password(path: Path, login: str, password: str) -> str:
    """Replace the password of a mailbox; its address as the file writes it."""
    hashed = hash_password(password)
    with locked(path):
        name = check_exists(path, login)
        text, tables = read(path)
        _, start, end = find_table(path, text, "users", name)
        line = f"password = {toml_string(hashed)}"
        body, count = _PASSWORD.subn(lambda match: match[1] + line, text[start:end], count=1)
        if not count:
            body = line + "\n" + text[start:end]
        users = {**tables["users"], name: {**tables["users"][name], "password": hashed}}
        write(path, text[:start] + body + text[end:], {**tables, "users": users})
    return name


def list_users(path: Path) -> list[UserListing]:
    """All mailboxes, and the aliases that have them as a direct target."""
    _, tables = read(path)
    aliases: dict[str, list[str]] = {}
    for alias, targets in tables.get("aliases", {}).items():
        for target in targets:
            aliases.setdefault(target.lower(), []).append(alias)
    return [
        UserListing(name, bool(user.get("password")), str(user.get("quota", "")), tuple(aliases.get(name.lower(), ())))
        for name, user in sorted(tables.get("users", {}).items())
    ]


def _find_user(tables: Tables, address: Address) -> str | None:
    """The user's name as the file writes it: any case, quoted or not, either form of its domain."""
    for name in tables.get("users", {}):
        with suppress(AddressError):
            if Address.parse(name, utf8=True).key == address.key:
                return str(name)
    return None
