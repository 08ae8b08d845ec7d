"""Tenant of a message, and recipients that may share a transaction. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from mail.address import Address
from mail.directory import Snapshot, Tenant
from mail.envelope import Recipient


def tenant_of(reverse_path: Address | None, recipients: Iterable[Recipient], snapshot: Snapshot) -> str:
    """Tenant of a message: the dedicated tenant of its sender or first recipient, else the tenant of a local sender,
    else the tenant of the first recipient.
    """
    sender = _tenant_of_sender(reverse_path, snapshot)
    if sender is not None and sender.dedicated:
        return sender.name
    for recipient in recipients:
        tenant = snapshot.tenant_of(recipient.address.domain)
        return tenant.name if tenant.dedicated or sender is None else sender.name
    return (sender or snapshot.tenant_of("")).name


def may_share_transaction(
    reverse_path: Address | None, first: Address | None, recipient: Address, snapshot: Snapshot
) -> bool:
    """Whether `recipient` may share a transaction with `first`. A dedicated tenant shares no topics, so recipients of
    different tenants need separate transactions.
    """
    if first is None:
        return True
    sender = _tenant_of_sender(reverse_path, snapshot)
    if sender is not None and sender.dedicated:
        return True  # the whole message belongs to the sender's tenant
    tenants = snapshot.tenant_of(first.domain), snapshot.tenant_of(recipient.domain)
    return tenants[0].name == tenants[1].name or not any(tenant.dedicated for tenant in tenants)


def _tenant_of_sender(reverse_path: Address | None, snapshot: Snapshot) -> Tenant | None:
    """None: the sender is not local."""
    if reverse_path is None or reverse_path.domain_ascii not in snapshot.domains:
        return None
    return snapshot.tenant_of(reverse_path.domain)
