"""Directory port: domains, mailboxes, aliases and tenants.

A `Snapshot` is immutable; a role uses one snapshot per decision, so a reload does not affect a running decision.
Adapter: `file` (TOML).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Protocol

from mail.address import Address, domain_ascii, local_key
from mail.route import ToRelay


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant. Its limits and source addresses are read and not enforced; None means no limit."""

    name: str
    dedicated: bool = False
    messages_per_hour: int | None = None
    storage_bytes: int | None = None
    source_addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain that eilpost accepts mail for. With `relay_to` or `by_mx` it is a relay domain without local users."""

    name: str
    tenant: str
    relay_to: ToRelay | None = None
    by_mx: bool = False

    @property
    def is_local(self) -> bool:
        return self.relay_to is None and not self.by_mx


@dataclass(frozen=True, slots=True)
class User:
    """A mailbox. `password` is an argon2 hash ("$argon2id$..."); empty: the user cannot log in."""

    address: Address
    password: str = field(repr=False, default="")
    quota_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class IsMailbox:
    """Mail for the address is delivered to the mailbox of `owner` (an `Address.key`)."""

    owner: str


@dataclass(frozen=True, slots=True)
class IsAlias:
    """The address is the alias `name` (a key of `Snapshot.aliases`) of `targets`, which may be local, remote or aliases
    themselves.
    """

    targets: tuple[Address, ...]
    name: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class IsRelayed:
    """The domain is a relay domain."""

    domain: Domain


@dataclass(frozen=True, slots=True)
class IsUnknown:
    """The domain is local and the address does not exist: 550 5.1.1."""


@dataclass(frozen=True, slots=True)
class IsRemote:
    """The domain is not in the directory."""


Destination = IsMailbox | IsRelayed | IsRemote  # of a recipient after alias expansion
LookupResult = Destination | IsAlias | IsUnknown

OWNER_PREFIX = "owner-"
DEFAULT_TENANT = Tenant("default")


@dataclass(frozen=True)
class Snapshot:
    """The directory at one instant. Keys: tenant name; `Address.domain_ascii` for domains; `Address.key` for users and
    aliases.
    """

    tenants: Mapping[str, Tenant] = field(default_factory=lambda: {"default": DEFAULT_TENANT})
    domains: Mapping[str, Domain] = field(default_factory=dict)
    users: Mapping[str, User] = field(default_factory=dict)
    aliases: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)
    delimiter: str = "+"  # user+detail@ is user@ (RFC 5233); empty: disabled

    def lookup(self, address: Address) -> LookupResult:
        """Look up an address. An exact name precedes the name without detail, an alias precedes the mailbox of the same
        name; `@domain` is the catch-all alias.
        """
        name = address.domain_ascii
        domain = self.domains.get(name)
        key = address.key
        targets = self.aliases.get(key)
        if targets is not None:
            return IsAlias(targets, key)
        if domain is None:
            return IsRemote()
        if not domain.is_local:
            return IsRelayed(domain)
        if key in self.users:
            return IsMailbox(key)
        base_key = self._base_key(address)
        if base_key in self.aliases:
            return IsAlias(self.aliases[base_key], base_key)
        if base_key in self.users:
            return IsMailbox(base_key)
        catch_all = self.aliases.get(f"@{name}")
        return IsAlias(catch_all, f"@{name}") if catch_all is not None else IsUnknown()

    @cached_property
    def alias_distances(self) -> Mapping[str, int]:
        """For each alias that leads to a final recipient, the number of expansions to the nearest one. Its cost is that
        of one look-up for each alias target; a directory evaluates it once, in the thread that loads the file.
        """
        lists_of: dict[str, list[str]] = {}  # alias -> aliases that have it as a target
        distances: dict[str, int] = {}
        for name, targets in self.aliases.items():
            for target in targets:
                result = self.lookup(target)
                if isinstance(result, IsAlias) and not (result.name == name and self.mailbox_of(target) is not None):
                    lists_of.setdefault(result.name, []).append(name)
                elif not isinstance(result, IsUnknown):
                    distances[name] = 1
        nearest = deque(distances)
        while nearest:
            name = nearest.popleft()
            for outer in lists_of.get(name, ()):
                if outer not in distances:
                    distances[outer] = distances[name] + 1
                    nearest.append(outer)
        return distances

    def mailbox_of(self, address: Address) -> str | None:
        """The mailbox with the name of the address, ignoring aliases: the target of an alias that names itself."""
        return next((key for key in (address.key, self._base_key(address)) if key in self.users), None)

    def owner_of(self, alias: Address) -> Address | None:
        """The owner of a list, as in Postfix: `owner-NAME@DOMAIN`, if the directory has this alias or user."""
        for key in (alias.key, self._base_key(alias)):
            local, _, domain = key.rpartition("@")
            owner = f"{OWNER_PREFIX}{local}@{domain}"
            if (owner in self.aliases or owner in self.users) and not local.startswith(OWNER_PREFIX):
                return Address(f"{OWNER_PREFIX}{local}", domain)
        return None

    def _base_key(self, address: Address) -> str:
        """The key without the detail; empty when the address has no detail."""
        if not self.delimiter:
            return ""
        base, delimiter, _detail = local_key(address.local).partition(self.delimiter)
        return f"{base}@{address.domain_ascii}" if delimiter and base else ""

    def tenant_of(self, domain: str) -> Tenant:
        """The tenant of a domain; the default tenant when the domain is not in the directory."""
        known = self.domains.get(domain_ascii(domain))
        return self.tenants.get(known.tenant if known else "default", DEFAULT_TENANT)


class Directory(Protocol):
    @property
    def snapshot(self) -> Snapshot:
        """The last good snapshot. Cheap."""
        ...

    async def authenticate(
        self, login: str, password: str, *, timeout: timedelta = timedelta(seconds=10)
    ) -> User | None:
        """The user if the password is right; None, after the same time, if the user or the password is wrong.

        Raises DirectoryUnavailable when the password cannot be checked now.
        """
        ...


class DirectoryUnavailable(Exception):
    """The directory does not respond or is overloaded: a temporary failure for the client."""


class DirectoryUnusable(Exception):
    """The directory cannot be loaded; the text names the file, line or key and says what to do."""
