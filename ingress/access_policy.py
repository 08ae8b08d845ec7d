"""Access policy: replies to MAIL, RCPT and VRFY by client, directory and DNS answers. Pure.

Both addresses are checked before the message is accepted, also those behind an alias, so that eilpost refuses a message
instead of bouncing it. The caller evaluates `relay_networks` (`ingress/listener.py`) and queries DNS when a verdict is
`QueryMx` or `NoRecords`; an unknown DNS answer means a temporary refusal.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import assert_never

from msgspec import Struct

from ingress import replies
from mail.address import Address, literal_ip, local_key
from mail.directory import IsAlias, IsMailbox, IsRelayed, IsRemote, IsUnknown, Snapshot
from mail.directory.expand import UNKNOWN_USER, undeliverable_reply
from mail.envelope import Recipient
from mail.reply import Reply
from mail.resolver import AddressAnswer, DnsUnknown, IpAddresses, MxAnswer, MxHosts, NoRecords, NoSuchDomain, NullMx

_SENDER_ROUTING = re.compile("[%!@]")  # RFC 5321 section 4.1.2 leaves the local-part to its host: user%host, host!user

_parsed_ip = lru_cache(maxsize=1024)(ipaddress.ip_address)  # the same clients connect often

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ClientPolicy(Struct, frozen=True):
    """Policy for a client, by its address."""

    may_relay: bool
    sender_must_resolve: bool


class QueryMx(Struct, frozen=True):
    """Query the MX records of `domain`, then call `evaluate_mx`."""

    domain: str


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """`["127.0.0.0/8", "::1/128"]`. Raises ValueError that names the invalid one."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ValueError(f'{text!r} is not a network, like "192.0.2.0/24" or "2001:db8::/32": {error}') from error
    return tuple(networks)


def normalize_ip(text: str) -> str:
    """Client address without zone; an IPv4-mapped IPv6 address becomes IPv4."""
    text = text.partition("%")[0]
    if ":" not in text:
        return text
    address = ipaddress.IPv6Address(text)
    return str(address.ipv4_mapped or address)


def is_within(ip: str, networks: tuple[Network, ...]) -> bool:
    address = _parsed_ip(ip)
    return any(address in network for network in networks)


def check_sender(
    reverse_path: Address | None, snapshot: Snapshot, client_policy: ClientPolicy
) -> QueryMx | Reply | None:
    """Check MAIL FROM; None accepts it, as always the null reverse-path (RFC 5321 section 4.5.5)."""
    if reverse_path is None:
        return None
    match snapshot.lookup(reverse_path):
        case IsMailbox() | IsAlias() | IsRelayed():
            return None
        case IsUnknown():
            return replies.UNKNOWN_SENDER.about(_address_text(reverse_path))
        case IsRemote():
            if not client_policy.sender_must_resolve or literal_ip(reverse_path.domain) is not None:
                return None
            return QueryMx(reverse_path.domain_ascii)
        case other:
            assert_never(other)


def evaluate_mx(answer: MxAnswer, domain: str) -> NoRecords | Reply | None:
    """Evaluate the MX answer for a sender domain; None accepts it. NoRecords: evaluate its addresses."""
    match answer:
        case MxHosts():
            return None
        case NullMx():
            return replies.SENDER_DOMAIN_NULL_MX.about(domain)
        case NoRecords():
            return answer  # RFC 5321 section 5.1: the implicit MX
        case NoSuchDomain():
            return replies.SENDER_DOMAIN_NOT_FOUND.about(domain)
        case DnsUnknown():
            return replies.SENDER_DOMAIN_LOOKUP_FAILED.about(domain)
        case other:
            assert_never(other)


def evaluate_addresses(answer: AddressAnswer, domain: str) -> Reply | None:
    """Evaluate the address answer for a sender domain without MX; None accepts it."""
    match answer:
        case IpAddresses():
            return None
        case NoRecords() | NoSuchDomain():
            return replies.SENDER_DOMAIN_NOT_FOUND.about(domain)
        case DnsUnknown():
            return replies.SENDER_DOMAIN_LOOKUP_FAILED.about(domain)
        case other:
            assert_never(other)


