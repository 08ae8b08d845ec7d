"""Listener configuration and resources shared by its sessions."""

from __future__ import annotations

from dataclasses import dataclass

from ingress import access_policy
from ingress.accept import Acceptance
from ingress.limits import ConnectionLimiter, MemoryBudget
from ingress.spool_monitor import SpoolMonitor
from mail.directory import Directory
from mail.log import Appender
from mail.reply import Reply
from mail.resolver import Resolver


@dataclass(frozen=True, slots=True)
class Listener:
    """One listener. Another role (submission) needs another `Listener`, not another session class."""

    name: str
    hostname: str
    relay_networks: tuple[access_policy.Network, ...]
    sender_must_resolve: bool
    sender_check_exempts_relay_networks: bool
    vrfy_enabled: bool
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
    connection_limiter: ConnectionLimiter
    memory_budget: MemoryBudget
    spool_monitor: SpoolMonitor
    greeting_reply: bytes
    ehlo_reply: bytes
    helo_reply: bytes

    def client_policy(self, ip: str) -> access_policy.ClientPolicy:
        may_relay = access_policy.is_within(ip, self.relay_networks)
        return access_policy.ClientPolicy(
            may_relay=may_relay,
            sender_must_resolve=self.sender_must_resolve
            and not (may_relay and self.sender_check_exempts_relay_networks),
        )


def make_ehlo_reply(hostname: str, max_size: int) -> bytes:
    """RFC 5321 section 4.1.1.1: the host name, then the extensions."""
    extensions = ("PIPELINING", f"SIZE {max_size}", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8")
    return Reply(250, "", "\n".join((hostname, *extensions))).to_bytes()
