"""Content in the embedded log: stored once, shared by the entries that refer to it, deleted with the last of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mail.log import Damaged, LogUnavailable
from mail.log.codec import MAGIC
from mail.log.embedded import EmbeddedLog
from mail.log.embedded.commit import Change, NewEntry, shard_base_id
from mail.log.topics import ACCEPTED, DISPATCHED
from mail.message import Inline
from mail.record import Accepted, Dispatched
from tests.contract.log_contract.harness import delivery_shard_of, read_dispatches, read_inputs, router_shard_of
from tests.contract.test_log_embedded import running
from tests.support.builders.records import accepted, attempted, delivery

BODY = b"Subject: one\r\n\r\n" + b"x" * 20_000


async def bodies(log: EmbeddedLog) -> Sequence[bytes]:
    rows = await log.writer.query(lambda store: store._connection.execute("SELECT content FROM body").fetchall())
    return [content for (content,) in rows]


async def execute(log: EmbeddedLog, statement: str) -> None:
    await log.writer.query(lambda store: store._connection.execute(statement).fetchall())


async def test_content_is_stored_once_and_deleted_with_its_last_entry(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with running(path) as log:
        await log.append(accepted(1, BODY))
        async with router_shard_of(log) as router:
            entries = await read_inputs(router, 1)
            assert isinstance(entries[0].record, Accepted)
            content = entries[0].record.content
            await router.commit([Dispatched(delivery(part=part), 1, content) for part in (1, 2)], entries)
        assert await bodies(log) == [BODY]
    async with running(path) as log, delivery_shard_of(log) as deliverer:  # read from the database, not from memory
        first, second = await read_dispatches(deliverer, 2)
        assert first.record.content == second.record.content == Inline(BODY)
        await deliverer.finish(second, attempted(1))
        assert await bodies(log) == [BODY]
        await deliverer.finish(first, attempted(1))
        assert await bodies(log) == [BODY]  # until the reports are consumed, which may be damaged
        async with router_shard_of(log) as router:
            await router.commit([], await read_inputs(router, 2))
        assert await bodies(log) == []


async def test_a_report_that_is_finished_twice_needs_no_content(tmp_path: Path) -> None:
    """After an unconfirmed commit the worker repeats it, and the dispatch may be gone."""
    async with running(tmp_path / "log.db") as log:
        await log.append(Dispatched(delivery(), 1, Inline(BODY)))
        async with delivery_shard_of(log) as deliverer:
            (entry,) = await read_dispatches(deliverer, 1)
            for _ in range(2):
                await deliverer.finish(entry, attempted(1))
        async with router_shard_of(log) as router:
            assert [each.record for each in await read_inputs(router, 2)] == [attempted(1), attempted(1)]


async def test_content_without_a_dispatch_is_deleted_with_its_input(tmp_path: Path) -> None:
    async with running(tmp_path / "log.db") as log:
        await log.append(accepted(1, BODY))
        async with router_shard_of(log) as router:
            await router.commit([], await read_inputs(router, 1))
        assert await bodies(log) == []


async def test_equal_contents_of_two_messages_are_stored_twice(tmp_path: Path) -> None:
    async with running(tmp_path / "log.db") as log:
        await log.append(accepted(1, BODY))
        async with router_shard_of(log) as router:
            entries = await read_inputs(router, 1)
            copy = bytes(bytearray(BODY))
            await router.commit([Dispatched(delivery(), 1, Inline(copy)), accepted(2, copy)], entries)
        assert await bodies(log) == [BODY, BODY]


async def test_a_commit_that_shares_missing_content_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "log.db") as log:
        orphan = NewEntry(shard_base_id(DISPATCHED, 0), b"frame", content_of=shard_base_id(ACCEPTED, 0) + 77)
        with pytest.raises(LogUnavailable):
            await log.writer.change(Change(entries=[NewEntry(shard_base_id(ACCEPTED, 0), b"frame"), orphan]))
        assert (await log.backlog()).accepted == (await log.backlog()).dispatched == 0


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("DELETE FROM body", "content is missing"),
        ("UPDATE body SET content = CAST(substr(content, 2) || x'00' AS BLOB)", "content is damaged (checksum)"),
        ("UPDATE body SET content = 'text'", "content is damaged (checksum)"),
    ],
)
async def test_damaged_content_is_a_damaged_record(tmp_path: Path, statement: str, reason: str) -> None:
    path = tmp_path / "log.db"
    async with running(path) as log:
        await log.append(accepted(1, BODY))
        await execute(log, statement)
    async with running(path) as log:
        async with router_shard_of(log) as router:
            (entry,) = await read_inputs(router, 1)
        assert isinstance(entry.record, Damaged)
        assert (entry.record.position, entry.record.reason) == ("accepted, shard 0, offset 1", f"its {reason}")
        assert entry.record.frame.startswith(MAGIC)
        assert await log.unrouted_messages(accepted(1).message.queue_id) == []
