"""Parser of the directory file: TOML text to a `Snapshot`, or one error line that names the file and the key. Pure.

It is strict (unknown keys, invalid addresses, unknown domains and tenants, malformed hashes), because such an error
would make mail undeliverable later.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from mail.address import MAX_LOCAL_BYTES, Address, AddressError, domain_ascii, parse_domain
from mail.directory import DEFAULT_TENANT, DirectoryUnusable, Domain, Snapshot, Tenant, User
from mail.endpoint import parse_relay
from mail.toml_syntax import TomlError, parse_toml
from mail.units import parse_size

_TOPIC_PART = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECTIONS = ("delimiter", "tenants", "domains", "users", "aliases")
_Table = Mapping[str, Any]
_Entry = TypeVar("_Entry")


def parse_directory(text: str, name: str, is_hash: Callable[[str], bool] = lambda _: True) -> Snapshot:
    """The snapshot in `text`; `name` is the file name for errors. Raises DirectoryUnusable with one line."""
    try:
        tables = parse_toml(text, name)
    except TomlError as error:
        raise DirectoryUnusable(str(error)) from error
    return _Parser(name, is_hash).snapshot(tables)


class _Parser:
    def __init__(self, name: str, is_hash: Callable[[str], bool]) -> None:
        self._name = name
        self._is_hash = is_hash

    def snapshot(self, tables: _Table) -> Snapshot:
        self._check_keys(tables, _SECTIONS, "")
        delimiter = tables.get("delimiter", "+")
        if not isinstance(delimiter, str) or len(delimiter) > 1 or delimiter in ("@", '"', "."):
            raise self._error("delimiter", delimiter, 'one character like "+" or "-" is expected, or "" for none')
        tenants = {"default": DEFAULT_TENANT} | {
            key: self._tenant(key, table) for key, table in self._section(tables, "tenants")
        }
        domains: dict[str, Domain] = {}
        for key, table in self._section(tables, "domains"):
            domain = self._domain(key, table, tenants)
            self._add(domains, domain.name, domain, f'domains."{key}"', key)
        users: dict[str, User] = {}
        for key, table in self._section(tables, "users"):
            user = self._user(key, table, domains)
            self._add(users, user.address.key, user, f'users."{key}"', key)
        aliases: dict[str, tuple[Address, ...]] = {}
        for key, targets in self._table("aliases", tables.get("aliases", {})).items():
            alias, addresses = self._alias(key, targets, domains)
            self._add(aliases, alias, addresses, f'aliases."{key}"', key)
        return Snapshot(tenants, domains, users, aliases, delimiter)

    def _tenant(self, key: str, table: _Table) -> Tenant:
        key_path = f"tenants.{key}"
        self._check_keys(table, ("hosting", "messages_per_hour", "storage", "source_addresses"), key_path)
        hosting = table.get("hosting", "shared")
        if hosting not in ("shared", "dedicated"):
            raise self._error(f"{key_path}.hosting", hosting, '"shared" or "dedicated" is expected')
        if hosting == "dedicated" and not _TOPIC_PART.fullmatch(key):
            raise self._error(key_path, key, "letters, digits, - and _ are expected (the name becomes part of topics)")
        if hosting == "dedicated" and key == "shared":
            raise self._error(key_path, key, "another name is expected: metrics use it for all shared tenants")
        per_hour = table.get("messages_per_hour")
        if per_hour is not None and (type(per_hour) is not int or per_hour < 0):
            raise self._error(f"{key_path}.messages_per_hour", per_hour, "a whole number is expected")
        sources = table.get("source_addresses", [])
        if not isinstance(sources, list):
            raise self._error(f"{key_path}.source_addresses", sources, "a list of IP addresses is expected")
        for source in sources:
            try:
                ipaddress.ip_address(source if isinstance(source, str) else "")
            except ValueError as error:
                raise self._error(f"{key_path}.source_addresses", source, "an IP address is expected") from error
        storage = self._size(f"{key_path}.storage", table.get("storage"))
        return Tenant(key, hosting == "dedicated", per_hour, storage, tuple(sources))

    def _domain(self, key: str, table: _Table, tenants: Mapping[str, Tenant]) -> Domain:
        key_path = f'domains."{key}"'
        try:
            name = domain_ascii(parse_domain(key, utf8=True))
        except AddressError as error:
            raise self._error(key_path, key, f"a domain is expected ({error})") from error
        self._check_keys(table, ("tenant", "relay"), key_path)
        tenant = table.get("tenant", "default")
        if tenant not in tenants:
            raise self._error(f"{key_path}.tenant", tenant, f"there is no [tenants.{tenant}]")
        relay = table.get("relay")
        if relay is None or relay == "mx":
            return Domain(name, tenant, by_mx=relay == "mx")
        try:
            return Domain(name, tenant, relay_to=parse_relay(relay if isinstance(relay, str) else ""))
        except ValueError as error:
            raise self._error(f"{key_path}.relay", relay, f'{error}, or "mx"') from error

    def _user(self, key: str, table: _Table, domains: Mapping[str, Domain]) -> User:
        key_path = f'users."{key}"'
        address = self._address(key_path, key)
        domain = domains.get(address.domain_ascii)
        if domain is None:
            raise self._error(key_path, key, f'there is no [domains."{address.domain}"]')
        if len(address.local.encode()) > MAX_LOCAL_BYTES:
            raise self._error(key_path, key, f"at most {MAX_LOCAL_BYTES} octets before the @ are expected")
        if not domain.is_local:
            raise self._error(key_path, key, f"{address.domain} is a relay domain and has no local mailboxes")
        self._check_keys(table, ("password", "quota"), key_path)
        password = table.get("password", "")
        if not isinstance(password, str) or (password and not self._is_hash(password)):
            expected = 'an argon2 hash like "$argon2id$..." is expected; `eilpost user passwd` makes one'
            # Not quoted: the value may be a password.
            raise DirectoryUnusable(f"{self._name}: {key_path}.password: {expected}")
        return User(address, password, self._size(f"{key_path}.quota", table.get("quota")))

    def _alias(self, key: str, targets: object, domains: Mapping[str, Domain]) -> tuple[str, tuple[Address, ...]]:
        key_path = f'aliases."{key}"'
        if key.startswith("@"):
            try:
                domain = domain_ascii(parse_domain(key[1:], utf8=True))
            except AddressError as error:
                raise self._error(key_path, key, f"a domain is expected after the @ ({error})") from error
            alias = f"@{domain}"
        else:
            address = self._address(key_path, key)
            alias, domain = address.key, address.domain_ascii
        if domain not in domains:
            raise self._error(key_path, key, f'there is no [domains."{domain}"]')
        if not isinstance(targets, list) or not targets:
            raise self._error(key_path, targets, 'a list of addresses is expected, like ["alice@example.test"]')
        addresses = (self._address(key_path, target) for target in targets)
        return alias, tuple(dict.fromkeys(addresses))

    def _address(self, key_path: str, text: object) -> Address:
        try:
            return Address.parse(text if isinstance(text, str) else "", utf8=True)
        except AddressError as error:
            raise self._error(key_path, text, f"an address is expected ({error})") from error

    def _size(self, key_path: str, value: object) -> int | None:
        if value is None:
            return None
        try:
            return parse_size(value if isinstance(value, str) else None)
        except ValueError as error:
            raise self._error(key_path, value, str(error)) from error

    def _section(self, tables: _Table, section: str) -> Iterable[tuple[str, _Table]]:
        for key, table in self._table(section, tables.get(section, {})).items():
            yield key, self._table(f'{section}."{key}"', table)

    def _table(self, key_path: str, value: object) -> _Table:
        if not isinstance(value, dict):
            raise self._error(key_path, value, "a table is expected")
        return value

    def _check_keys(self, table: _Table, known: tuple[str, ...], key_path: str) -> None:
        for key in table:
            if key not in known:
                matches = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {matches[0]}?" if matches else f"the keys are {', '.join(known)}"
                raise DirectoryUnusable(f"{self._name}: {key_path + '.' if key_path else ''}{key}: no such key; {hint}")

    def _add(self, entries: dict[str, _Entry], name: str, entry: _Entry, key_path: str, key: str) -> None:
        if name in entries:
            raise self._error(key_path, key, "it is listed twice (case is ignored)")
        entries[name] = entry

    def _error(self, key_path: str, value: object, expected: str) -> DirectoryUnusable:
        return DirectoryUnusable(f"{self._name}: {key_path}: found {value!r}; {expected}")
