"""Journey 21: two tenants on one cluster, one of them dedicated, with its own topics and workers.

example.test is shared, acme.test is dedicated. Each message is only in the topics of its tenant, `eilpost trace` finds
both, a transaction for both tenants is accepted in two parts, and while acme's processes are down only its mail waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import smtplib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from aiokafka import TopicPartition

from mail.log.kafka.access import make_access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.history import KafkaHistory
from mail.log.topics import ALL_TOPICS, EVENTS
from mail.message import QueueId
from mail.record import DeliveryAttempted
from mail.settings import LogSettings
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess, directory_toml
from tests.support.servers.kafka_log import make_topics, settings_on
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

DIRECTORY = (
    '[tenants.acme]\nhosting = "dedicated"\n\n[domains."acme.test"]\ntenant = "acme"\n\n'
    + directory_toml(("alice", "bob"))
    + '[users."wile@acme.test"]\n\n'
)


class Hosting:
    """Processes of both tenants on shared folders. `log_in`: extra keys of `[log]`."""

    def __init__(self, folder: Path, log: LogSettings, log_in: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        shared = {
            "log": {
                "url": log.url,
                "prefix": log.prefix,
                "durability": "dev",
                "session_timeout": "6s",
                "replication": 1,
                **(log_in or {}),
            },
            "spool": {"url": f"file:{folder}/spool"},
            "mailboxes": {"url": f"maildir:{folder}/mail"},
        }

        def process(name: str, *command: str) -> EilpostProcess:
            return EilpostProcess(folder / name, shared, directory=DIRECTORY, command=(str(EILPOST), *command))

        self.ingress = process("ingress", "ingress")
        self.shared = [process("router", "router"), process("delivery", "delivery")]
        self.acme = [
            process("acme-router", "router", "--tenant", "acme"),
            process("acme-delivery", "delivery", "--tenant", "acme"),
        ]

    @contextlib.contextmanager
    def running(self, processes: Sequence[EilpostProcess]) -> Iterator[None]:
        try:
            for process in processes:
                process.start(wait=False)
            for process in processes:
                process.wait_ready()
            yield
        finally:
            for process in processes:
                process.kill()

    def stored_count(self, address: str) -> int:
        user, _, domain = address.partition("@")
        return sum(file.is_file() for file in (self.folder / "mail" / domain / user).glob("new/*"))


def send(port: int, sender: str, *recipients: str) -> tuple[str, dict[str, tuple[int, bytes]]]:
    """The queue id of the accepted message, and the refused recipients."""
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.ehlo()
        client.mail(sender)
        refused = {}
        for recipient in recipients:
            code, text = client.rcpt(recipient)
            if code != 250:
                refused[recipient] = (code, text)
        code, text = client.data(b"Subject: x\r\n\r\nx\r\n")
        assert code == 250
        found = re.search(r"\b[0-9A-Z]{26}\b", text.decode())
        assert found is not None
        return found[0], refused


async def records(log: LogSettings) -> dict[str, int]:
    """Number of records ever written to each topic, without `events`, to which idle routers write."""
    access = make_access(log)
    written = {}
    async with ClusterInfo(access) as cluster_info:
        found = await cluster_info.topics(with_config=False)
        for topic in set(ALL_TOPICS) - {EVENTS}:
            partitions = [TopicPartition(access.prefix + topic.name, n) for n in range(found[topic].partitions)]
            written[topic.name] = sum((await cluster_info.end_offsets(partitions)).values())
    return written


async def is_delivered(log: LogSettings, queue_id: str) -> bool:
    """Whether the router has processed the report of the message's delivery."""
    history = KafkaHistory(log)
    is_attempted = any(
        [isinstance(event.detail, DeliveryAttempted) async for event in history.history(QueueId(queue_id))]
    )
    return is_attempted and not [entry async for entry in history.queue_entries(QueueId(queue_id))]


async def test_dedicated_tenant_shares_no_topic_and_no_worker(kafka_bootstrap: str, tmp_path: Path) -> None:
    log = settings_on(kafka_bootstrap)
    acme = log.model_copy(update={"prefix": f"{log.prefix}acme."})
    await make_topics(log.model_copy(update={"shards": 2, "delivery_shards": 2}))
    hosting = Hosting(tmp_path, log)
    with hosting.running([hosting.ingress, *hosting.shared]):
        # Until its topics exist, mail for acme gets 4xx.
        with smtplib.SMTP("127.0.0.1", hosting.ingress.mx) as client:
            client.ehlo()
            client.mail("someone@elsewhere.test")
            assert client.rcpt("wile@acme.test")[0] == 451  # already at RCPT, before the content
            assert client.rcpt("alice@example.test")[0] == 250
        made = hosting.ingress.run("topics", "create", "--tenant", "acme")
        assert made.count(": created") == len(ALL_TOPICS)
        assert hosting.ingress.run("topics", "create", "--tenant", "acme") == "nothing to do\n"
        await asyncio.sleep(5.1)  # the tenant's producer checks its topics again

        # Acme's processes are down: its mail waits, other mail flows.
        to_acme, _ = await asyncio.to_thread(send, hosting.ingress.mx, "someone@elsewhere.test", "wile@acme.test")
        before = await records(log)
        to_alice, refused = await asyncio.to_thread(
            send, hosting.ingress.mx, "someone@elsewhere.test", "alice@example.test", "wile@acme.test"
        )
        assert refused["wile@acme.test"][0] == 452  # needs a transaction of its own
        await wait_until(lambda: hosting.stored_count("alice@example.test") == 1, what="alice's message")
        assert hosting.stored_count("wile@acme.test") == 0
        assert (await records(acme))["accepted"] == 1
        await wait_until(lambda: is_delivered(log, to_alice), what="the end of alice's message in the queue")
        shared = await records(log)
        assert shared["accepted"] == before["accepted"] + 1

        with hosting.running(hosting.acme):
            await wait_until(
                lambda: hosting.stored_count("wile@acme.test") == 1, deadline_seconds=40, what="acme's message"
            )
            # Mail from acme stays in its topics for any recipient.
            from_acme, _ = await asyncio.to_thread(send, hosting.ingress.mx, "wile@acme.test", "bob@example.test")
            await wait_until(
                lambda: hosting.stored_count("bob@example.test") == 1, deadline_seconds=30, what="bob's message"
            )
            assert (await records(acme))["accepted"] == 2
            assert await records(log) == shared  # the shared topics got no record of it
            assert [event async for event in KafkaHistory(log).history(QueueId(from_acme))] == []

            for queue_id in (to_acme, to_alice, from_acme):
                output = await asyncio.to_thread(hosting.ingress.run, "trace", queue_id)
                assert "delivered" in output
            assert "empty" in await asyncio.to_thread(hosting.ingress.run, "queue", "--tenant", "acme")
    for process in (hosting.ingress, *hosting.shared, *hosting.acme):
        assert "traceback" not in process.output().lower()


def test_role_for_an_undedicated_tenant_is_refused(tmp_path: Path) -> None:
    box = EilpostProcess(tmp_path, {"log": {"url": "kafka://127.0.0.1:1"}}, directory=DIRECTORY)
    for name in ("nobody", "default"):
        with pytest.raises(AssertionError, match=r"--tenant .*hosting = .dedicated. \(dedicated are: acme\)"):
            box.run("queue", "--tenant", name)
