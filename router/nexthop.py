"""Where an address that is not a mailbox here goes next: a relay, or the mail exchangers of its domain. Pure.

It turns facts (the directory's domains, DNS answers) into a `Route`, or into the `Reply` that ends the recipient. It
asks nobody: a question without an answer is `Unresolved`, which waits. Source: RFC 5321 section 5.1, RFC 7505.
Next: `router/decide.py`.
"""

from __future__ import annotations

from typing import assert_never

from mail.address import Address, literal_ip
from mail.directory import IsElsewhere, IsMailbox, IsRelayed, Place
from mail.reply import Reply
from mail.resolver import DnsUnknown, IpAddresses, MxHosts, NoRecords, NoSuchDomain, NullMx
from mail.route import Route, ToMailbox, ToMx, Unresolved
from router.world import Answers, World

# RFC 7505 section 3 and 4.1: the domain says that it takes no mail.
TAKES_NO_MAIL = Reply(556, "5.1.10", "Recipient's domain takes no mail (null MX)")
NO_SUCH_DOMAIN = Reply(550, "5.1.2", "Recipient's domain does not exist")  # RFC 3463 X.1.2
NO_HOST = Reply(550, "5.4.4", "Recipient's domain has no mail exchanger and no address")  # RFC 3463 X.4.4
LOOPS_BACK = Reply(554, "5.4.6", "Mail for the recipient's domain loops back to myself")  # RFC 3463 X.4.6


def next_hop(address: Address, place: Place, world: World) -> Route | Reply:
    """The route of one final recipient, or why there will never be one."""
    match place:
        case IsMailbox():
            return ToMailbox(place.owner)
        case IsRelayed():
            if place.domain.relay_to is not None:
                return place.domain.relay_to
        case IsElsewhere():
            pass
        case _:
            assert_never(place)
    if world.policy.relay is not None:
        return world.policy.relay
    ip = literal_ip(address.domain)
    if ip is not None:  # RFC 5321 section 2.3.5: a literal names its host; no MX look-up
        return ToMx(address.domain, ((0, ip),))
    return by_mx(address.domain_ascii, world.answers, world.policy.hostname)


def question(address: Address, place: Place, world: World) -> str | None:
    """The domain that `next_hop` would have to know the MX of, in A-labels; None when it needs no DNS."""
    if isinstance(place, IsMailbox) or world.policy.relay is not None:
        return None
    if isinstance(place, IsRelayed) and place.domain.relay_to is not None:
        return None
    return None if address.domain.startswith("[") else address.domain_ascii


def by_mx(domain: str, answers: Answers, own_name: str) -> Route | Reply:
    """RFC 5321 section 5.1, with what DNS said."""
    answer = answers.mx.get(domain)
    match answer:
        case None | DnsUnknown():
            return Unresolved(domain)
        case NullMx():
            return TAKES_NO_MAIL
        case NoSuchDomain():
            return NO_SUCH_DOMAIN
        case MxHosts():
            hosts = without_self(answer.hosts, own_name)
            return ToMx(domain, hosts) if hosts else LOOPS_BACK
        case NoRecords():
            return _implicit_mx(domain, answers, own_name)
        case _:
            assert_never(answer)


def _implicit_mx(domain: str, answers: Answers, own_name: str) -> Route | Reply:
    """No MX: the domain itself, with preference 0, if it has an address."""
    answer = answers.addresses.get(domain)
    match answer:
        case None | DnsUnknown():
            return Unresolved(domain)
        case IpAddresses():
            return LOOPS_BACK if domain == own_name.lower() else ToMx(domain, ((0, domain),))
        case NoRecords():
            return NO_HOST
        case NoSuchDomain():
            return NO_SUCH_DOMAIN
        case _:
            assert_never(answer)


def without_self(hosts: tuple[tuple[int, str], ...], own_name: str) -> tuple[tuple[int, str], ...]:
    """RFC 5321 section 5.1: with ourselves in the list, only hosts with a better (lower) preference than ours stay."""
    own = own_name.lower()
    ours = min((preference for preference, name in hosts if name == own), default=None)
    if ours is None:
        return hosts
    return tuple((preference, name) for preference, name in hosts if preference < ours)
