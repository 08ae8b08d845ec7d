"""Journey 22: no router runs, so what is accepted waits; over `log.backlog_max` every ingress says 452, for a while.

Each ingress counts what it appends and measures what the others did; nobody is turned away after the dot, and what was
accepted before arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
from pathlib import Path

import pytest

from tests.support.kafka_log import make_topics, settings_on
from tests.support.onebox import EILPOST, OneBox
from tests.support.ports import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

MOST = 5


def try_to_send(port: int) -> tuple[int, bytes]:
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.ehlo()
        if (refused := client.mail("bob@example.test"))[0] != 250:
            return refused
        assert client.rcpt("alice@example.test")[0] == 250
        return client.data(b"Subject: waits\r\n\r\nwaits\r\n")


async def test_a_backlog_turns_new_mail_away_until_it_is_routed(kafka_bootstrap: str, tmp_path: Path) -> None:
    log = settings_on(kafka_bootstrap, shards=2, delivery_shards=2)
    await make_topics(log)
    shared = {
        "log": {"url": log.url, "prefix": log.prefix, "durability": "dev", "replication": 1, "backlog_max": MOST},
        "spool": {"url": f"file:{tmp_path}/spool"},
        "mailboxes": {"url": f"maildir:{tmp_path}/mail"},
    }
    roles = ("ingress", "ingress", "router", "delivery")
    first, second, *workers = (
        OneBox(tmp_path / f"{role}-{number}", shared, command=(str(EILPOST), role)) for number, role in enumerate(roles)
    )
    with contextlib.ExitStack() as running:
        for ingress in (first, second):
            running.callback(ingress.kill)
            await asyncio.to_thread(ingress.start)
        for _ in range(MOST):
            assert try_to_send(first.mx)[0] == 250
        assert try_to_send(first.mx) == (452, b"4.3.1 Insufficient system storage, try again later")
        await wait_until(lambda: try_to_send(second.mx)[0] == 452, deadline_seconds=20, what="the second ingress's 452")
        assert (first.get("/readyz")[0], '"condition":"full"' in first.get("/readyz")[1]) == (200, True)

        for worker in workers:
            running.callback(worker.kill)
            await asyncio.to_thread(worker.start)
        for ingress in (first, second):
            await wait_until(
                lambda ingress=ingress: try_to_send(ingress.mx)[0] == 250, deadline_seconds=30, what="its opening again"
            )
        inbox = tmp_path / "mail/example.test/alice/new"
        await wait_until(
            lambda: inbox.is_dir() and len(list(inbox.iterdir())) >= MOST + 2,
            deadline_seconds=30,
            what="what was accepted",
        )
