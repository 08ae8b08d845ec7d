"""Cells of the fault matrix: records of an embedded log are damaged while its process, killed under load, is down.

Every start works, all other mail flows, and each damaged record is in quarantine. A message that is neither delivered
nor bounced is shown by `eilpost queue`: in its own right, or as the bytes of its damaged record.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from mail.log.embedded import EmbeddedHistory
from mail.message import Inline
from mail.record import is_corrupt
from tests.support.faults.accounting import Sink, Source
from tests.support.faults.damage import Damage, damage_rows
from tests.support.faults.one_process import Arrivals, postings, settings
from tests.support.servers.eilpost_process import EilpostProcess
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]

ROUNDS = 8
PER_SECOND = 200
WAITS = {"corrupt", "held"}  # for an operator


async def test_damaged_records_stop_nothing_and_nothing_disappears(tmp_path: Path) -> None:
    seed = int(os.environ.get("EILPOST_TEST_SEED", random.SystemRandom().randrange(1_000_000)))
    chance = random.Random(seed)
    print(f"EILPOST_TEST_SEED={seed}")
    damage = Damage()
    async with Sink() as sink:
        box = EilpostProcess(tmp_path, settings(sink))
        source = Source(box.mx, sessions=20)
        sending: asyncio.Task[None] | None = None
        try:
            await asyncio.to_thread(box.start)
            sending = asyncio.create_task(source.send(postings(chance), per_second=PER_SECOND))
            for _ in range(ROUNDS):
                await asyncio.sleep(chance.uniform(0.3, 1.0))
                box.kill()
                await asyncio.to_thread(damage_rows, box.home / "log.db", chance, damage)
                await asyncio.to_thread(box.start)
            source.stop()
            await asyncio.wait_for(sending, 60)
            await wait_until(
                lambda: only_waits(box, damage), deadline_seconds=90, poll_seconds=0.5, what="all other mail"
            )
            check(source, sink, box, damage, await queued(box), await quarantined(box))
            assert await asyncio.to_thread(box.stop) == 0
        finally:
            source.stop()
            if sending is not None:
                sending.cancel()
            box.kill()
    assert "traceback" not in box.output().lower()
    assert "internal error" not in box.output()


async def queued(box: EilpostProcess) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(await asyncio.to_thread(box.run, "queue", "--json", "--limit", "0"))
    return entries


async def quarantined(box: EilpostProcess) -> bytes:
    """The bytes of all damaged records in quarantine."""
    entries = [entry async for entry in EmbeddedHistory(box.home / "log.db").queue_entries()]
    return b"".join(entry.content.data for entry in entries if is_corrupt(entry) and isinstance(entry.content, Inline))


async def only_waits(box: EilpostProcess, damage: Damage) -> bool:
    """Whether the queue has only what waits for an operator, and content whose name in the spool was damaged."""
    others = [entry for entry in await queued(box) if entry["state"] not in WAITS]
    return box.metric("eilpost_consumer_lag_records") == 0 and all(
        entry["queue_id"] in damage.queue_ids and "missing or damaged" in (entry["last_reply"] or "")
        for entry in others
    )


def check(
    source: Source, sink: Sink, box: EilpostProcess, damage: Damage, entries: list[dict[str, Any]], record_bytes: bytes
) -> None:
    arrivals = Arrivals(sink, box)
    shown = {entry["queue_id"] for entry in entries if entry["state"] != "corrupt" or entry["next_attempt"] is None}
    missing, waiting = set(), set()
    for posting in source.promised.values():
        for recipient in posting.recipients:
            arrived = arrivals.count(posting.id, recipient)
            queue_id = source.queue_ids[posting.id]
            if not arrived and queue_id not in damage.accepted and queue_id.encode() not in record_bytes:  # or a DSN
                (waiting if queue_id in shown else missing).add((queue_id, recipient))
    corrupt = sum(entry["state"] == "corrupt" for entry in entries)
    print(
        f"damaged {damage.rows}; corrupt {corrupt}; {len(source.promised)} promised; {len(damage.accepted)} only in"
        f" quarantine; {len(waiting)} wait for an operator; {len(missing)} missing"
    )
    for queue_id, _ in missing:
        print(box.run("trace", queue_id, ok=False), [entry for entry in entries if entry["queue_id"] == queue_id])
        print("\n".join(line for line in box.output().splitlines() if queue_id in line))
    assert not missing
    assert len(waiting) <= damage.rows["queue"]
    assert corrupt >= damage.rows["dispatched"]
    assert {"dispatched", "queue", "events"} <= damage.rows.keys()
    assert not [id_ for id_, count in arrivals.messages.items() if count > 1]  # a mailbox recognises the delivery id
