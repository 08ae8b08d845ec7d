"""Log on a broker with an authorizer: the ACLs of the chart's KafkaUser are sufficient, and each is necessary."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from deploy.kafka.cluster import Cluster
from eilpost.doctor import brokers
from eilpost.doctor.finding import RIGHTS, Level
from mail.log import DeliveryShard, Down, LogNotAuthorized, LogUnavailable, RouterShard
from mail.log.kafka import KafkaLog
from mail.log.kafka.access import make_access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.topics import ACCEPTED, ROUTER
from mail.queue_id import new_queue_id
from mail.settings import LogSettings
from tests.contract.log_contract import Harness
from tests.contract.log_contract.commits import CommitTests
from tests.contract.log_contract.harness import read_dispatches, read_inputs
from tests.contract.log_contract.ownership import OwnershipTests
from tests.contract.log_contract.queries import QueryTests
from tests.contract.log_contract.reads import ReadTests
from tests.contract.log_contract.unreadable_frames import UnreadableFrameTests
from tests.journeys.test_21_dedicated_tenant import DIRECTORY, Hosting, send
from tests.journeys.test_33_no_kafka_at_start import becomes
from tests.support.access_rights import (
    PASSWORD,
    Right,
    grant,
    guarded_broker,
    log_in,
    revoke,
    rights_of_chart,
    rights_of_page,
)
from tests.support.builders import records as samples
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess
from tests.support.servers.kafka_log import KafkaHarness, make_topics, settings_on
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.kafka_cluster, pytest.mark.helm]

USER, MAKER, LATE, GROUPS_ONLY = "eilpost", "maker", "late", "groups-only"  # `late` has no rights at first
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
        to_make = [Right(resource, "mail.", "prefix", operation) for resource, operation in rights_of_page()[1]]
        await grant(running, MAKER, [*rights, *to_make])
        await grant(running, GROUPS_ONLY, [each for each in rights if each.resource == "group"])
        for missing in rights:
            await grant(running, user_without(missing), [each for each in rights if each != missing])

    with guarded_broker([USER, MAKER, LATE, GROUPS_ONLY, *map(user_without, rights)]) as running:
        asyncio.run(grant_all(running))
        yield running


def as_user(broker: Cluster, user: str) -> dict[str, Any]:
    """Settings of a user, with a unique prefix below that of the chart."""
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


class TestLogWithTheRightsOfTheChart(ReadTests, CommitTests, OwnershipTests, QueryTests, UnreadableFrameTests):
    """The log contract without rebalances and commits over a cut network, which take long and need no other right."""

    test_a_failed_commit_changes_nothing = None
    test_a_shard_revoked_during_a_failed_commit_raises_shard_lost = None

    @pytest.fixture
    def harness(self, broker: Cluster, monkeypatch: pytest.MonkeyPatch) -> Harness:
        return KafkaHarness("", monkeypatch, maker=as_super_user(broker), **as_user(broker, USER))


class Journey:
    """One message through a log, and all reported missing ACLs."""

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._log = KafkaLog(settings)
        self._stop = asyncio.Event()
        self._ended: set[str] = set()
        self.refusals: set[str] = set()
        self.unready: set[str] = set()  # the log's line in /readyz

    async def run(self) -> None:
        log = self._log
        await log.start()
        try:
            if isinstance(condition := log.condition(), Down):
                self.unready.add(condition.reason)
                return
            try:
                await log.append(samples.accepted(1))
            except LogUnavailable as error:
                self.refusals.add(str(error))
            ownerships = [
                asyncio.create_task(log.own_router_shards(lambda shard: self._note(self._route(shard)), self._stop)),
                asyncio.create_task(
                    log.own_delivery_shards(lambda shard: self._note(self._deliver(shard)), self._stop)
                ),
            ]
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    while len(self._ended) < 2 and not self.unready:
                        if isinstance(condition := log.worker_condition(), Down):
                            self.unready.add(condition.reason)
                        await asyncio.sleep(0.05)
            self._stop.set()
            await asyncio.gather(*ownerships)
        finally:
            await log.close()

    async def _note(self, work: Awaitable[None]) -> None:
        try:
            await work
        except LogUnavailable as error:
            self.refusals.add(str(error))
            await self._stop.wait()  # like a role, which keeps its shard and retries

    async def _route(self, shard: RouterShard) -> None:
        inputs = await read_inputs(shard, 1)
        await shard.commit([samples.queue_entry(1), samples.dispatched(1), samples.event(1)], inputs)
        accepted = make_access(self._settings).partition(ACCEPTED, 0)
        async with ClusterInfo(make_access(self._settings)) as cluster_info:
            while not (await cluster_info.beginning_offsets([accepted]))[accepted]:
                try:
                    await self._log.purge()
                except LogUnavailable as error:  # a failed purge stops nothing else
                    self.refusals.add(str(error))
                    break
        self._ended.add("route")
        await self._stop.wait()

    async def _deliver(self, shard: DeliveryShard) -> None:
        (entry,) = await read_dispatches(shard, 1)
        await shard.finish(entry, samples.attempted(1))
        self._ended.add("deliver")
        await self._stop.wait()

    @property
    def has_ended(self) -> bool:
        return self._ended == {"route", "deliver"}


async def journey(broker: Cluster, user: str) -> Journey:
    settings = settings_on("", shards=1, delivery_shards=1, **as_user(broker, user))
    await make_topics(settings.model_copy(update=as_super_user(broker)))
    result = Journey(settings)
    with capture_logs() as lines:
        await result.run()
    assert not [line for line in lines if line.get("exc_info")]
    return result


async def test_the_acls_of_the_chart_are_sufficient(broker: Cluster) -> None:
    result = await journey(broker, USER)
    assert (result.refusals, result.unready) == (set(), set())
    assert result.has_ended


async def test_each_acl_of_the_chart_is_necessary_and_named_when_missing(
    broker: Cluster, rights: Sequence[Right]
) -> None:
    result = await asyncio.gather(*(journey(broker, user_without(each)) for each in rights))
    for missing, each in zip(rights, result, strict=True):
        wanted = {(missing.resource, missing.operation)}
        assert set(map(named, each.refusals | each.unready)) == wanted
        assert set(map(named, each.unready)) == (set() if missing.operation == "Delete" else wanted)


async def test_offsets_of_topics_without_describe_are_refused_and_not_none(broker: Cluster) -> None:
    settings = settings_on("", shards=1, delivery_shards=1, **as_user(broker, GROUPS_ONLY))
    await make_topics(settings.model_copy(update=as_super_user(broker)))
    access = make_access(settings)
    async with ClusterInfo(access) as cluster_info:
        with pytest.raises(LogNotAuthorized) as refused:
            await cluster_info.committed_offsets(access.group(ROUTER), [access.partition(ACCEPTED, 0)])
    assert named(str(refused.value)) == ("topic", "Describe")


async def test_doctor_reports_each_missing_acl(broker: Cluster, rights: Sequence[Right]) -> None:
    settings = [settings_on("", shards=1, delivery_shards=1, **as_user(broker, user_without(each))) for each in rights]
    await make_topics(settings[0].model_copy(update=as_super_user(broker)))
    prefix = {"prefix": settings[0].prefix}
    pages = await asyncio.gather(*(brokers.examine(each.model_copy(update=prefix), "", {}) for each in settings))
    for missing, page in zip(rights, pages, strict=True):
        failed = [each for each in page if each.level is Level.FAIL]
        assert {named(each.text) for each in failed} == {(missing.resource, missing.operation)}
        assert all(each.advice == (RIGHTS,) for each in failed)


@pytest.mark.timeout(300)
async def test_every_role_waits_for_its_acls_and_then_works(
    broker: Cluster, rights: Sequence[Right], tmp_path: Path
) -> None:
    user = as_user(broker, LATE)
    settings = settings_on("", url=user["url"], prefix=user["prefix"])
    maker = commands_of(broker, MAKER, settings.prefix, tmp_path)
    assert "12 -> 13 partitions" not in maker.run("topics", "create")
    assert maker.run("topics", "create", "--tenant", "acme").count("created") == 5

    hosting = Hosting(tmp_path, settings, log_in(broker, LATE))
    mailstore = EilpostProcess(tmp_path / "mailstore", command=(str(EILPOST), "mailstore"))
    everyone = [hosting.ingress, *hosting.shared, *hosting.acme]
    try:
        for each in (*everyone, mailstore):
            each.start(wait=False)
        await becomes([mailstore], 200)
        await becomes(everyone, 503, f"not authorized: give this user the ACL Describe on topic {settings.prefix}")
        for command in (("queue",), ("trace", new_queue_id()), ("topics", "check"), ("topics", "create")):
            line = one_line(hosting.ingress, *command)
            assert named(line) == ("topic", "Describe"), line
        assert "FAIL  topics" in hosting.ingress.run("doctor", ok=False)

        await grant(broker, LATE, rights)
        await becomes(everyone, 200)
        queue_id = ""
        for address in ("alice@example.test", "wile@acme.test"):
            queue_id, _ = await asyncio.to_thread(send, hosting.ingress.mx, "someone@elsewhere.test", address)
            await wait_until(
                lambda to=address: hosting.stored_count(to) == 1, what=f"mail to {address}", deadline_seconds=40
            )
        assert "delivered" in hosting.ingress.run("trace", queue_id).lower()
        assert hosting.ingress.run("queue")
        hosting.ingress.run("topics", "check")
        assert "FAIL" not in hosting.ingress.run("doctor")

        groups = [each for each in rights if each.resource == "group"]
        await revoke(broker, LATE, groups)
        await becomes([*hosting.shared, *hosting.acme], 503, "not authorized: give this user the ACL Read on group ")
        await grant(broker, LATE, groups)
        await becomes(everyone, 200)
        assert all(each.is_running and each.starts == 1 for each in everyone)
    finally:
        for each in (*everyone, mailstore):
            each.kill()
    for each in everyone:
        assert "traceback" not in each.output().lower()


def test_creating_topics_names_the_missing_acls(broker: Cluster, tmp_path: Path) -> None:
    prefix = as_user(broker, MAKER)["prefix"]
    user, maker = commands_of(broker, USER, prefix, tmp_path), commands_of(broker, MAKER, prefix, tmp_path)
    assert named(one_line(user, "topics", "create")) == ("topic", "Create")
    maker.run("topics", "create")
    more = {"EILPOST_LOG__DELIVERY_SHARDS": "3"}
    assert named(one_line(user, "topics", "create", environment=more)) == ("topic", "Alter")
    assert "2 -> 3 partitions" in maker.run("topics", "create", environment=more)


def commands_of(broker: Cluster, user: str, prefix: str, folder: Path) -> EilpostProcess:
    """An eilpost process of this user, not started, for its commands."""
    log = {**log_in(broker, user), "prefix": prefix, "durability": "dev", "replication": 1, "shards": 2}
    return EilpostProcess(
        folder / user, {"log": {**log, "delivery_shards": 2}, "delivery": {"relay": "smtp://127.0.0.1:1"}},
        directory=DIRECTORY,
    )  # fmt: skip


def one_line(process: EilpostProcess, *command: str, environment: Mapping[str, str] | None = None) -> str:
    """The one line on stderr of a command that cannot run."""
    done = subprocess.run(
        [str(EILPOST), *command, "--config", str(process.config)],
        capture_output=True, text=True, timeout=60, env=os.environ | (environment or {}), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("eilpost: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.rstrip("\n")


def named(line: str) -> tuple[str, str]:
    """Resource type and operation of the missing ACL in the line."""
    found = REFUSAL.search(line)
    assert found, line
    assert line.count("not authorized") == 1
    assert "\n" not in line
    return {"transactional id": "transactionalId"}.get(found[2], found[2]), found[1]
