"""`eilpost domain` and `eilpost alias`: add, remove and list the domains and aliases of the directory file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eilpost.directory_editor import (
    EditRefused,
    Tables,
    add_table,
    check_alias_targets,
    check_edit,
    locked,
    parse_address,
    read,
    remove_table,
    write,
)
from eilpost.directory_editor import add_alias as insert_alias
from eilpost.directory_editor import remove_alias as delete_alias
from mail.address import AddressError, domain_ascii, parse_domain
from mail.directory.expand import expand
from mail.directory.toml import parse_directory
from mail.envelope import Recipient
from mail.settings import SettingsError


@dataclass(frozen=True, slots=True)
class DomainListing:
    domain: str
    tenant: str
    relay: str  # empty: mailboxes are here
    users: int
    aliases: int


@dataclass(frozen=True, slots=True)
class AliasListing:
    alias: str
    targets: tuple[str, ...]


def add_domain(path: Path, domain: str, *, tenant: str = "", relay: str = "") -> str:
    """Add a domain; `relay` is "mx" or a URL, empty for mailboxes here. Raises EditRefused, SettingsError."""
    name = _parse_domain(domain)
    entry = ({"tenant": tenant} if tenant else {}) | ({"relay": relay} if relay else {})
    with locked(path):
        text, tables = read(path)
        if _find_domain(tables, name) is not None:
            raise EditRefused(f"{path}: the domain {domain} exists already")
        write(
            path,
            add_table(text, "domains", domain, entry),
            {**tables, "domains": {**tables.get("domains", {}), domain: entry}},
        )
    return domain


def remove_domain(path: Path, domain: str) -> str:
    """Remove a domain without users and aliases, unless it is the last. Raises EditRefused, SettingsError."""
    ascii_name = _parse_domain(domain)
    with locked(path):
        text, tables = read(path)
        name = _find_domain(tables, ascii_name)
        if name is None:
            raise EditRefused(f"{path}: there is no domain {domain}; see `eilpost domain list`")
        for section in ("users", "aliases"):
            members = [each for each in tables.get(section, {}) if _domain_of(each) == ascii_name]
            if members:
                more = f" and {len(members) - 1} more" if len(members) > 1 else ""
                raise EditRefused(f"{name} has {section}: {members[0]}{more}; remove them first")
        domains = {each: table for each, table in tables["domains"].items() if each != name}
        if not domains:
            raise EditRefused(f"{name} is the last domain: without one no mail is local; add another domain first")
        new = remove_table(path, text, "domains", name)
        check_alias_targets(path, text, new)
        write(path, new, {**tables, "domains": domains})
    return name


def list_domains(path: Path) -> list[DomainListing]:
    """All domains, in the order of the file."""
    _, tables = read(path)
    users, aliases = (Counter(map(_domain_of, tables.get(section, {}))) for section in ("users", "aliases"))
    return [
        DomainListing(
            name,
            table.get("tenant", "default"),
            table.get("relay", ""),
            users[_parse_domain(name)],
            aliases[_parse_domain(name)],
        )
        for name, table in tables.get("domains", {}).items()
    ]


def add_alias(path: Path, alias: str, targets: Sequence[str], *, depth: int) -> str:
    """Add an alias, or `@DOMAIN` for every other address of a domain. `depth`: `router.max_alias_depth`.

    Raises EditRefused, SettingsError.
    """
    key = _alias_key(alias)
    addresses = [parse_address(target) for target in targets]
    with locked(path):
        text, tables = read(path)
        if _find_alias(tables, key) is not None:
            raise EditRefused(f"{path}: the alias {alias} exists already; remove it first")
        if key.rpartition("@")[2] not in parse_directory(text, str(path)).domains:
            domain = alias.rpartition("@")[2]
            raise SettingsError(f"{path}: there is no domain {domain}; add it with `eilpost domain add {domain}`")
        new = insert_alias(text, alias, list(targets))
        expected = {**tables, "aliases": {**tables.get("aliases", {}), alias: list(targets)}}
        snapshot = check_edit(path, new, expected)
        for address in addresses:
            refused = expand([Recipient(address, address)], snapshot, depth).refused
            if refused:
                raise EditRefused(f"{alias} -> {address}: {refused[0].recipient.address}: {refused[0].reply.text}")
        write(path, new, expected)
    return alias


def remove_alias(path: Path, alias: str) -> str:
    """Remove an alias. Raises EditRefused, SettingsError."""
    key = _alias_key(alias)
    with locked(path):
        text, tables = read(path)
        name = _find_alias(tables, key)
        if name is None:
            raise EditRefused(f"{path}: there is no alias {alias}; see `eilpost alias list`")
        new = delete_alias(path, text, name)
        aliases = {each: targets for each, targets in tables["aliases"].items() if each != name}
        check_alias_targets(path, text, new)
        write(path, new, {**tables, "aliases": aliases})
    return name


def list_aliases(path: Path) -> list[AliasListing]:
    """All aliases, in the order of the file."""
    _, tables = read(path)
    return [AliasListing(alias, tuple(targets)) for alias, targets in tables.get("aliases", {}).items()]


def _parse_domain(text: str) -> str:
    try:
        return domain_ascii(parse_domain(text, utf8=True))
    except AddressError as error:
        raise SettingsError(f"{text!r} is not a domain like example.test: {error}") from None


def _domain_of(address: str) -> str:
    return _parse_domain(address.rpartition("@")[2])


def _alias_key(alias: str) -> str:
    return f"@{_parse_domain(alias[1:])}" if alias.startswith("@") else parse_address(alias).key


def _find_domain(tables: Tables, ascii_name: str) -> str | None:
    """The domain as the file writes it."""
    return next((name for name in tables.get("domains", {}) if _parse_domain(name) == ascii_name), None)


def _find_alias(tables: Tables, key: str) -> str | None:
    """The alias as the file writes it."""
    return next((name for name in tables.get("aliases", {}) if _alias_key(name) == key), None)
