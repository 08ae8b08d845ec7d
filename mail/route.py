"""Route of a delivery: a local mailbox, a fixed relay, or the MX hosts of a domain. Pure values.

A *site* is the set of hosts that share connections, limits and back-off: two domains with the same MX hosts are one
site (`site_name`: a short name). `partition_key` in `mail/log/topics.py` assigns a delivery to a worker.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache

from mail.frame_struct import FrameStruct


class RelayProtocol(StrEnum):
    """The protocol of a relay."""

    SMTP = "smtp"
    LMTP = "lmtp"


class ToMailbox(FrameStruct, frozen=True, tag="mailbox"):
    """To the local mailbox of `owner` (an `Address.key`)."""

    owner: str

    @property
    def site(self) -> str:
        return "mailbox"

    @property
    def site_name(self) -> str:
        return self.site


MAILBOX_SITE = ToMailbox("").site


class ToRelay(FrameStruct, frozen=True, tag="relay"):
    """To a host from the configuration."""

    host: str
    port: int
    protocol: RelayProtocol = RelayProtocol.SMTP

    @property
    def site(self) -> str:
        return f"{self.protocol}://{self.host}:{self.port}"

    @property
    def site_name(self) -> str:
        return self.site


class ToMx(FrameStruct, frozen=True, tag="mx"):
    """To the MX hosts of `domain` (RFC 5321 section 5.1): `hosts` as (preference, name), best first.

    A name may be the IP address of an address literal. The site is the list of hosts grouped by preference; the domain
    and the preference numbers do not matter (10 and 20 give the same site as 5 and 10).
    """

    domain: str
    hosts: tuple[tuple[int, str], ...]

    @property
    def site(self) -> str:
        return _mx_site(self.hosts)

    @property
    def site_name(self) -> str:
        return self.hosts[0][1] if self.hosts else self.domain


@lru_cache(maxsize=10_000)  # used several times per delivery
def _mx_site(hosts: tuple[tuple[int, str], ...]) -> str:
    groups: dict[int, list[str]] = {}
    for preference, name in hosts:
        groups.setdefault(preference, []).append(name)
    return "mx:" + "|".join(",".join(sorted(names)) for _, names in sorted(groups.items()))


class Unresolved(FrameStruct, frozen=True, tag="unresolved"):
    """DNS has not answered for `domain` yet. Such a delivery waits in the queue and is not dispatched."""

    domain: str

    @property
    def site(self) -> str:
        return f"unresolved:{self.domain}"

    @property
    def site_name(self) -> str:
        return self.site


Route = ToMailbox | ToRelay | ToMx | Unresolved
