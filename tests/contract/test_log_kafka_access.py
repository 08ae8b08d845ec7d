"""The log on a broker with an authorizer: the ACLs of the chart's KafkaUser are enough, and each is needed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from deploy.kafka.cluster import Cluster
from mail.log import DeliveryShard, Down, LogUnavailable, RouterShard
from mail.log.kafka import KafkaLog
from mail.log.kafka.access import make_access
from mail.log.kafka.lookout import Lookout
from mail.log.topics import ACCEPTED
from mail.queueid import new_queue_id
from mail.settings import LogSettings
from tests.contract.log_contract import Harness
from tests.contract.log_contract.asking import Asking
from tests.contract.log_contract.committing import Committing
from tests.contract.log_contract.harness import dispatches, take_all
from tests.contract.log_contract.owning import Owning
from tests.contract.log_contract.refusing import Refusing
from tests.contract.log_contract.taking import Taking
from tests.support import log_samples as samples
from tests.support.access_rights import PASSWORD, Right, grant, guarded_broker, log_in, rights_of_chart
from tests.support.kafka_log import KafkaHarness, make_topics, settings_on

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.helm]

USER, NOBODY = "eilpost", "nobody"
REFUSAL = re.compile(
    r"not authorized: give this user the ACL (\w+) on (topic|group|transactional id) (mail\..+) \(docs/"
)


def user_without(right: Right) -> str:
    return f"{USER}-without-{right.resource}-{right.operation}"


@pytest.fixture(scope="module")
def rights() -> Sequence[Right]:
    return rights_of_chart()


@pytest.fixture(scope="module")
def broker(rights: Sequence[Right]) -> Iterator[Cluster]:
    async def grant_all(running: Cluster) -> None:
        await grant(running, USER, rights)
        for missing in rights:
            await grant(running, user_without(missing), [each for each in rights if each != missing])

    with guarded_broker([USER, NOBODY, *map(user_without, rights)]) as running:
        asyncio.run(grant_all(running))
        yield running


def as_user(broker: Cluster, user: str) -> dict[str, Any]:
    """Settings of a user, with a prefix that nobody else has, below that of the chart."""
    return {
        **log_in(broker, user),
        "sasl_password": SecretStr(PASSWORD),
        "prefix": f"mail.{new_queue_id().lower()[-12:]}.",
    }


def as_super_user(broker: Cluster) -> dict[str, Any]:
    return {
        "url": f"kafka://{broker.bootstrap}",
        "sasl_mechanism": "",
        "sasl_username": "",
        "sasl_password": SecretStr(""),
    }


class TestLogWithTheRightsOfTheChart(Taking, Committing, Owning, Asking, Refusing):
    """The log contract but for `Moving`, whose requests are the same and which takes long."""

    @pytest.fixture
    def harness(self, broker: Cluster, monkeypatch: pytest.MonkeyPatch) -> Harness:
        return KafkaHarness("", monkeypatch, maker=as_super_user(broker), **as_user(broker, USER))


class Journey:
    """One message on its way through a log, and every line about an ACL that is missing."""

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._log = KafkaLog(settings)
        self._stop = asyncio.Event()
        self._ended: set[str] = set()
        self.refusals: set[str] = set()

    async def run(self) -> None:
        log = self._log
        await log.start()
        try:
            if isinstance(condition := log.condition(), Down):
                self.refusals.add(condition.reason)
                return
            await self._note(log.append(samples.accepted(1)))
            owning = [
                asyncio.create_task(log.route(lambda shard: self._note(self._route(shard)), self._stop)),
                asyncio.create_task(log.deliver(lambda shard: self._note(self._deliver(shard)), self._stop)),
            ]
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    while len(self._ended) < 2 and not self.refusals:
                        if isinstance(condition := log.worker_condition(), Down):
                            self.refusals.add(condition.reason)
                        await asyncio.sleep(0.05)
            self._stop.set()
            await asyncio.gather(*owning)
        finally:
            await log.close()

    async def _note(self, work: Awaitable[None]) -> None:
        try:
            await work
        except LogUnavailable as error:
            self.refusals.add(str(error))

    async def _route(self, shard: RouterShard) -> None:
        inputs = await take_all(shard, 1)
        await shard.commit([samples.pending(1), samples.dispatched(1), samples.event(1)], inputs)
        accepted = make_access(self._settings).partition(ACCEPTED, 0)
        async with Lookout(make_access(self._settings)) as lookout:
            while not (await lookout.begins([accepted]))[accepted]:
                await self._log.purge()
        self._ended.add("route")
        await self._stop.wait()

    async def _deliver(self, shard: DeliveryShard) -> None:
        (entry,) = await dispatches(shard, 1)
        await shard.finish(entry, samples.attempted(1))
        self._ended.add("deliver")
        await self._stop.wait()

    @property
    def has_ended(self) -> bool:
        return self._ended == {"route", "deliver"}


async def journey(broker: Cluster, user: str) -> Journey:
    settings = settings_on("", shards=1, delivery_shards=1, **as_user(broker, user))
    await make_topics(settings.model_copy(update=as_super_user(broker)))
    made = Journey(settings)
    with capture_logs() as lines:
        await made.run()
    assert not [line for line in lines if line.get("exc_info")]
    return made


async def test_the_rights_of_the_chart_are_enough(broker: Cluster) -> None:
    made = await journey(broker, USER)
    assert made.refusals == set()
    assert made.has_ended


async def test_a_user_without_rights_is_told_so(broker: Cluster) -> None:
    (line,) = (await journey(broker, NOBODY)).refusals
    assert named(line) == ("topic", "Describe"), line


async def test_each_right_of_the_chart_is_needed_and_named_when_it_is_missing(
    broker: Cluster, rights: Sequence[Right]
) -> None:
    made = await asyncio.gather(*(journey(broker, user_without(each)) for each in rights))
    told = {missing: set(map(named, each.refusals)) for missing, each in zip(rights, made, strict=True)}
    assert told == {missing: {(missing.resource, missing.operation)} for missing in rights}


def named(line: str) -> tuple[str, str]:
    """The kind of resource and the operation that a line says are missing."""
    found = REFUSAL.search(line)
    assert found, line
    assert line.count("not authorized") == 1
    assert "\n" not in line
    return {"transactional id": "transactionalId"}.get(found[2], found[2]), found[1]
