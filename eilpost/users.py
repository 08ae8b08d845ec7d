"""`eilpost user`: adds, changes, removes and lists the mailboxes of the directory file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eilpost.directory_editor import DirectoryFile, EditRefused, edit, parse_address, read
from mail.address import Address
from mail.directory.passwords import hash_password
from mail.settings_section import SettingsError


@dataclass(frozen=True, slots=True)
class UserListing:
    address: str
    can_log_in: bool
    quota: str
    aliases: tuple[str, ...]


def check_new(file: DirectoryFile, login: str) -> Address:
    """The address, if it can be added. Raises SettingsError, EditRefused."""
    address = parse_address(login)
    domain = file.snapshot.domains.get(address.domain_ascii)
    if domain is None:
        raise EditRefused(
            f"{file.path}: there is no domain {address.domain}; add it with `eilpost domain add {address.domain}`"
        )
    if not domain.is_local:
        raise SettingsError(f"{file.path}: {address.domain} is a relay domain and has no local mailboxes")
    if _find(file, address):
        raise EditRefused(f"{address} exists already; change the password with `eilpost user passwd {address}`")
    return address


def check_exists(file: DirectoryFile, login: str) -> str:
    """The user's name as the file writes it. Raises SettingsError, EditRefused."""
    address = parse_address(login)
    name = _find(file, address)
    if name is None:
        raise EditRefused(f"{file.path}: there is no user {address}; add it with `eilpost user add {address}`")
    return name


def is_alias_elsewhere(file: DirectoryFile, address: Address) -> bool:
    """Whether the address is an alias without its own mailbox among the targets."""
    targets = file.snapshot.aliases.get(address.key, ())
    return bool(targets) and all(target.key != address.key for target in targets)


def is_mailbox_diverted(file: DirectoryFile, alias: str) -> bool:
    """Whether a mailbox has the name of this alias and gets none of its mail; False for a catch-all."""
    if alias.startswith("@"):
        return False
    address = parse_address(alias)
    return address.key in file.snapshot.users and is_alias_elsewhere(file, address)


def add(path: Path, login: str, password: str, quota: str = "") -> str:
    """Add a mailbox; its address as the file writes it. Raises SettingsError, EditRefused."""
    entry = {"password": hash_password(password)} | ({"quota": quota} if quota else {})
    with edit(path) as file:
        name = str(check_new(file, login))
        file.add_table("users", name, entry)
    return name


def remove(path: Path, login: str) -> str:
    """Remove a mailbox from the file, not its mail; its address as the file wrote it. Raises EditRefused."""
    with edit(path) as file:
        name = check_exists(file, login)
        file.remove_table("users", name)
    return name


def change_password(path: Path, login: str, password: str) -> str:
    """Replace the password of a mailbox; its address as the file writes it. Raises EditRefused."""
    hashed = hash_password(password)
    with edit(path) as file:
        name = check_exists(file, login)
        file.set_string("users", name, "password", hashed)
    return name


def list_users(path: Path) -> list[UserListing]:
    """All mailboxes, and the aliases that have them as a direct target."""
    file = read(path)
    aliases: dict[str, list[str]] = {}
    for alias, targets in file.entries("aliases").items():
        for target in targets:
            aliases.setdefault(target.lower(), []).append(alias)
    return [
        UserListing(name, bool(user.get("password")), str(user.get("quota", "")), tuple(aliases.get(name.lower(), ())))
        for name, user in sorted(file.entries("users").items())
    ]


def _find(file: DirectoryFile, address: Address) -> str | None:
    """The user's name as the file writes it: any case, quoted or not, either form of its domain."""
    return file.find("users", lambda name: parse_address(name).key == address.key)
