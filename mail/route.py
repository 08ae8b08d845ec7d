"""Where a delivery goes: a mailbox here, a fixed relay, or the MX site of a domain.

A *site* is the name under which deliveries share connections, windows and back-off: two domains with the same MX hosts
are one site. Which worker carries a delivery is another question (`partition_key` in `mail/log/topics.py`). Pure
values.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache


class RelayProtocol(StrEnum):
    """The protocol of a relay."""

    SMTP = "smtp"
    LMTP = "lmtp"


@dataclass(frozen=True, slots=True)
class ToMailbox:
    """Into the mailbox of `owner` (an `Address.key`) on this system."""

    owner: str

    @property
    def site(self) -> str:
        return "mailbox"


@dataclass(frozen=True, slots=True)
class ToRelay:
    """To one host that was named in the configuration."""

    host: str
    port: int
    protocol: RelayProtocol = RelayProtocol.SMTP

    @property
    def site(self) -> str:
        return f"{self.protocol}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ToMx:
    """To the mail exchangers of `domain` (RFC 5321 section 5.1): `hosts` as (preference, name), best first.

    A name may be an address literal's IP address. The site is the hosts in groups of equal preference, best first,
    whatever the domain and the numbers: 10 and 20 mean what 5 and 10 mean.
    """

    domain: str
    hosts: tuple[tuple[int, str], ...]

    @property
    def site(self) -> str:
        return _mx_site(self.hosts)


@lru_cache(maxsize=10_000)  # asked for several times with each delivery
def _mx_site(hosts: tuple[tuple[int, str], ...]) -> str:
    groups: dict[int, list[str]] = {}
    for preference, name in hosts:
        groups.setdefault(preference, []).append(name)
    return "mx:" + "|".join(",".join(sorted(names)) for _, names in sorted(groups.items()))


@dataclass(frozen=True, slots=True)
class Unresolved:
    """Not known yet: DNS has not answered for `domain`. Such a delivery waits in the queue; it is never dispatched."""

    domain: str

    @property
    def site(self) -> str:
        return f"unresolved:{self.domain}"


Route = ToMailbox | ToRelay | ToMx | Unresolved
