"""Damaged records of the log: their bytes are in quarantine, their deliveries are not lost, and all other mail flows.

On an embedded log whose rows are changed while no process runs, and on the log in memory.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import structlog
from msgspec.structs import replace

from mail.log import Damaged, ShardLost
from mail.log.codec import encode
from mail.log.embedded import EmbeddedLog
from mail.log.embedded.commit import topic_ids
from mail.log.embedded.store import Store
from mail.log.queue_summary import QueueSummary
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, QUEUE, Topic
from mail.message import Inline, Spooled
from mail.record import (
    Accepted,
    Active,
    Attempted,
    Dispatched,
    Event,
    QueueEntry,
    QueueTombstone,
    WaitCause,
    Waiting,
    is_corrupt,
)
from mail.route import ToRelay
from mail.settings import LogSettings
from mail.settings_roles import RouterSettings
from mail.telemetry import REGISTRY
from router.decide import Due, with_recipients
from router.quarantine import NEVER_DUE, corrupt_entry
from router.restore import Remains, restored_entry
from router.routing_context import RoutingContext
from tests.support.builders.records import RELAY, accepted, dispatched, queue_entry
from tests.support.builders.routing import (
    CONTENT,
    START,
    RouterSimulator,
    address,
    deferred,
    delivered,
    failed,
    policy,
    snapshot,
)
from tests.support.builders.routing import (
    accepted as routed,
)
from tests.support.servers.ports import wait_until
from tests.unit.router.test_shard import RouterSetup, accepted_now, succeed

SMART = ToRelay("smart.test", 25)
NOTHING_KNOWN = RoutingContext(policy(), snapshot())


@dataclass
class Box:
    """A router and a delivery on an embedded log. `run` runs them; between runs the rows of the file are changed."""

    path: Path
    reports: bool = True
    dispatched: list[Dispatched] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)

    @asynccontextmanager
    async def run(self, *, router: bool = True, delivery: bool = True) -> AsyncIterator[RouterSetup]:
        log = EmbeddedLog(self.path, LogSettings())
        await log.start()
        settings = RouterSettings(retry_delays=[timedelta(milliseconds=50)])
        setup = RouterSetup(log=log, relay=SMART, settings=settings)  # type: ignore[arg-type]
        stop = asyncio.Event()
        tasks = [asyncio.create_task(log.own_delivery_shards(self._deliver, stop))] if delivery else []
        try:
            if router:
                setup._process_delivery = _no_delivery  # type: ignore[method-assign, assignment]
                async with setup.running():
                    yield setup
            else:
                yield setup
        finally:
            stop.set()
            await asyncio.gather(*tasks)
            await log.close()

    async def _deliver(self, shard: Any) -> None:
        while True:
            try:
                entries = await shard.read(100)
            except ShardLost:
                return
            for entry in entries:
                if isinstance(entry.record, Damaged):
                    self.damaged.append(entry.record)
                    await shard.finish(entry, entry.record)
                else:
                    self.dispatched.append(entry.record)
                    await shard.finish(entry, succeed(entry.record))

    def change(self, statement: str, *parameters: object) -> None:
        with sqlite3.connect(self.path) as connection:
            assert connection.execute(statement, parameters).rowcount == 1
        connection.close()

    def damage_entry(self, topic: Topic, how: str) -> None:
        self.change(f"UPDATE entry SET frame = {how} WHERE id > ? AND id < ?", *topic_ids(topic))


async def _no_delivery(_shard: object) -> None:
    return


MIDDLE = "CAST(substr(frame, 1, 100) || zeroblob(12) || substr(frame, 113) AS BLOB)"
ID = "CAST(substr(frame, 1, 34) || zeroblob(40) || substr(frame, 75) AS BLOB)"
DAMAGE = {"middle": MIDDLE, "ids": ID, "text": "'text'", "number": "17", "zeros": "zeroblob(300)", "short": "x'e1'"}


async def corrupt_records(setup: RouterSetup) -> list[QueueEntry]:
    return [entry for entry in await setup.entries() if is_corrupt(entry)]


async def other_mail_flows(setup: RouterSetup) -> None:
    mail = accepted_now("alice@example.test")
    await setup.log.append(mail)
    await wait_until(lambda: setup.is_closed(mail), what="other mail")


@pytest.mark.parametrize("how", DAMAGE.values(), ids=DAMAGE)
async def test_damaged_message_is_in_quarantine_with_its_bytes(tmp_path: Path, how: str) -> None:
    box = Box(tmp_path / "log.db")
    mail = accepted_now("alice@example.test")
    async with box.run(router=False, delivery=False) as setup:
        await setup.log.append(mail)
    box.damage_entry(ACCEPTED, how)
    with structlog.testing.capture_logs() as lines:
        async with box.run() as setup:
            await other_mail_flows(setup)
            assert (await setup.log.backlog()).accepted == 0
    (line,) = [line for line in lines if line["event"] == "damaged record quarantined"]
    assert line["record"] == "accepted, shard 0, offset 1"
    async with box.run() as setup:  # the next start too
        await other_mail_flows(setup)
        (entry,) = await corrupt_records(setup)
        assert isinstance(entry.state, Waiting)
        assert entry.state.due == NEVER_DUE
        assert entry.state.reason.startswith("accepted, shard 0, offset 1: ")
        assert isinstance(entry.content, Inline)
        assert entry.content.data.endswith(CONTENT)
        if how == MIDDLE:
            assert entry.delivery.message.queue_id == mail.message.queue_id
        summary = QueueSummary()
        await setup.log.summarize_queue(summary)
        assert [(state, totals.deliveries) for (_, state), totals in summary.totals_by_site.items()] == [("corrupt", 1)]
        await wait_until(lambda: REGISTRY.get_sample_value("eilpost_corrupt_records") == 1)


async def dispatch_two(box: Box) -> list[Accepted]:
    """Two messages with different sizes are active, and nothing delivers them yet."""
    mails = [accepted_now("u@far.test"), accepted_now("v@far.test", content=Inline(CONTENT * 2), size=2 * len(CONTENT))]
    async with box.run(delivery=False) as setup:
        for mail in mails:
            await setup.log.append(mail)
        await wait_until(lambda: has_backlog(setup, dispatched=2))
    return mails


async def has_backlog(setup: RouterSetup, *, dispatched: int = 0, attempted: int = 0) -> bool:
    backlog = await setup.log.backlog()
    return (backlog.accepted, backlog.dispatched, backlog.attempted) == (0, dispatched, attempted)


async def check_delivered_again(box: Box, mails: list[Accepted]) -> None:
    box.dispatched.clear()
    setup = await check_closed(box, mails)
    last = [request for request in box.dispatched if request.delivery.message == mails[0].message]
    assert [await stored(setup, request) for request in last] == [CONTENT]


async def stored(setup: RouterSetup, request: Dispatched) -> bytes:
    content = request.content
    return content.data if isinstance(content, Inline) else await setup.spool.read(content)


async def check_closed(box: Box, mails: list[Accepted]) -> RouterSetup:
    """Both messages are closed, and the damaged record stays for a while."""
    async with box.run() as setup:
        for mail in mails:
            await wait_until(lambda mail=mail: setup.is_closed(mail), what="both messages")  # type: ignore[misc]
        entries = await setup.entries()
        assert len(entries) == 1
        for entry in entries:
            assert isinstance(entry.state, Waiting)
            assert entry.state.cause is WaitCause.CORRUPT
            assert timedelta(days=6) < entry.state.due - datetime.now(UTC) < timedelta(days=8)
        assert await has_backlog(setup)
    return setup


@pytest.mark.parametrize("how", DAMAGE.values(), ids=DAMAGE)
async def test_delivery_of_a_damaged_report_is_attempted_again(tmp_path: Path, how: str) -> None:
    box = Box(tmp_path / "log.db")
    mails = await dispatch_two(box)
    async with box.run(router=False) as setup:
        await wait_until(lambda: has_backlog(setup, attempted=2))
    first, last = topic_ids(ATTEMPTED)
    box.change(
        f"UPDATE entry SET frame = {how} WHERE id > ? AND id < ? AND instr(frame, ?)",
        first,
        last,
        mails[0].message.queue_id.encode(),
    )
    await check_delivered_again(box, mails)


@pytest.mark.parametrize("how", DAMAGE.values(), ids=DAMAGE)
async def test_delivery_of_a_damaged_dispatch_is_dispatched_again(tmp_path: Path, how: str) -> None:
    box = Box(tmp_path / "log.db")
    mails = await dispatch_two(box)
    first, last = topic_ids(DISPATCHED)
    box.change(
        f"UPDATE entry SET frame = {how} WHERE id > ? AND id < ? AND instr(frame, ?)",
        first,
        last,
        mails[0].message.queue_id.encode(),
    )
    await check_delivered_again(box, mails)
    assert [damaged.topic for damaged in box.damaged] == ["dispatched"]


async def test_delivery_without_its_content_is_held(tmp_path: Path) -> None:
    box = Box(tmp_path / "log.db")
    mails = await dispatch_two(box)
    box.change("UPDATE body SET content = zeroblob(10) WHERE id = (SELECT min(id) FROM body)")
    async with box.run() as setup:
        await wait_until(lambda: setup.is_closed(mails[1]), what="the other message")
        await wait_until(lambda: has_backlog(setup))
        held, corrupt = sorted(await setup.entries(), key=is_corrupt)
        assert isinstance(held.state, Waiting)
        assert (held.state.cause, held.delivery.message) == (WaitCause.HELD, mails[0].message)
        assert isinstance(corrupt.state, Waiting)
        assert corrupt.state.due == NEVER_DUE


@pytest.mark.parametrize("reported", [False, True])
@pytest.mark.parametrize("how", ["middle", "text", "zeros"])
async def test_queue_entry_of_an_active_delivery_is_restored(tmp_path: Path, how: str, reported: bool) -> None:
    """From its dispatch, or, after its report, from its history."""
    box = Box(tmp_path / "log.db")
    mails = await dispatch_two(box)
    if reported:
        async with box.run(router=False) as setup:
            await wait_until(lambda: has_backlog(setup, attempted=2))
    box.change(f"UPDATE pending SET frame = {DAMAGE[how]} WHERE instr(key, ?)", mails[0].message.queue_id)
    await check_closed(box, mails)
    assert len(box.dispatched) == 2  # nothing was dispatched twice


async def test_waiting_delivery_is_restored_with_its_spooled_content(tmp_path: Path) -> None:
    box = Box(tmp_path / "log.db")
    mails = await dispatch_two(box)
    async with box.run(delivery=False) as setup:
        entries = {entry.delivery.message.queue_id: entry for entry in await setup.entries()}
        entry = entries[mails[0].message.queue_id]
        spooled = Spooled("0123/4567", len(CONTENT), "0" * 32)
        state = Waiting(NEVER_DUE, WaitCause.DEFERRED, "x" * 300)
        await setup.log.append(QueueEntry(entry.delivery, state, spooled, 1))
    box.change("DELETE FROM entry WHERE instr(frame, ?)", mails[0].message.queue_id.encode())
    box.change(
        "UPDATE pending SET frame = CAST(substr(frame, 1, 50) || zeroblob(12) || substr(frame, 63) AS BLOB)"
        " WHERE instr(key, ?)",
        mails[0].message.queue_id,
    )
    async with box.run(delivery=False) as setup:
        delivery_id = entry.delivery.id

        async def is_active() -> bool:
            return any(
                each.delivery.id == delivery_id and isinstance(each.state, Active) for each in await setup.entries()
            )

        await wait_until(is_active)
        (restored,) = [each for each in await setup.entries() if each.delivery.id == delivery_id]
        assert (restored.delivery, restored.content) == (entry.delivery, spooled)


@pytest.mark.parametrize("how", ["middle", "text", "zeros"])
async def test_queue_entry_that_nothing_restores_is_in_quarantine_under_its_key(tmp_path: Path, how: str) -> None:
    box = Box(tmp_path / "log.db")
    waiting = queue_entry(1, attempts=1)
    waiting = type(waiting)(waiting.delivery, Waiting(NEVER_DUE, WaitCause.HELD, "by hand"), waiting.content, 1)
    async with box.run(router=False, delivery=False) as setup:
        await setup.log.append(waiting)
    box.change(f"UPDATE pending SET frame = {DAMAGE[how]} WHERE instr(key, ?)", waiting.delivery.id)
    for _ in range(2):
        async with box.run() as setup:
            await other_mail_flows(setup)
            (entry,) = await setup.entries()
            assert (entry.delivery.id, is_corrupt(entry)) == (waiting.delivery.id, True)
            assert isinstance(entry.content, Inline)
            assert entry.content.data


def test_corrupt_record_is_no_delivery_and_is_removed_when_it_is_due() -> None:
    simulator = RouterSimulator()
    damaged = Damaged("attempted", 0, 7, queue_entry(1).delivery.id, b"bytes", "it is damaged (checksum)")
    entry = corrupt_entry(damaged, lambda _: True, START + timedelta(days=7), START)
    simulator.queue.apply(entry)
    simulator.entries[entry.delivery.id] = entry
    assert simulator.queue.corrupt_records == 1
    assert simulator.queue.open_deliveries(entry.delivery.message.queue_id) == 0
    assert simulator.queue.entry(entry.delivery.id).content is None  # type: ignore[union-attr]
    assert simulator.advance(timedelta(days=6)) == []
    assert simulator.advance(timedelta(days=1, seconds=1)) == [QueueTombstone(entry.delivery.id)]
    assert simulator.queue.corrupt_records == 0
    assert simulator.decide(Due(entry.delivery.id)) == []


def test_damaged_entries_of_one_message_have_different_ids_in_quarantine() -> None:
    queue_id = accepted(1).message.queue_id
    keys = [f"{queue_id}-1".encode(), f"{queue_id}-2".encode(), f"{queue_id}-".encode() + b"\xfe"]
    records = [Damaged("queue", 0, None, f"{queue_id}-1", b"", "", raw_key=key) for key in keys]
    ids = {corrupt_entry(record, lambda _: True, NEVER_DUE, START).delivery.id for record in records}
    assert len(ids) == 3
    assert all(each.startswith(f"{queue_id}-queue-key-") for each in ids)


def test_corrupt_record_gets_a_queue_id_of_its_shard() -> None:
    damaged = Damaged("accepted", 3, 7, accepted(1).message.queue_id, b"", "it ends")
    assert corrupt_entry(damaged, lambda _: True, NEVER_DUE, START).delivery.message.queue_id == damaged.key
    other = corrupt_entry(damaged, lambda queue_id: queue_id[-1] in "012345", NEVER_DUE, START)
    assert other.delivery.message.queue_id[-1] in "012345"
    unknown = Damaged("accepted", 3, 7, "", encode(accepted(1)) or b"", "it ends")
    assert corrupt_entry(unknown, lambda _: True, NEVER_DUE, START).delivery.message.received == START


@pytest.mark.parametrize(
    ("older", "number", "is_open", "cause", "attempts"),
    [
        (None, 3, True, None, 2),
        (None, 3, False, WaitCause.DEFERRED, 2),
        (2, 3, False, WaitCause.DEFERRED, 2),
        (2, 2, False, WaitCause.HELD, 2),  # the older record is later than the dispatch, active, and has no content
        (None, None, False, None, None),
    ],
)
def test_queue_entry_is_restored_from_what_is_later(
    older: int | None, number: int | None, is_open: bool, cause: WaitCause | None, attempts: int | None
) -> None:
    previous = None if older is None else queue_entry(1, attempts=older)
    damaged = Damaged("queue", 0, None, queue_entry(1).delivery.id, b"", "", previous=previous)
    found = None if number is None else Dispatched(dispatched(1, RELAY).delivery, number, Inline(b"x"))
    restored = restored_entry(damaged, Remains(found, is_open), NOTHING_KNOWN, START)
    if attempts is None:
        assert restored is None
        return
    assert restored is not None
    assert restored.attempts == attempts
    assert (restored.state.cause if isinstance(restored.state, Waiting) else None) == cause


DAMAGED_KEYS = ("CAST(x'303030302fff2d31' AS TEXT)", "'0000/key'", "key || CAST(x'ff' AS TEXT)")


@pytest.mark.parametrize(
    ("key", "is_frame_intact"), [*product(DAMAGED_KEYS, (False, True)), ("key || '7'", True)], ids=str
)
async def test_queue_entry_with_a_damaged_key_is_repaired_once(tmp_path: Path, key: str, is_frame_intact: bool) -> None:
    box = Box(tmp_path / "log.db")
    mails = await dispatch_two(box)
    queue_id = mails[0].message.queue_id
    if not is_frame_intact:
        box.change(f"UPDATE pending SET frame = {MIDDLE} WHERE instr(key, ?)", queue_id)
    box.change(f"UPDATE pending SET key = {key} WHERE instr(key, ?)", queue_id)
    with structlog.testing.capture_logs() as lines:
        await check_closed(box, mails)
        async with box.run() as setup:  # the next start finds nothing damaged
            summary = QueueSummary()
            await setup.log.summarize_queue(summary)
            assert summary.damaged == 0
            assert [is_corrupt(entry) for entry in await setup.entries()] == [True]
    assert [line["restored"] for line in lines if line["event"] == "damaged record quarantined"] == [True]
    assert len(box.dispatched) == 2  # nothing was dispatched twice


async def test_entry_under_a_damaged_key_replaces_no_entry_under_the_intact_key(tmp_path: Path) -> None:
    box = Box(tmp_path / "log.db")
    mails = await dispatch_two(box)
    box.change(
        "INSERT INTO pending SELECT '0000/key', frame FROM pending WHERE instr(key, ?)", mails[0].message.queue_id
    )
    await check_closed(box, mails)
    assert len(box.dispatched) == 2


async def test_damaged_key_that_nothing_restores_is_in_quarantine_once(tmp_path: Path) -> None:
    box = Box(tmp_path / "log.db")
    async with box.run(router=False, delivery=False) as setup:
        await setup.log.append(queue_entry(1))
    box.change("UPDATE pending SET key = CAST(x'303030302fff' AS TEXT), frame = x'00'")
    for _ in range(2):
        async with box.run() as setup:
            await other_mail_flows(setup)
            (entry,) = await setup.entries()
            assert entry.content == Inline(b"\0")
            summary = QueueSummary()
            await setup.log.summarize_queue(summary)
            assert summary.damaged == 0


async def test_entry_under_a_damaged_key_is_restored_beside_a_damaged_one_under_the_intact_key(tmp_path: Path) -> None:
    box = Box(tmp_path / "log.db")
    held = replace(queue_entry(1), state=Waiting(NEVER_DUE, WaitCause.HELD, "by hand"))
    async with box.run(router=False, delivery=False) as setup:
        await setup.log.append(held)
    box.change("INSERT INTO pending SELECT '0000/key', frame FROM pending")
    box.change(f"UPDATE pending SET frame = {MIDDLE} WHERE instr(key, ?)", held.delivery.id)
    async with box.run() as setup:
        await other_mail_flows(setup)
        assert held in await setup.entries()


async def test_one_scan_finds_the_dispatches_of_all_damaged_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(tmp_path / "log.db")
    mails = await dispatch_two(box)
    with sqlite3.connect(box.path) as connection:
        assert connection.execute(f"UPDATE pending SET frame = {MIDDLE}").rowcount == 2
    connection.close()
    scans: list[object] = []
    for name in ("find_dispatches", "named_deliveries"):
        original = getattr(Store, name)

        def counted(*arguments: Any, original: Any = original, name: str = name, **options: Any) -> Any:
            scans.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(Store, name, counted)
    async with box.run() as setup:
        for mail in mails:
            await wait_until(lambda mail=mail: setup.is_closed(mail))  # type: ignore[misc]
    assert scans.count("find_dispatches") == 1
    assert scans.count("named_deliveries") <= 2  # the second one is that for active deliveries without a dispatch


def three_recipients(number: int, attempts: int) -> tuple[Dispatched, QueueEntry, list[Event]]:
    """A dispatch of attempt `number`, an entry after `attempts`, and the history of attempt 1: delivered, failed and
    deferred.
    """
    simulator = RouterSimulator(policy(relay=SMART))
    simulator.decide(routed("a@far.test", "b@far.test", "c@far.test"))
    (request,) = simulator.dispatched.values()
    entry = QueueEntry(request.delivery, Active(START), request.content, attempts)
    a, b, c = request.delivery.message.envelope.recipients
    simulator.attempt(request.delivery.id, delivered(a), failed(b), deferred(c))
    return replace(request, number=number), entry, [each for each in simulator.records if isinstance(each, Event)]


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("source", ["dispatch", "older entry", "held entry", "history"])
def test_settled_recipients_are_not_restored(source: str, is_open: bool) -> None:
    """Neither from a dispatch nor from an older entry, which may precede the last attempt."""
    request, older, history = three_recipients(1, 0)
    if source == "held entry":
        older = replace(older, state=Waiting(NEVER_DUE, WaitCause.HELD, "by hand"))
    previous = older if source.endswith("entry") else None
    damaged = Damaged("queue", 0, None, request.delivery.id, b"", "", previous=previous)
    remains = Remains(request if source == "dispatch" else None, is_open, history)
    restored = restored_entry(damaged, remains, NOTHING_KNOWN, START)
    assert restored is not None
    assert [str(each.address) for each in restored.delivery.message.envelope.recipients] == ["c@far.test"]
    assert restored.attempts == 1
    if source == "dispatch":  # its second report would be ignored
        assert isinstance(restored.state, Waiting)
        assert restored.content == request.content


def test_an_attempt_before_the_dispatch_settles_nothing_of_it() -> None:
    request, _, history = three_recipients(2, 1)
    damaged = Damaged("queue", 0, None, request.delivery.id, b"", "")
    restored = restored_entry(damaged, Remains(request, True, history), NOTHING_KNOWN, START)
    assert restored == QueueEntry(request.delivery, Active(START), None, 1)


def test_delivery_whose_recipients_are_all_settled_is_not_restored() -> None:
    request, _, history = three_recipients(1, 0)
    message = with_recipients(request.delivery.message, request.delivery.message.envelope.recipients[:2])
    request = replace(request, delivery=replace(request.delivery, message=message))
    damaged = Damaged("queue", 0, None, request.delivery.id, b"", "")
    assert restored_entry(damaged, Remains(request, False, history), NOTHING_KNOWN, START) is None


@pytest.mark.parametrize("has_owner", [False, True])
def test_delivery_restored_from_the_history_keeps_the_owner_of_its_list(has_owner: bool) -> None:
    aliases = {"list@example.test": ["u@far.test", "v@far.test"]}
    if has_owner:
        aliases["owner-list@example.test"] = ["alice@example.test"]
    directory = snapshot(["alice@example.test"], aliases)
    simulator = RouterSimulator(policy(relay=SMART), directory)
    simulator.decide(routed("list@example.test", "direct@far.test", sender="someone@far.test"))
    history = [each for each in simulator.records if isinstance(each, Event)]
    for request in simulator.dispatched.values():
        damaged = Damaged("queue", 0, None, request.delivery.id, b"", "")
        context = RoutingContext(simulator.policy, directory)
        restored = restored_entry(damaged, Remains(None, True, history), context, START)
        assert restored is not None
        assert restored.delivery == request.delivery
    senders = {each.delivery.message.envelope.reverse_path for each in simulator.dispatched.values()}
    assert (address("owner-list@example.test") in senders) is has_owner


async def test_a_bug_in_the_quarantine_loses_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("router.shard.quarantine_inputs", broken)
    setup = RouterSetup(deliver=succeed)
    setup.log.append_frame(ACCEPTED, 0, b"no frame")
    async with setup.running():
        await other_mail_flows(setup)
        (entry,) = await corrupt_records(setup)
        assert entry.content == Inline(b"no frame")
        assert (await setup.log.backlog()).accepted == 0


@pytest.mark.parametrize("key", ["", "key", "Z" * 26, "Z" * 26 + "-1", "01KJMMA2G00000000000000000-1"])
async def test_damaged_records_of_the_log_in_memory_stop_nothing(key: str) -> None:
    setup = RouterSetup(deliver=succeed)
    setup.log._compacted[QUEUE.name, 0][key] = b"no frame"
    report = Attempted(accepted(1).message.queue_id + "-1", 1, (), START, timedelta(0))  # type: ignore[arg-type]
    for topic, record in ((ACCEPTED, accepted(1)), (ATTEMPTED, report)):
        setup.log.append_frame(topic, 0, (encode(record) or b"")[:-1])
    async with setup.running():
        await other_mail_flows(setup)
        topics = sorted(entry.delivery.route.site for entry in await corrupt_records(setup))
        assert topics == [f"unresolved:{topic}.corrupt.invalid" for topic in ("accepted", "attempted", "queue")]


async def test_active_delivery_without_dispatch_and_report_is_attempted_again(tmp_path: Path) -> None:
    """As after a recovery of the file. Without its content it is held."""
    box = Box(tmp_path / "log.db")
    mails = await dispatch_two(box)
    async with box.run(delivery=False) as setup:
        entries = {entry.delivery.message.queue_id: entry for entry in await setup.entries()}
        spooled = Spooled("0123/4567", len(CONTENT), "0" * 32)
        await setup.log.append(replace(entries[mails[0].message.queue_id], content=spooled))
    for mail in mails:
        box.change("DELETE FROM entry WHERE instr(frame, ?)", mail.message.queue_id.encode())
    async with box.run() as setup:
        await wait_until(lambda: setup.is_closed(mails[0]), what="the message in the spool")
        (held,) = await setup.entries()
        assert isinstance(held.state, Waiting)
        assert (held.delivery.message, held.state.cause) == (mails[1].message, WaitCause.HELD)
    assert [request.content for request in box.dispatched] == [spooled]
