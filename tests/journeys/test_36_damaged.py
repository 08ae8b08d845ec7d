"""Journey 36: damaged records on Kafka go into quarantine, their deliveries are attempted again, and all mail flows.

Real processes on a real Kafka. The damaged records are planted, as a broker with a bad disk would return them.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mail.log.codec import encode
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, QUEUE, shard_of_message
from mail.message import DeliveryId, QueueId, delivery_id
from mail.record import Record
from mail.settings import LogSettings
from tests.journeys.test_27_unreadable import COUNTS, Roles
from tests.support.builders.records import accepted, attempted, dispatched, queue_entry
from tests.support.servers.kafka_log import append_frame, make_topics, settings_on
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

MESSAGES = 12


def damaged(record: Record) -> bytes:
    frame = encode(record) or b""
    return frame[:100] + bytes(12) + frame[112:]


async def queued(roles: Roles) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(await asyncio.to_thread(roles.ingress.run, "queue", "--json"))
    return entries


async def start(bootstrap: str, folder: Path) -> tuple[Roles, LogSettings]:
    log = settings_on(bootstrap, shards=COUNTS.by_queue_id, delivery_shards=COUNTS.of_dispatched)
    await make_topics(log)
    roles = Roles(folder, log)
    text = roles.router.config.read_text().replace("[router]\n", '[router]\nretry_delays = ["1s"]\n')
    roles.router.config.write_text(text)
    return roles, log


async def test_damaged_records_stop_no_shard(kafka_bootstrap: str, tmp_path: Path) -> None:
    roles, log = await start(kafka_bootstrap, tmp_path)
    with roles.running():
        for topic, record in ((ACCEPTED, accepted(1)), (DISPATCHED, dispatched(1)), (ATTEMPTED, attempted(1))):
            for shard in range(2):
                await append_frame(log, topic, shard, damaged(record), f"{topic.name}-{shard}")
        sent = roles.send([f"message-{number}" for number in range(MESSAGES)])
        await wait_until(lambda: roles.arrived() == sorted(sent), what="all mail", deadline_seconds=40)
        await wait_until(lambda: roles.router.metric("eilpost_damaged_records_total", topic="accepted") == 2)
        await wait_until(lambda: not roles.router.metric("eilpost_queue_recipients"), what="an empty queue")
        entries = await queued(roles)
        assert {entry["state"] for entry in entries} == {"corrupt"}
        sites = {entry["site"] for entry in entries}
        assert sites == {"unresolved:accepted.corrupt.invalid", "unresolved:attempted.corrupt.invalid"}
        await wait_until(lambda: roles.router.metric("eilpost_corrupt_records") == len(entries), what="the metric")
        for role in (roles.router, roles.delivery):
            assert role.metric("eilpost_shards_stopped") == 0
        report = json.loads(await asyncio.to_thread(roles.ingress.run, "doctor", "--json", ok=False))
        (finding,) = [each for each in report["findings"] if each["what"] == "quarantine"]
        assert (finding["level"], finding["text"]) == ("WARN", f"damaged records in quarantine: {len(entries)}")
        assert not [each for each in report["findings"] if each["what"].startswith("shard ")]


@pytest.mark.parametrize("topic", [ATTEMPTED, QUEUE], ids=lambda topic: topic.name)
async def test_delivery_of_a_damaged_record_arrives_once(kafka_bootstrap: str, tmp_path: Path, topic: Any) -> None:
    """Its report or its queue entry is damaged while it is active."""
    roles, log = await start(kafka_bootstrap, tmp_path)
    with roles.running():
        first = roles.send(["first"])
        await wait_until(lambda: roles.arrived() == ["first"], what="mail while all is well", deadline_seconds=40)
        assert await asyncio.to_thread(roles.delivery.stop) == 0
        ((queue_id, _),) = roles.send(["second"]).values()
        await wait_until(lambda: is_active(roles, queue_id), what="the dispatch", deadline_seconds=20)
        key, shard = delivery_id(queue_id, 1), shard_of_message(queue_id, COUNTS)
        await append_frame(log, topic, shard, damaged(attempted(1) if topic is ATTEMPTED else queue_entry(1)), key)
        if topic is QUEUE:  # it is read at a replay
            assert await asyncio.to_thread(roles.router.stop) == 0
            await asyncio.to_thread(roles.router.start)
        await wait_until(lambda: roles.router.metric("eilpost_damaged_records_total", topic=topic.name) == 1)
        await wait_until(lambda: is_active(roles, queue_id), what="another dispatch", deadline_seconds=20)
        await asyncio.to_thread(roles.delivery.start)
        await wait_until(lambda: roles.arrived() == ["first", "second"], what="the second", deadline_seconds=40)
        await wait_until(lambda: not roles.router.metric("eilpost_queue_recipients"), what="an empty queue")
        assert roles.arrived() == ["first", "second"]
        assert [entry["state"] for entry in await queued(roles)] == ["corrupt"]
        assert first


async def is_active(roles: Roles, queue_id: QueueId) -> bool:
    active: list[DeliveryId] = [
        entry["delivery"]
        for entry in await queued(roles)
        if entry["state"] == "active" and entry["queue_id"] == queue_id
    ]
    return bool(active)
