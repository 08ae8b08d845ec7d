"""Loss of two of three brokers, or of the only one: clients get 4xx within 30 s and no accepted message is lost.

Meanwhile ingresses, routers and deliveries are unready; service resumes without a restart. Messages
in flight get 451 after `log.append_timeout` (20 s by default); later clients get 421 at once, on connect and at MAIL. A
message refused before its append is never delivered; one refused with 451 after the dot may be.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from deploy.kafka.cluster import Cluster
from mail.settings import LogSettings
from tests.support.faults.accounting import Sink
from tests.support.faults.cases import MailLoad, count_in_mailbox, missing, settle, wait_for_empty_queue
from tests.support.servers.kafka import QUICK, ClusterFactory
from tests.support.servers.kafka_log import make_topics
from tests.support.servers.mail_cluster import HOSTS, MailCluster
from tests.support.servers.ports import block_until, wait_until

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.fault, pytest.mark.timeout(240)]

ANSWERED_SECONDS = 30.0
# Until no new message is started: longer than the time-out of the messages in flight.
OUTAGE_SECONDS = LogSettings().append_timeout.total_seconds() + 3.0
PROMISED = {"connect": b"421 4.3.2 ", "MAIL": b"421 4.3.2 ", "dot": b"451 4.3.0 "}  # expected reply by stage
SESSIONS = 60  # per ingress: enough that some are free while others wait after their dots


async def test_loss_of_two_of_three_brokers_loses_no_mail(
    mail_cluster: MailCluster, round_number: Iterator[int]
) -> None:
    lose, bring_back = partial(_lose_two, mail_cluster.brokers), partial(_bring_back, mail_cluster.brokers)
    await _outage(mail_cluster, f"{next(round_number)}", lose, bring_back)


def test_workers_without_mail_become_unready(mail_cluster: MailCluster) -> None:
    """The broker that is left keeps its metadata and answers heartbeats; only a write shows that none is accepted."""
    assert all(member.ready() for member in mail_cluster.members.values())
    _lose_two(mail_cluster.brokers)
    _wait_until_unready(mail_cluster, ("router", "delivery"))
    _bring_back(mail_cluster.brokers)
    _wait_until_all_are_ready(mail_cluster)


def _lose_two(brokers: Cluster) -> None:
    brokers.node(2).freeze()
    brokers.node(1).kill()


def _bring_back(brokers: Cluster) -> None:
    brokers.node(2).thaw()
    brokers.restart(1)


def _wait_until_unready(mail_cluster: MailCluster, roles: Sequence[str]) -> None:
    """The others stay ready: a mailstore needs no log, and an ingress without mail has not noticed yet."""
    for member in mail_cluster.members.values():
        is_ready = member.role not in roles
        what = f"readiness of {member.name}: {is_ready}"
        block_until(lambda one=member, so=is_ready: one.ready() is so, what=what, deadline_seconds=40)


def _wait_until_all_are_ready(mail_cluster: MailCluster) -> None:
    for member in mail_cluster.members.values():
        block_until(member.ready, what=f"{member.name} ready again", deadline_seconds=40)


async def test_loss_of_the_only_broker_loses_no_mail(kafka_cluster: ClusterFactory, tmp_path: Path) -> None:
    """Every connection is refused while the only broker is away; none hangs."""
    brokers = kafka_cluster(1, settings=QUICK)
    counts = {"ingress": 2, "router": 1, "delivery": 1}
    settings = {"log": {"durability": "dev", "replication": 1}}
    cluster = MailCluster(brokers, tmp_path, counts=counts, settings=settings, faulty=False)
    try:
        await make_topics(cluster.log)
        await asyncio.to_thread(cluster.start)
        await asyncio.to_thread(cluster.wait_for_owners)
        await _outage(cluster, "only", brokers.node(1).kill, lambda: brokers.restart(1))
    finally:
        cluster.stop()


async def _outage(
    mail_cluster: MailCluster, name: str, lose: Callable[[], None], bring_back: Callable[[], None]
) -> None:
    async with Sink(port=mail_cluster.sink_port, hosts=HOSTS) as sink:
        load = MailLoad(mail_cluster, f"two{name}", 100_000, 20, once=True, sessions=SESSIONS)
        late = None
        try:
            await wait_until(lambda: len(load.promised) > 40, what="mail that flows")
            assert not load.answers
            await asyncio.to_thread(lose)
            await asyncio.sleep(1)
            promised = load.promised.keys()
            await asyncio.sleep(OUTAGE_SECONDS)
            load.stop()
            await load.wait_until_done(ANSWERED_SECONDS)  # every open session gets its reply while the brokers are away
            assert load.promised.keys() == promised, "accepted without brokers"
            await asyncio.to_thread(_wait_until_unready, mail_cluster, ("ingress", "router", "delivery"))
            back_at = time.monotonic()
            await asyncio.to_thread(bring_back)
            await wait_until(
                lambda: all(_is_open(member.mx) for member in mail_cluster.members_of("ingress")),
                deadline_seconds=60,
                what="the door's opening again",
            )
            opened = time.monotonic() - back_at
            late = MailLoad(mail_cluster, f"late{name}", 60, 40)
            await late.wait_until_done(60)
            for each in (load, late):
                await settle(each, sink, mail_cluster)
                assert not missing(each, sink, mail_cluster)
            assert await wait_for_empty_queue(mail_cluster) == []
            await asyncio.to_thread(_wait_until_all_are_ready, mail_cluster)
            await mail_cluster.in_sync()
        finally:
            for each in (load, late):
                if each is not None:
                    each.stop()
                    await each.close()
        longest = _check_answers(load)
        turned_away = load.turned_away.keys()
        print(
            f"longest wait for an answer {longest}, {len(load.unknown)} in doubt, {len(turned_away)} turned away, open"
            f" again {opened:.1f} s after their start"
        )
        assert turned_away
        arrived = sink.ids() | {id_ for user in ("alice", "bob") for id_ in count_in_mailbox(mail_cluster, user)}
        assert not turned_away & arrived, "turned away, and delivered"
        mine = {id_ for id_ in arrived if id_.startswith((load.prefix, late.prefix))}
        assert mine <= load.promised.keys() | load.unknown.keys() | late.promised.keys()


def _check_answers(load: MailLoad) -> dict[str, str]:
    """Check that every client got the expected reply in time; prints the longest time by stage."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for answer in load.answers:
        assert answer.reply.startswith(PROMISED[answer.stage]), answer
        seconds[answer.stage].append(answer.seconds)
    assert seconds.keys() == PROMISED.keys()
    assert max(map(max, seconds.values())) < ANSWERED_SECONDS
    # Each dot has its reply, and no connection was left without one.
    assert len(seconds["dot"]) == len(load.unknown)
    assert sum(source.timeouts for source in load.sources) == 0
    return {kind: f"{max(found):.1f} s of {len(found)}" for kind, found in seconds.items()}


def _is_open(port: int) -> bool:
    import smtplib

    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=5) as client:
            client.ehlo("probe.test")
            return client.mail("bob@example.test")[0] == 250
    except (OSError, smtplib.SMTPException):
        return False