def check_recipient(
    forward_path: Address | None, snapshot: Snapshot, client_policy: ClientPolicy, hostname: str, alias_depth: int
) -> Recipient | Reply:
    """Check RCPT TO; None is `<Postmaster>`, which always exists. An alias without a valid target is refused."""
    if forward_path is None:
        address = postmaster(snapshot, hostname)
        return Recipient(Address(address.local, hostname)).readdressed(address)
    match snapshot.lookup(forward_path):
        case IsMailbox():
            return Recipient(forward_path)
        case IsRelayed():
            # As Postfix with `allow_untrusted_routing = no`: the relay domain's host might send it on to a third one.
            if not client_policy.may_relay and _SENDER_ROUTING.search(forward_path.local):
                return replies.RELAYING_DENIED.about(_address_text(forward_path))
            return Recipient(forward_path)
        case IsAlias():
            reason = undeliverable_reply(forward_path, snapshot, alias_depth)
            if reason is None:
                return Recipient(forward_path)
            if reason.enhanced == UNKNOWN_USER.enhanced:
                return replies.NO_SUCH_USER.about(_address_text(forward_path))
            # RFC 5321 section 4.3.2 has 550 for RCPT, and no 554; RFC 3463 X.4.6 is a loop, X.2.4 an empty list.
            return Reply(550, reason.enhanced, f"{_address_text(forward_path)}: {reason.text}")
        case IsUnknown():
            if local_key(forward_path.local) == "postmaster":  # RFC 5321 section 4.5.1: for every local domain
                return Recipient(forward_path).readdressed(postmaster(snapshot, hostname))
            return replies.NO_SUCH_USER.about(_address_text(forward_path))
        case IsRemote():
            # Checked before relaying: the MX of this host name leads back to this server.
            if local_key(forward_path.local) == "postmaster" and forward_path.domain == hostname.lower():
                return Recipient(forward_path).readdressed(postmaster(snapshot, hostname))
            if client_policy.may_relay:
                return Recipient(forward_path)
            return replies.RELAYING_DENIED.about(_address_text(forward_path))
        case other:
            assert_never(other)


def postmaster(snapshot: Snapshot, hostname: str) -> Address:
    """Address of the postmaster (RFC 5321 section 4.5.1): at this server's host name, or at the first local domain that
    has one. Without any, the address at the first local domain is returned, and the router bounces the message.
    """
    local = [name for name, domain in snapshot.domains.items() if domain.is_local]
    for domain in (hostname.lower(), *local):
        address = Address("postmaster", domain)
        if isinstance(snapshot.lookup(address), IsMailbox | IsAlias):
            return address
    return Address("postmaster", local[0] if local else hostname.lower())


def verify_address(address: Address | str, snapshot: Snapshot) -> Reply:
    """Reply to VRFY (RFC 5321 section 3.5). A bare user name is looked up in every local domain, without catch-alls."""
    if isinstance(address, str):
        local = [Address(address, name) for name, domain in snapshot.domains.items() if domain.is_local]
        matches = [user for user in local if user.key in snapshot.users or user.key in snapshot.aliases]
        if len(matches) > 1:
            return replies.USER_AMBIGUOUS
        return _user_exists(matches[0]) if matches else replies.VRFY_NO_SUCH_USER
    match snapshot.lookup(address):
        case IsMailbox() | IsAlias():
            return _user_exists(address)
        case IsRelayed() | IsRemote():
            return replies.NOT_A_USER
        case IsUnknown():
            return replies.VRFY_NO_SUCH_USER
        case other:
            assert_never(other)


def _user_exists(address: Address) -> Reply:
    return replies.USER_EXISTS.with_text(f"<{address}>") if address.is_ascii else replies.USER_EXISTS


def _address_text(address: Address) -> str:
    """The address if it is ASCII: RFC 6531 section 3.7.4.2 allows no UTF-8 in most replies."""
    return f"<{address}>" if address.is_ascii else "Address"
