"""Next hop of a recipient: a mailbox, a relay, or the mail exchangers of its domain. Pure.

The result is a `Route`, or the `Reply` that fails the recipient; a missing DNS answer gives `Unresolved`.
Source: RFC 5321 section 5.1, RFC 7505.
"""

from __future__ import annotations

from typing import assert_never

from mail.address import Address, literal_ip
from mail.directory import Destination, IsMailbox, IsRelayed, IsRemote
from mail.reply import LOOPS_BACK, Reply
from mail.resolver import DnsUnknown, IpAddresses, MxHosts, NoRecords, NoSuchDomain, NullMx
from mail.route import Route, ToMailbox, ToMx, Unresolved
from router.routing_context import DnsAnswers, RoutingContext

# RFC 7505 section 3 and 4.1: the domain does not accept mail.
NULL_MX = Reply(556, "5.1.10", "Recipient's domain does not accept mail (null MX)")
NO_SUCH_DOMAIN = Reply(550, "5.1.2", "Recipient's domain does not exist")  # RFC 3463 X.1.2
NO_MX_AND_NO_ADDRESS = Reply(550, "5.4.4", "Recipient's domain has no mail exchanger and no address")  # RFC 3463 X.4.4


def next_hop(address: Address, destination: Destination, context: RoutingContext) -> Route | Reply:
    """The route of one final recipient, or the reply that fails it."""
    match destination:
        case IsMailbox():
            return ToMailbox(destination.owner)
        case IsRelayed():
            if destination.domain.relay_to is not None:
                return destination.domain.relay_to
        case IsRemote():
            pass
        case _:
            assert_never(destination)
    if context.policy.relay is not None:
        return context.policy.relay
    ip = literal_ip(address.domain)
    if ip is not None:  # RFC 5321 section 2.3.5: a literal names its host; no MX look-up
        return ToMx(address.domain, ((0, ip),))
    return route_by_mx(address.domain_ascii, context.answers, context.policy.hostname)


def mx_domain(address: Address, destination: Destination, context: RoutingContext) -> str | None:
    """The domain whose MX records `next_hop` needs, in A-labels; None if it needs no DNS."""
    if isinstance(destination, IsMailbox) or context.policy.relay is not None:
        return None
    if isinstance(destination, IsRelayed) and destination.domain.relay_to is not None:
        return None
    return None if address.domain.startswith("[") else address.domain_ascii


def route_by_mx(domain: str, answers: DnsAnswers, hostname: str) -> Route | Reply:
    """RFC 5321 section 5.1, from the DNS answers."""
    answer = answers.mx.get(domain)
    match answer:
        case None | DnsUnknown():
            return Unresolved(domain)
        case NullMx():
            return NULL_MX
        case NoSuchDomain():
            return NO_SUCH_DOMAIN
        case MxHosts():
            hosts = without_self(answer.hosts, hostname)
            return ToMx(domain, hosts) if hosts else LOOPS_BACK
        case NoRecords():
            return _implicit_mx(domain, answers, hostname)
        case _:
            assert_never(answer)


def _implicit_mx(domain: str, answers: DnsAnswers, hostname: str) -> Route | Reply:
    """No MX: the domain itself with preference 0, if it has an address."""
    answer = answers.addresses.get(domain)
    match answer:
        case None | DnsUnknown():
            return Unresolved(domain)
        case IpAddresses():
            return LOOPS_BACK if domain == hostname.lower() else ToMx(domain, ((0, domain),))
        case NoRecords():
            return NO_MX_AND_NO_ADDRESS
        case NoSuchDomain():
            return NO_SUCH_DOMAIN
        case _:
            assert_never(answer)


def without_self(hosts: tuple[tuple[int, str], ...], hostname: str) -> tuple[tuple[int, str], ...]:
    """RFC 5321 section 5.1: if this server is listed, keep only hosts with a better (lower) preference than its own."""
    own = hostname.lower()
    own_preference = min((preference for preference, name in hosts if name == own), default=None)
    if own_preference is None:
        return hosts
    return tuple((preference, name) for preference, name in hosts if preference < own_preference)
