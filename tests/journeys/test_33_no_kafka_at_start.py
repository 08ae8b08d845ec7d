"""Journey 33: real processes that start before Kafka, and keep running during an outage.

Without brokers, and then without topics, no process ends: each is unready, and /readyz names what is missing. When
brokers and topics appear, each becomes ready without a restart and mail flows. In a later outage workers are unready,
and the ingress is, from the first message on that it cannot append, and replies 421.
"""

from __future__ import annotations

import asyncio
import json
import smtplib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.journeys.test_21_dedicated_tenant import Hosting, send
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess
from tests.support.servers.kafka import ClusterFactory
from tests.support.servers.kafka_log import settings_on
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.timeout(240)]


def readiness(process: EilpostProcess) -> tuple[int, list[str]]:
    """The status of /readyz and its reasons."""
    status, body = process.get("/readyz")
    return status, json.loads(body)["reasons"]


async def becomes(processes: Sequence[EilpostProcess], status: int, reason: str = "") -> None:
    def is_so(process: EilpostProcess) -> bool:
        try:
            found, reasons = readiness(process)
        except OSError:
            return False
        return found == status and (not reason or [reason in each for each in reasons] == [True])

    for each in processes:
        try:
            await wait_until(lambda one=each: is_so(one), what="", deadline_seconds=60)
        except AssertionError:
            raise AssertionError(f"{each.home.name}: {readiness(each)}, not {status} {reason}") from None


def greeting(port: int) -> int:
    """The code of an ingress's greeting, or the first code that is not 2xx."""
    with smtplib.SMTP() as client:
        code, _ = client.connect("127.0.0.1", port)
        if code != 220:
            return code
        client.ehlo()
        return client.mail("someone@elsewhere.test")[0]


async def test_roles_start_without_kafka_and_survive_an_outage(kafka_cluster: ClusterFactory, tmp_path: Path) -> None:
    cluster = kafka_cluster(1)
    hosting = Hosting(tmp_path, settings_on(cluster.bootstrap))
    cluster.node(1).kill()
    mailstore = EilpostProcess(tmp_path / "mailstore", command=(str(EILPOST), "mailstore"))
    workers = [*hosting.shared, *hosting.acme]
    everyone = [hosting.ingress, *workers]
    port = hosting.ingress.mx
    try:
        for each in (*everyone, mailstore):
            each.start(wait=False)
        await becomes([mailstore], 200)
        await becomes(everyone, 503, f"the log is down: log.url: {cluster.bootstrap} refuses the connection")
        assert [each.get("/healthz")[0] for each in everyone] == [200] * len(everyone)
        assert await asyncio.to_thread(greeting, port) == 421

        cluster.restart(1)
        await becomes([hosting.ingress, *hosting.shared], 503, "missing: run `eilpost topics create`, or correct")
        await becomes(hosting.acme, 503, "missing: run `eilpost topics create --tenant acme`, or correct")
        assert await asyncio.to_thread(greeting, port) == 421
        hosting.ingress.run("topics", "create")
        hosting.ingress.run("topics", "create", "--tenant", "acme")
        await becomes(everyone, 200)
        pids = [each.pid for each in everyone]
        for user in ("alice@example.test", "wile@acme.test"):
            await asyncio.to_thread(send, port, "someone@elsewhere.test", user)
            await wait_until(
                lambda user=user: hosting.stored_count(user) == 1, what=f"mail to {user}", deadline_seconds=40
            )

        cluster.node(1).kill()  # no operation is running that would detect it
        await becomes(workers, 503, "the log is down: ")
        assert readiness(hosting.ingress) == (200, [])
        with smtplib.SMTP("127.0.0.1", port) as client, pytest.raises(smtplib.SMTPDataError, match="451"):
            await asyncio.to_thread(
                client.sendmail, "someone@elsewhere.test", "alice@example.test", "Subject: x\n\nx\n"
            )
        await wait_until(lambda: greeting(port) == 421, what="421", deadline_seconds=30)
        await becomes([hosting.ingress], 503, "the log is down: ")
        cluster.restart(1)
        await becomes(everyone, 200)
        await wait_until(lambda: greeting(port) == 250, what="open again", deadline_seconds=40)
        await asyncio.to_thread(send, port, "someone@elsewhere.test", "bob@example.test")
        await wait_until(
            lambda: hosting.stored_count("bob@example.test") == 1, what="mail after it", deadline_seconds=60
        )
        assert [each.pid for each in everyone if each.is_running] == pids
    finally:
        for each in (*everyone, mailstore):
            each.kill()
    for each in everyone:
        assert "traceback" not in each.output().lower()
