"""Two of three brokers are lost: clients get 4xx within 30 s, nothing accepted is lost, and it opens again by itself.

What was in flight gets 451, who comes then 421, on connect and at MAIL. What was turned away before its content was
published is never delivered; what was answered 451 after the dot may be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.support.accounting import Sink
from tests.support.cells import Load, empty_queue, missing, settle
from tests.support.mailcluster import HOSTS, MailCluster
from tests.support.ports import wait_until

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.fault, pytest.mark.timeout(240)]

OUTAGE_SECONDS = 20.0


async def test_two_of_three_brokers(mail_cluster: MailCluster, turn: Iterator[int]) -> None:
    brokers = mail_cluster.brokers
    async with Sink(port=mail_cluster.sink_port, hosts=HOSTS) as sink:
        load = Load(mail_cluster, f"two{next(turn)}", 100_000, 40, once=True)
        late = None
        try:
            await wait_until(lambda: len(load.promised) > 40, what="mail that flows")
            lost_at = time.monotonic()
            await asyncio.to_thread(brokers.node(1).kill)
            brokers.node(2).freeze()
            await asyncio.sleep(OUTAGE_SECONDS)
            answers = load.answers
            promised_before_return = len(load.promised)
            await asyncio.sleep(1)
            assert len(load.promised) == promised_before_return  # nothing is accepted now
            load.stop()
            await load.ended(90)
            back_at = time.monotonic()
            brokers.node(2).thaw()
            await asyncio.to_thread(brokers.restart, 1)
            await wait_until(
                lambda: all(_is_open(member.mx) for member in mail_cluster.of("ingress")),
                deadline_seconds=60,
                what="the door's opening again",
            )
            opened = time.monotonic() - back_at
            late = Load(mail_cluster, f"late{next(turn)}", 60, 40)
            await late.ended(60)
            for each in (load, late):
                await settle(each, sink, mail_cluster)
                assert not missing(each, sink, mail_cluster)
            assert await empty_queue(mail_cluster) == []
            await mail_cluster.in_sync()
        finally:
            for each in (load, late):
                if each is not None:
                    each.stop()
                    await each.close()
        during = [(at - lost_at, answer) for at, answer in answers if at > lost_at]
        assert during
        first = {code: min(at for at, answer in during if answer[:3] == code) for code in {a[:3] for _, a in during}}
        turned_away = load.turned_away.keys() | late.turned_away.keys()
        print(
            f"first answers after {first}, {len(load.unknown)} in doubt, {len(turned_away)} turned away, open again"
            f" {opened:.1f} s after their start"
        )
        assert set(first) == {b"451", b"421"}  # what was in flight; who came then
        assert min(first.values()) < 30
        assert any(answer.startswith(b"421 4.3.2") for _, answer in during)
        assert not turned_away & sink.ids(), "turned away, and delivered"
        assert not (sink.ids() - load.promised.keys() - load.unknown.keys() - late.promised.keys())


def _is_open(port: int) -> bool:
    import smtplib

    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=5) as client:
            client.ehlo("probe.test")
            return client.mail("bob@example.test")[0] == 250
    except (OSError, smtplib.SMTPException):
        return False
