"""Listeners: the one list of a process, made from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from ssl import SSLContext

from ingress import access_policy
from ingress.policy import Policy
from ingress.session import Session
from mail.service import ServiceError
from mail.settings import NodeSettings
from mail.settings_roles import IngressSettings


@dataclass(frozen=True, slots=True)
class Listener:
    """`name` is its metric label; `setting` is the key of its address. With `tls`, connections begin with the handshake
    (`implicit_tls`), or a session may begin it (STARTTLS). `session` is the class of its sessions.
    """

    name: str
    setting: str
    address: str
    policy: Policy
    tls: SSLContext | None = None
    implicit_tls: bool = False
    session: type[Session] = Session


def configured_listeners(settings: IngressSettings, node: NodeSettings, *, alias_depth: int) -> list[Listener]:
    """The listeners that have an address. Raises ServiceError."""
    try:
        networks = access_policy.parse_networks(settings.relay_networks)
    except ValueError as error:
        raise ServiceError(f"ingress.relay_networks: {error}") from None
    policy = Policy(
        hostname=node.hostname,
        relay_networks=networks,
        sender_must_resolve=settings.sender_domain_must_resolve,
        sender_check_exempts_relay_networks=settings.sender_check_exempts_relay_networks,
        vrfy_enabled=settings.vrfy,
        max_size=settings.max_message_size,
        max_recipients=settings.max_recipients,
        max_errors=settings.max_errors,
        max_hops=settings.max_hops,
        alias_depth=alias_depth,
        command_seconds=settings.command_timeout.total_seconds(),
        data_seconds=settings.data_timeout.total_seconds(),
        stress_seconds=settings.stress_timeout.total_seconds(),
        stress_max_errors=settings.stress_max_errors,
    )
    listeners = (Listener("mx", "ingress.smtp_listen", settings.smtp_listen, policy),)
    return [listener for listener in listeners if listener.address]
