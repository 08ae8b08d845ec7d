"""Tests of dedup: a duplicate append gives one message, even if the first one closed at once."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mail.message import make_queue_id
from mail.telemetry import REGISTRY
from router import dedup
from router.dedup import RETENTION, RecentQueueIds
from tests.support.builders.routing import START
from tests.support.servers.ports import wait_until
from tests.unit.router.test_shard import RouterSetup, accepted_now, succeed


def ids(count: int):  # type: ignore[no-untyped-def]
    return [make_queue_id(1000, number) for number in range(1, count + 1)]


@pytest.mark.parametrize("together", [True, False])
async def test_duplicate_append_is_bounced_once(together: bool) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("eilpost_duplicates_suppressed_total", {"where": "router"}) or 0.0

    before = counted()
    setup = RouterSetup(deliver=succeed)
    mail = accepted_now("nobody@example.test", sender="alice@example.test")
    await setup.log.append(mail)
    if together:
        await setup.log.append(mail)
    async with setup.running():
        await wait_until(lambda: setup.is_closed(mail))
        if not together:
            await setup.log.append(mail)
        await wait_until(lambda: counted() > before)
        await wait_until(lambda: len(setup.dispatched) == 1)
        last = accepted_now("alice@example.test")
        await setup.log.append(last)
        await wait_until(lambda: setup.is_closed(last))
    assert len(setup.dispatched) == 2  # one DSN and the last message


def test_entries_expire_by_age_and_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "ENTRIES_MAX", 3)
    recent = RecentQueueIds()
    names = ids(6)
    recent.add(names[:2], START)
    recent.add(names[2:3], START + timedelta(seconds=1))
    assert all(name in recent for name in names[:3])
    recent.add(names[3:4], START + timedelta(seconds=2))
    assert names[0] not in recent
    assert len(recent) == 3
    recent.add(names[4:5], START + RETENTION + timedelta(seconds=3))
    assert len(recent) == 1
