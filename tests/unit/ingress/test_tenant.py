"""Tenant of a message."""

from __future__ import annotations

from ingress.tenant import tenant_of
from mail.address import Address
from mail.directory import Domain, Snapshot, Tenant
from mail.envelope import Recipient

A = Address.parse


def test_tenant_is_the_senders_or_the_first_recipients() -> None:
    snapshot = Snapshot(
        tenants={name: Tenant(name) for name in ("default", "one", "two")},
        domains={"one.test": Domain("one.test", "one"), "two.test": Domain("two.test", "two")},
    )
    to_two = [Recipient(A("x@two.test"))]
    assert tenant_of(A("x@one.test"), to_two, snapshot) == "one"
    assert tenant_of(A("x@else.test"), to_two, snapshot) == "two"
    assert tenant_of(None, to_two, snapshot) == "two"
