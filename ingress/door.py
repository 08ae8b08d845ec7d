"""A listener, and all that its sessions share: the terms of the house. Values and references, no behaviour of its own.

Another kind of listener (submission) is another `Door`, not another session. Next: `ingress/session.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ingress import policy
from ingress.accept import Acceptance
from ingress.pressure import Crowd, Meter
from ingress.storeroom import Storeroom
from mail.directory import Directory
from mail.log import Appender
from mail.reply import Reply
from mail.resolver import Resolver


@dataclass(frozen=True, slots=True)
class Door:
    """A listener, and all that its sessions share. Another kind of listener is another door, not another session."""

    name: str
    hostname: str
    relay_networks: tuple[policy.Network, ...]
    sender_must_resolve: bool
    sender_check_exempts_relay: bool
    truthful_vrfy: bool
    max_size: int
    max_recipients: int
    max_errors: int
    max_hops: int
    alias_depth: int
    command_seconds: float
    data_seconds: float
    directory: Directory
    resolver: Resolver
    log: Appender
    acceptance: Acceptance
    crowd: Crowd
    meter: Meter
    storeroom: Storeroom
    greeting: bytes
    ehlo: bytes
    helo: bytes

    def terms(self, ip: str) -> policy.Terms:
        may_relay = policy.is_within(ip, self.relay_networks)
        return policy.Terms(
            may_relay=may_relay,
            sender_must_resolve=self.sender_must_resolve and not (may_relay and self.sender_check_exempts_relay),
        )


def ehlo(hostname: str, max_size: int) -> bytes:
    """RFC 5321 section 4.1.1.1: our name, then the extensions."""
    extensions = ("PIPELINING", f"SIZE {max_size}", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8")
    return Reply(250, "", "\n".join((hostname, *extensions))).wire()
