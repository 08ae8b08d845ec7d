"""Opening a tenant's producer: recipients wait for a limited time, and only once."""

from __future__ import annotations

import asyncio

import pytest

from mail.log import Down, Usable
from mail.log.kafka.access import make_access
from mail.log.kafka.tenant_producers import TenantProducers
from mail.settings import LogSettings
from tests.support.kafka_timeouts import set_timeouts

SETTINGS = LogSettings(url="kafka://127.0.0.1:1")


async def test_a_recipient_waits_for_its_tenants_producer_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, tenant_open_wait_seconds=0.5)
    opened: list[str] = []

    async def never(_: TenantProducers, tenant: str) -> None:
        opened.append(tenant)
        await asyncio.sleep(3600)

    monkeypatch.setattr(TenantProducers, "_open_producer", never)
    producers = TenantProducers(make_access(SETTINGS), SETTINGS)
    async with asyncio.timeout(60):
        await asyncio.gather(*(producers.open("acme") for _ in range(20)))
    assert producers.condition("acme") == Down("tenant acme: its topics have not responded yet")
    assert producers.condition("other") == Usable()
    set_timeouts(monkeypatch, tenant_open_wait_seconds=0.0)
    async with asyncio.timeout(60):
        await producers.open("acme")  # the first call has used up the waiting time
    assert opened == ["acme"]
    await producers.close()
