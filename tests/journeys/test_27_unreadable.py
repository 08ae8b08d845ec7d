"""Journey 27: a record of an unknown version stops its shard with an error; everything else continues.

Real processes on a real Kafka, for each topic that a router or a delivery reads. No process ends; the log, a metric and
`eilpost doctor` name the record. Then the commands of docs/kafka.md, "A record that cannot be read", are run as they
stand there: the record is copied, and with the role stopped it is skipped or replaced by a tombstone. The waiting mail
arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import smtplib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition

from mail.log.kafka.access import make_access
from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, QUEUE, ShardCounts, Topic, place, shard_of_message
from mail.message import QueueId
from mail.route import ToMailbox
from mail.settings import LogSettings
from tests.support.builders.records import accepted, attempted, dispatched, frame_of_version, queue_entry
from tests.support.docs.shell_blocks import section, shell_blocks
from tests.support.servers import kafka_tools
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess, directory_toml
from tests.support.servers.kafka_log import append_frame, make_topics, settings_on
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

COUNTS = ShardCounts(2, 2)
USERS = ("alice", "bob", "carol", "dave")
MESSAGES = 12
STOPPED = 1  # the shard with the record
PAGE = Path(__file__).resolve().parents[2] / "docs" / "kafka.md"


class Roles:
    """An ingress, a router and a delivery on shared folders."""

    def __init__(self, folder: Path, log: LogSettings) -> None:
        shared: dict[str, dict[str, Any]] = {
            "log": {
                "url": log.url,
                "prefix": log.prefix,
                "durability": "dev",
                "replication": 1,
                "session_timeout": "6s",
            },
            "spool": {"url": f"file:{folder}/spool"},
            "mailboxes": {"url": f"maildir:{folder}/mail"},
        }
        self.mail = folder / "mail/example.test"
        self.ingress, self.router, self.delivery = self.everyone = tuple(
            EilpostProcess(folder / role, shared, directory=directory_toml(USERS), command=(str(EILPOST), role))
            for role in ("ingress", "router", "delivery")
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        try:
            for each in self.everyone:
                each.start(wait=False)
            for each in self.everyone:
                each.wait_ready(60)
            yield
        finally:
            for each in self.everyone:
                each.kill()

    def send(self, subjects: Sequence[str]) -> dict[str, tuple[QueueId, str]]:
        """Send a message to each user in turn; returns its queue id and recipient by subject."""
        sent = {}
        with smtplib.SMTP("127.0.0.1", self.ingress.mx) as client:
            client.ehlo()
            for number, subject in enumerate(subjects):
                user = USERS[number % len(USERS)]
                client.mail("bob@example.test")
                client.rcpt(f"{user}@example.test")
                code, text = client.data(f"Subject: {subject}\r\n\r\nx\r\n".encode())
                found = re.search(r"\b[0-9A-Z]{26}\b", text.decode())
                assert (code, found is not None) == (250, True)
                assert found is not None
                sent[subject] = QueueId(found[0]), user
        return sent

    def arrived(self) -> list[str]:
        texts = [path.read_text() for path in self.mail.glob("*/new/*")]
        return sorted(match[1] for text in texts if (match := re.search(r"^Subject: (\S+)", text, re.MULTILINE)))


def waits_for(topic: Topic, queue_id: QueueId, user: str) -> bool:
    """Whether a message passes the stopped shard."""
    if topic is DISPATCHED:
        return place(dispatched(1, ToMailbox(f"{user}@example.test")), COUNTS).shard == STOPPED
    return shard_of_message(queue_id, COUNTS) == STOPPED


async def check_stopped(roles: Roles, role: str, what: str, flows: Sequence[str]) -> None:
    """Check that one shard of the role is stopped, that only mail in `flows` arrives, and that the reason is logged
    once.
    """
    reader = {"router": roles.router, "delivery": roles.delivery}[role]
    pids = {each.pid for each in roles.everyone}
    await wait_until(lambda: roles.arrived() == flows, what="the other shard's mail", deadline_seconds=40)
    await asyncio.sleep(3)  # long enough to see a retry loop
    assert roles.arrived() == flows
    assert {each.pid for each in roles.everyone if each.is_running} == pids
    assert reader.metric("eilpost_shards_stopped", role=role) == 1
    (line,) = [line for line in reader.output().splitlines() if '"shard stopped, its mail waits"' in line]
    assert what in json.loads(line)["error"]
    (ready, answer), healthy = reader.get("/readyz"), reader.get("/healthz")[0]
    assert (ready, healthy) == (200, 200)  # its other shard is processed
    (stopped,) = json.loads(answer)["stopped"]
    assert stopped.startswith(f"{role}, shard {STOPPED}: ")
    assert what in stopped


async def has_stopped(reader: EilpostProcess, role: str) -> None:
    await wait_until(
        lambda: reader.metric("eilpost_shards_stopped", role=role) == 1, what="the metric", deadline_seconds=20
    )


class Page:
    """The commands of docs/kafka.md, with the values of the test in place of those of the page."""

    def __init__(self, folder: Path, **variables: object) -> None:
        self.folder = folder
        self._variables = {name: str(value) for name, value in variables.items()}
        (_, self._copy, self._describe, self._first_record, self._skip, self._tombstone) = shell_blocks(
            section(PAGE.read_text(encoding="utf-8"), "A record that cannot be read")
        )
        kafka_tools.write_scripts(folder / "bin")

    def _run(self, block: str, **variables: object) -> str:
        values = self._variables | {name: str(value) for name, value in variables.items()}
        block = re.sub(r"^(?:[A-Z_]+=\S+ ?)+\n", "", block, flags=re.MULTILINE)  # the page's own values
        path = f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", block],
            cwd=self.folder,
            env={**os.environ, **values, "PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        return done.stdout

    def copy(self) -> bytes:
        self._run(self._copy)
        return (self.folder / "record").read_bytes()

    def committed_offset(self) -> int:
        rows = [line.split() for line in self._run(self._describe).splitlines() if line.strip()]
        head = next(row for row in rows if row[0] == "GROUP")
        (row,) = [
            dict(zip(head, row, strict=False))
            for row in rows
            if row[1:3] == [self._variables["TOPIC"], self._variables["PARTITION"]]
        ]
        return int(row["CURRENT-OFFSET"])

    def first_record_from(self, offset: int) -> str:
        return self._run(self._first_record, CURRENT_OFFSET=offset)

    def skip(self) -> str:
        return self._run(self._skip)

    def write_tombstone(self) -> None:
        self._run(self._tombstone)


async def commit_offset(log: LogSettings, topic: Topic, role: str, offset: int, text: str) -> None:
    """Commit an offset with metadata for a group without members."""
    access = make_access(log)
    consumer = AIOKafkaConsumer(group_id=access.group(role), enable_auto_commit=False, **access.client_options())
    await consumer.start()
    try:
        at = TopicPartition(access.topic(topic), STOPPED)
        consumer.assign([at])
        await consumer.commit({at: OffsetAndMetadata(offset, text)})
    finally:
        await consumer.stop()


RECORDS = {ACCEPTED: accepted(1), ATTEMPTED: attempted(1), DISPATCHED: dispatched(1)}


@pytest.mark.kafka_tools
@pytest.mark.parametrize(
    ("topic", "role"),
    [(ACCEPTED, "router"), (ATTEMPTED, "router"), (DISPATCHED, "delivery")],
    ids=lambda each: each if isinstance(each, str) else each.name,
)
async def test_record_of_unknown_version_stops_only_its_shard_until_an_operator_skips_it(
    kafka_bootstrap: str, tmp_path: Path, topic: Topic, role: str
) -> None:
    log = settings_on(kafka_bootstrap, shards=COUNTS.by_queue_id, delivery_shards=COUNTS.of_dispatched)
    await make_topics(log)
    roles = Roles(tmp_path, log)
    reader = roles.delivery if role == "delivery" else roles.router
    with roles.running():
        before = roles.send([f"before-{number}" for number in range(MESSAGES)])
        await wait_until(lambda: roles.arrived() == sorted(before), what="mail while all is well", deadline_seconds=40)
        # Their reports are processed too: an offset of every shard is committed.
        await wait_until(lambda: not roles.router.metric("eilpost_queue_recipients"), what="an empty queue")
        pids = {each.pid for each in roles.everyone}

        frame = frame_of_version(9, RECORDS[topic])
        offset = await append_frame(log, topic, STOPPED, frame)
        await has_stopped(reader, role)
        after = roles.send([f"after-{number}" for number in range(MESSAGES)])
        waiting = {subject for subject, (queue_id, user) in after.items() if waits_for(topic, queue_id, user)}
        assert 0 < len(waiting) < MESSAGES
        place_of_it = f"{log.prefix}{topic.name}, shard {STOPPED}, offset {offset} cannot be read: its version is 9"
        await check_stopped(roles, role, place_of_it, sorted(before.keys() | after.keys() - waiting))
        assert {each.pid for each in roles.everyone} == pids

        report = json.loads(await asyncio.to_thread(roles.ingress.run, "doctor", "--json", ok=False))
        (finding,) = [
            each for each in report["findings"] if each["what"] == f"shard {STOPPED} of {log.prefix}{topic.name}"
        ]
        assert (report["level"], finding["level"]) == ("FAIL", "FAIL")
        assert place_of_it in finding["text"]
        assert len(finding["advice"]) == 2

        names = {"TOPIC": f"{log.prefix}{topic.name}", "GROUP": f"{log.prefix}{role}"}
        page = Page(tmp_path, BROKER=kafka_bootstrap, PARTITION=STOPPED, OFFSET=offset, **names)
        assert await asyncio.to_thread(page.copy) == frame + b"\n"
        committed = await asyncio.to_thread(page.committed_offset)
        if committed != offset:
            assert committed < offset
            assert f"Offset:{offset}" in await asyncio.to_thread(page.first_record_from, committed)
        assert await asyncio.to_thread(reader.stop) == 0
        assert str(offset + 1) in await asyncio.to_thread(page.skip)
        await asyncio.to_thread(reader.start)
        everything = sorted(before.keys() | after.keys())
        await wait_until(lambda: roles.arrived() == everything, what="what had waited", deadline_seconds=40)
        assert reader.metric("eilpost_shards_stopped", role=role) == 0
        assert "stopped" not in json.loads(reader.get("/readyz")[1])
        report = json.loads(await asyncio.to_thread(roles.ingress.run, "doctor", "--json", ok=False))
        assert not [each for each in report["findings"] if each["what"].startswith("shard ")]


@pytest.mark.kafka_tools
async def test_queue_record_of_unknown_version_stops_its_shard_until_a_tombstone_replaces_it(
    kafka_bootstrap: str, tmp_path: Path
) -> None:
    log = settings_on(kafka_bootstrap, shards=COUNTS.by_queue_id, delivery_shards=COUNTS.of_dispatched)
    await make_topics(log)
    roles = Roles(tmp_path, log)
    line = next(each for each in map(queue_entry, range(1, 100)) if place(each, COUNTS).shard == STOPPED)
    key = place(line, COUNTS).key
    with roles.running():
        assert await asyncio.to_thread(roles.router.stop) == 0
        await append_frame(log, QUEUE, STOPPED, frame_of_version(9, line), key)
        await asyncio.to_thread(roles.router.start)
        await has_stopped(roles.router, "router")
        sent = roles.send([f"message-{number}" for number in range(MESSAGES)])
        flows = sorted(subject for subject, (queue_id, user) in sent.items() if not waits_for(QUEUE, queue_id, user))
        assert 0 < len(flows) < MESSAGES
        place_of_it = f"{log.prefix}queue, shard {STOPPED}, key {key} cannot be read: its version is 9"
        await check_stopped(roles, "router", place_of_it, flows)

        assert await asyncio.to_thread(roles.router.stop) == 0
        page = Page(tmp_path, BROKER=kafka_bootstrap, TOPIC=f"{log.prefix}queue", PARTITION=STOPPED, KEY=key)
        await asyncio.to_thread(page.write_tombstone)
        await asyncio.to_thread(roles.router.start)
        await wait_until(lambda: roles.arrived() == sorted(sent), what="what had waited", deadline_seconds=40)
        assert roles.router.metric("eilpost_shards_stopped", role="router") == 0


async def test_queue_record_of_unknown_version_is_reported(kafka_bootstrap: str, tmp_path: Path) -> None:
    log = settings_on(kafka_bootstrap, shards=COUNTS.by_queue_id, delivery_shards=COUNTS.of_dispatched)
    await make_topics(log)
    line = queue_entry(1)
    at = place(line, COUNTS)
    await append_frame(log, QUEUE, at.shard, frame_of_version(9, line), at.key)
    ingress = Roles(tmp_path, log).ingress  # its configuration only; it does not run
    report = json.loads(await asyncio.to_thread(ingress.run, "doctor", "--json", ok=False))
    (finding,) = [each for each in report["findings"] if each["what"] == f"shard {at.shard} of {log.prefix}queue"]
    assert finding["level"] == "FAIL"
    assert f"key {at.key} cannot be read: its version is 9" in finding["text"]
    command = [EILPOST, "queue", "--config", ingress.config]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert finding["text"] in done.stderr


async def test_committed_offset_of_unknown_version_is_reported(kafka_bootstrap: str, tmp_path: Path) -> None:
    log = settings_on(kafka_bootstrap, shards=COUNTS.by_queue_id, delivery_shards=COUNTS.of_dispatched)
    await make_topics(log)
    await commit_offset(log, DISPATCHED, "delivery", 0, "9 and so on")
    ingress = Roles(tmp_path, log).ingress
    report = json.loads(await asyncio.to_thread(ingress.run, "doctor", "--json", ok=False))
    (finding,) = [each for each in report["findings"] if each["what"] == "groups"]
    assert finding["level"] == "FAIL"
    assert finding["text"].startswith("a committed offset cannot be read: it begins with '9'")
    assert finding["text"].endswith("a newer eilpost wrote it; run that version")
