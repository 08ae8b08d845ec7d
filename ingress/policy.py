"""Policy of the sessions of a listener. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ingress import access_policy
from ingress.checks import MX_STEPS, Step
from ingress.draft import Facts
from mail.reply import Reply


@dataclass(frozen=True)
class Policy:
    """What the sessions of a listener offer and allow. Another role (submission) needs another `Policy`, not another
    session class.
    """

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
    stress_seconds: float = 10.0  # limit for clients outside relay_networks under stress
    stress_max_errors: int = 1
    steps: tuple[Step, ...] = MX_STEPS

    def client_policy(self, ip: str) -> access_policy.ClientPolicy:
        may_relay = bool(ip) and access_policy.is_within(ip, self.relay_networks)
        return access_policy.ClientPolicy(
            may_relay=may_relay,
            sender_must_resolve=self.sender_must_resolve
            and not (may_relay and self.sender_check_exempts_relay_networks),
        )

    @cached_property
    def facts(self) -> Facts:
        return Facts(self.hostname, self.max_size, self.max_hops)

    @cached_property
    def greeting(self) -> Reply:
        return Reply(220, "", f"{self.hostname} ESMTP eilpost")

    @cached_property
    def helo_reply(self) -> Reply:
        return Reply(250, "", self.hostname)

    @cached_property
    def ehlo_reply(self) -> Reply:
        """RFC 5321 section 4.1.1.1: the host name, then the extensions."""
        extensions = ("PIPELINING", f"SIZE {self.max_size}", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8")
        return Reply(250, "", "\n".join((self.hostname, *extensions)))
