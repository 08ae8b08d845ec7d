"""Journey 29: topics are deleted under running processes: the shared ones or those of a dedicated tenant.

Real processes on a real Kafka with automatic topic creation. Each affected process logs one line with the missing
topics and the remedy, becomes unready for that reason, and keeps running; doctor reports the topics and their owner.
When the topics are recreated, mail flows without a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import smtplib
from collections.abc import Sequence
from pathlib import Path

import pytest

from mail.log.kafka.access import make_access
from mail.log.kafka.create_topics import open_admin
from mail.log.topics import ALL_TOPICS
from mail.settings import LogSettings
from tests.journeys.test_21_dedicated_tenant import Hosting, send
from tests.support.servers.eilpost_process import EilpostProcess
from tests.support.servers.kafka_log import make_topics, settings_on
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


async def delete(log: LogSettings, names: Sequence[str]) -> None:
    admin = await open_admin(make_access(log))
    try:
        await admin.delete_topics([log.prefix + name for name in names])
    finally:
        await admin.close()


def topic_lines(process: EilpostProcess, what: str) -> list[str]:
    """Log lines about missing topics."""
    lines = [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]
    return [line["error"] for line in lines if line["event"] == what]


def reasons(process: EilpostProcess) -> list[str]:
    """Reasons in /readyz."""
    found: list[str] = json.loads(process.get("/readyz")[1])["reasons"]
    return found


LOST = "topics missing or invalid, mail is not processed"


@pytest.mark.parametrize("names", [("accepted", "queue", "dispatched", "attempted", "events"), ("queue",)])
@pytest.mark.parametrize("tenant", ["", "acme"])
async def test_processes_recover_from_deleted_topics(
    kafka_bootstrap: str, tmp_path: Path, tenant: str, names: Sequence[str]
) -> None:
    shared = settings_on(kafka_bootstrap)
    log = shared.model_copy(update={"prefix": f"{shared.prefix}{tenant}."}) if tenant else shared
    option = ("--tenant", tenant) if tenant else ()
    await make_topics(shared.model_copy(update={"shards": 2, "delivery_shards": 2}))
    hosting = Hosting(tmp_path, shared)
    workers = hosting.acme if tenant else hosting.shared
    user = "wile@acme.test" if tenant else "alice@example.test"
    port = hosting.ingress.mx
    hosting.ingress.run("topics", "create", "--tenant", "acme")
    with hosting.running([hosting.ingress, *hosting.shared, *hosting.acme]):
        for _ in range(3):
            await asyncio.to_thread(send, port, "someone@elsewhere.test", user)
        await wait_until(lambda: hosting.stored_count(user) == 3, what="mail while all is well", deadline_seconds=40)
        pids = [each.pid for each in (hosting.ingress, *workers)]

        await delete(log, names)
        missing = ", ".join(f"{log.prefix}{topic.name}" for topic in ALL_TOPICS if topic.name in names)
        advice = f"missing: run `eilpost {' '.join(('topics', 'create', *option))}`, or correct log.prefix"
        for each in workers:
            # A failed commit may make it unready before the next check of the topics.
            await wait_until(lambda one=each: topic_lines(one, LOST), what="the line of a worker", deadline_seconds=30)
            (line,) = topic_lines(each, LOST)
            await wait_until(lambda one=each: reasons(one) == [f"the log is down: {line}"], what="not ready")  # noqa: B023
            assert missing in line
            assert advice in line
            assert each.get("/healthz")[0] == 200
        # New mail of the tenant gets 4xx at once; other mail is accepted.
        what = "topics of a dedicated tenant not usable, its new mail is refused" if tenant else LOST
        await wait_until(lambda: topic_lines(hosting.ingress, what), what="the line of ingress", deadline_seconds=30)
        (line,) = topic_lines(hosting.ingress, what)
        assert missing in line
        assert advice in line
        assert hosting.ingress.get("/readyz")[0] == (200 if tenant else 503)  # it takes other mail, or replies 421
        with smtplib.SMTP() as client:
            code, _ = await asyncio.to_thread(client.connect, "127.0.0.1", port)
            if tenant:
                client.ehlo()
                client.mail("someone@elsewhere.test")
                assert (code, client.rcpt(user)[0], client.rcpt("bob@example.test")[0]) == (220, 451, 250)
            else:
                assert code == 421
        found = json.loads(await asyncio.to_thread(hosting.ingress.run, "doctor", "--json", ok=False))
        fails = [each for each in found["findings"] if each["level"] == "FAIL" and "topic" in each["what"]]
        assert len(fails) == 1
        assert log.prefix in fails[0]["what"]
        assert (f"of tenant {tenant}" in fails[0]["text"]) is bool(tenant)
        assert any(f"topics create{''.join(f' {word}' for word in option)}`" in each for each in fails[0]["advice"])

        await asyncio.sleep(8)  # no automatic creation, no repeated log line, no exit
        assert [len(topic_lines(each, LOST)) for each in workers] == [1, 1]
        assert hosting.ingress.run("topics", "create", *option).count(": created") == len(names)
        for each in (hosting.ingress, *workers):
            await wait_until(lambda one=each: one.get("/readyz")[0] == 200, what="ready", deadline_seconds=40)

        def is_open() -> bool:
            with contextlib.suppress(smtplib.SMTPConnectError), smtplib.SMTP("127.0.0.1", port) as client:
                client.ehlo()
                client.mail("someone@elsewhere.test")
                return client.rcpt(user)[0] == 250
            return False

        await wait_until(is_open, what="the door", deadline_seconds=40)
        for _ in range(2):  # fewer than before: their offsets are below the committed ones
            await asyncio.to_thread(send, port, "someone@elsewhere.test", user)
        await wait_until(lambda: hosting.stored_count(user) == 5, what="mail after it", deadline_seconds=20)
        assert [each.pid for each in (hosting.ingress, *workers) if each.is_running] == pids
    for each in (hosting.ingress, *hosting.shared, *hosting.acme):
        assert "traceback" not in each.output().lower()
