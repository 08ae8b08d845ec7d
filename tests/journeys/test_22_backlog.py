"""Journey 22: no router runs; above `log.max_unrouted_messages` every ingress replies 452 until the backlog is routed.

Each ingress counts its own appends and measures those of the others; no message is refused after the dot, and earlier
ones arrive. A dedicated tenant has its own count: while its router is down only its recipients get 452.
"""

from __future__ import annotations

import contextlib
import smtplib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mail.log.topics import tenant_prefix
from mail.settings import LogSettings
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess, directory_toml
from tests.support.servers.kafka_log import make_topics, settings_on
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

MOST = 5
FULL = (452, b"4.3.1 Insufficient system storage, try again later")
DIRECTORY = (
    '[tenants.acme]\nhosting = "dedicated"\n\n[domains."acme.test"]\ntenant = "acme"\n\n'
    + directory_toml(("alice", "bob"))
    + '[users."wile@acme.test"]\n\n'
)


def sections(log: LogSettings, folder: Path) -> dict[str, dict[str, Any]]:
    return {
        "log": {
            "url": log.url,
            "prefix": log.prefix,
            "durability": "dev",
            "replication": 1,
            "max_unrouted_messages": MOST,
        },
        "spool": {"url": f"file:{folder}/spool"},
        "mailboxes": {"url": f"maildir:{folder}/mail"},
    }


def try_to_send(port: int, recipient: str = "alice@example.test") -> tuple[int, bytes]:
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.ehlo()
        if (refused := client.mail("someone@elsewhere.test"))[0] != 250:
            return refused
        if (refused := client.rcpt(recipient))[0] != 250:
            return refused
        return client.data(b"Subject: waits\r\n\r\nwaits\r\n")


@contextmanager
def running(*boxes: EilpostProcess) -> Iterator[Sequence[EilpostProcess]]:
    with contextlib.ExitStack() as started:
        for box in boxes:
            started.callback(box.kill)
            box.start()
        yield boxes


async def test_backlog_refuses_new_mail_until_it_is_routed(kafka_bootstrap: str, tmp_path: Path) -> None:
    log = settings_on(kafka_bootstrap, shards=2, delivery_shards=2)
    await make_topics(log)
    first, second, *workers = (
        EilpostProcess(tmp_path / f"{role}-{number}", sections(log, tmp_path), command=(str(EILPOST), role))
        for number, role in enumerate(("ingress", "ingress", "router", "delivery"))
    )
    with running(first, second):
        for _ in range(MOST):
            assert try_to_send(first.mx)[0] == 250
        assert try_to_send(first.mx) == FULL
        await wait_until(lambda: try_to_send(second.mx) == FULL, deadline_seconds=20, what="the second ingress's 452")
        status, body = first.get("/readyz")
        assert (status, '"condition":"full"' in body) == (200, True)

        with running(*workers):
            for ingress in (first, second):
                await wait_until(
                    lambda ingress=ingress: try_to_send(ingress.mx)[0] == 250,
                    deadline_seconds=30,
                    what="its opening again",
                )
            inbox = tmp_path / "mail/example.test/alice/new"
            await wait_until(
                lambda: inbox.is_dir() and len(list(inbox.iterdir())) >= MOST + 2,
                deadline_seconds=30,
                what="what was accepted",
            )


async def test_backlog_of_a_dedicated_tenant_affects_no_other_tenant(kafka_bootstrap: str, tmp_path: Path) -> None:
    log = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    await make_topics(log)
    await make_topics(log.model_copy(update={"prefix": tenant_prefix(log.prefix, "acme")}))
    ingress, router, theirs = (
        EilpostProcess(
            tmp_path / "-".join(command),
            sections(log, tmp_path),
            directory=DIRECTORY,
            command=(str(EILPOST), *command),
        )
        for command in (("ingress",), ("router",), ("router", "--tenant", "acme"))
    )
    with running(ingress, router):
        for _ in range(MOST):
            assert try_to_send(ingress.mx, "wile@acme.test")[0] == 250
        assert try_to_send(ingress.mx, "wile@acme.test") == FULL
        for _ in range(2 * MOST):
            await wait_until(lambda: try_to_send(ingress.mx)[0] == 250, deadline_seconds=20, what="a place")
        assert try_to_send(ingress.mx, "wile@acme.test") == FULL
        with running(theirs):
            await wait_until(
                lambda: try_to_send(ingress.mx, "wile@acme.test")[0] == 250, deadline_seconds=30, what="acme's opening"
            )
