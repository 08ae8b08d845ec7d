"""`eilpost domain` and `eilpost alias`: add, remove and list the domains and aliases of the directory file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eilpost.directory_editor import EditRefused, edit, parse_address, read
from mail.address import AddressError, domain_ascii, parse_domain
from mail.directory.expand import UNKNOWN_USER, expand
from mail.envelope import Recipient
from mail.settings_section import SettingsError


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
    ascii_name = _parse_domain(domain)
    with edit(path) as file:
        if file.find("domains", lambda name: _parse_domain(name) == ascii_name) is not None:
            raise EditRefused(f"{path}: the domain {domain} exists already")
        file.add_table("domains", domain, {key: text for key, text in (("tenant", tenant), ("relay", relay)) if text})
    return domain


def remove_domain(path: Path, domain: str) -> str:
    """Remove a domain without users and aliases, unless it is the last. Raises EditRefused, SettingsError."""
    ascii_name = _parse_domain(domain)
    with edit(path) as file:
        name = file.find("domains", lambda name: _parse_domain(name) == ascii_name)
        if name is None:
            raise EditRefused(f"{path}: there is no domain {domain}; see `eilpost domain list`")
        for section in ("users", "aliases"):
            members = [member for member in file.entries(section) if _domain_of(member) == ascii_name]
            if members:
                others = f" and {len(members) - 1} more" if len(members) > 1 else ""
                raise EditRefused(f"{name} has {section}: {members[0]}{others}; remove them first")
        if len(file.entries("domains")) == 1:
            raise EditRefused(f"{name} is the last domain: without one no mail is local; add another domain first")
        file.remove_table("domains", name)
    return name


def list_domains(path: Path) -> list[DomainListing]:
    """All domains, in the order of the file."""
    file = read(path)
    users, aliases = (Counter(map(_domain_of, file.entries(section))) for section in ("users", "aliases"))
    return [
        DomainListing(
            name,
            table.get("tenant", "default"),
            table.get("relay", ""),
            users[_parse_domain(name)],
            aliases[_parse_domain(name)],
        )
        for name, table in file.entries("domains").items()
    ]


def add_alias(path: Path, alias: str, targets: Sequence[str], *, depth: int) -> str:
    """Add an alias, or `@DOMAIN` for every other address of a domain. `depth`: `router.max_alias_depth`.

    Raises EditRefused, SettingsError.
    """
    key = _alias_key(alias)
    addresses = [parse_address(target) for target in targets]
    with edit(path) as file:
        if file.find("aliases", lambda name: _alias_key(name) == key) is not None:
            raise EditRefused(f"{path}: the alias {alias} exists already; remove it first")
        if key.rpartition("@")[2] not in file.snapshot.domains:
            domain = alias.rpartition("@")[2]
            raise EditRefused(f"{path}: there is no domain {domain}; add it with `eilpost domain add {domain}`")
        file.add_alias(alias, targets)
        snapshot = file.check()
        for address in addresses:
            refused = expand([Recipient(address)], snapshot, depth).refused
            if refused and refused[0].reply == UNKNOWN_USER:
                missing = refused[0].recipient.address
                raise EditRefused(
                    f"alias {alias}: there is no mailbox {missing}; add it with `eilpost user add {missing}`"
                )
            if refused:
                raise EditRefused(f"{alias} -> {address}: {refused[0].recipient.address}: {refused[0].reply.text}")
    return alias


def remove_alias(path: Path, alias: str) -> str:
    key = _alias_key(alias)
    with edit(path) as file:
        name = file.find("aliases", lambda name: _alias_key(name) == key)
        if name is None:
            raise EditRefused(f"{path}: there is no alias {alias}; see `eilpost alias list`")
        file.remove_alias(name)
    return name


def list_aliases(path: Path) -> list[AliasListing]:
    """All aliases, in the order of the file."""
    return [AliasListing(alias, tuple(targets)) for alias, targets in read(path).entries("aliases").items()]


def _parse_domain(text: str) -> str:
    try:
        return domain_ascii(parse_domain(text, utf8=True))
    except AddressError as error:
        raise SettingsError(f"{text!r} is not a domain like example.test: {error}") from None


def _domain_of(address: str) -> str:
    return _parse_domain(address.rpartition("@")[2])


def _alias_key(alias: str) -> str:
    return f"@{_parse_domain(alias[1:])}" if alias.startswith("@") else parse_address(alias).key
