"""Journey 25: `eilpost topics` creates a log on Kafka, and `eilpost doctor` reports each problem with its remedy."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from deploy.kafka.cluster import Cluster
from mail.log.kafka.access import make_access
from mail.log.topics import ROUTER
from mail.record import QueueTombstone
from mail.settings import LogSettings
from tests.contract.log_contract.harness import (
    NOW,
    delivery_shard_of,
    events,
    eventually_equals,
    read_dispatches,
    read_inputs,
    records_of,
    replay_all,
    router_shard_of,
)
from tests.support.builders import records as samples
from tests.support.clients.commands import Run, commands, refused, secured_log
from tests.support.servers import kafka
from tests.support.servers.eilpost_process import EilpostProcess
from tests.support.servers.kafka_log import running, settings_on
from tests.support.servers.ports import block_until, free_port, wait_until


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    with commands(tmp_path, monkeypatch, capsys) as call:

        def advised(*arguments: str, **sections: Any) -> tuple[int, str, str]:
            answer = call(*arguments, **sections)
            if arguments[0] == "doctor":
                assert not (mute := without_advice(answer[1])), mute
            return answer

        yield advised


def without_advice(page: str) -> list[Any]:
    """Problems without a remedy in doctor's output, as text or as JSON."""
    if page.startswith("{"):
        return [each for each in json.loads(page)["findings"] if each["level"] != "OK" and not any(each["advice"])]
    lines = page.splitlines()
    ill = [number for number, line in enumerate(lines) if line.startswith(("WARN  ", "FAIL  "))]
    return [lines[number] for number in ill if not lines[number + 1].startswith("      -> ")]


# --- topics


@pytest.mark.kafka
def test_topics_are_created_extended_and_checked(run: Run, kafka_bootstrap: str) -> None:
    log = {"url": f"kafka://{kafka_bootstrap}", "prefix": f"j25-{time.time_ns()}.", "shards": 2, "delivery_shards": 3}
    line = refused(run("queue", log=log))
    assert "run `eilpost topics create`" in line
    assert "log.prefix" in line

    status, out, _ = run("topics", "check", "--json", log=log)
    assert (status, {each["partitions"] for each in json.loads(out)["topics"]}) == (1, {None})

    status, out, err = run("topics", "create", log=log)
    assert (status, err, len(out.splitlines())) == (0, "", 5)
    assert f"{log['prefix']}dispatched: created, partitions: 3, replicas: 1" in out
    assert run("topics", "create", log=log) == (0, "nothing to do\n", "")
    assert run("topics", "create", log=log | {"delivery_shards": 2}) == (0, "nothing to do\n", "")
    grown = log | {"delivery_shards": 5}
    assert "run `eilpost topics create`" in refused(run("queue", log=grown))
    assert run("topics", "create", log=grown) == (0, f"{log['prefix']}dispatched: 3 -> 5 partitions\n", "")

    status, out, _ = run("topics", "check", log=log)
    # one replica, with durability "dev"
    assert (status, out.count("WARN"), out.splitlines()[-1]) == (0, 6, "5 checks: 5 WARN")
    status, out, _ = run("topics", "check", log=log | {"durability": "safe"})
    assert (status, out.splitlines()[-1]) == (1, "5 checks: 5 FAIL")

    line = refused(run("router", log=log | {"durability": "safe"}))
    assert "has 1 replica" in line
    assert 'log.durability = "dev"' in line
    line = refused(run("router", log=log | {"shards": 7}))
    assert "log.shards = 7, but topic" in line
    assert "set log.shards = 2" in line
    assert "log.shards = 7" in refused(run("topics", "create", log=log | {"shards": 7}))
    line = refused(run("topics", "create", log=log | {"prefix": f"{log['prefix']}x", "replication": 3}))
    assert "log.replication = 3" in line


async def _with_admin(bootstrap: str, do: Callable[[AIOKafkaAdminClient], Any]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await do(admin)
    finally:
        await admin.close()


async def _delete(admin: AIOKafkaAdminClient, name: str) -> None:
    """Delete a topic; return when the broker no longer lists it, which is a moment after its reply."""
    await admin.delete_topics([name])

    async def is_gone() -> bool:
        return name not in await admin.list_topics()

    await wait_until(is_gone, deadline_seconds=30, what=f"the end of {name}")


@pytest.mark.kafka
def test_lost_topic_is_recreated_with_the_partition_count_of_the_others(run: Run, kafka_bootstrap: str) -> None:
    log = {"url": f"kafka://{kafka_bootstrap}", "prefix": f"j25-{time.time_ns()}."}
    run("topics", "create", log=log | {"shards": 2, "delivery_shards": 1})
    name = f"{log['prefix']}events"
    asyncio.run(_with_admin(kafka_bootstrap, lambda admin: _delete(admin, name)))
    assert name in refused(run("queue", log=log))
    assert run("topics", "create", log=log) == (0, f"{name}: created, partitions: 2, replicas: 1\n", "")


@pytest.mark.kafka
def test_different_partition_counts_are_reported(run: Run, kafka_bootstrap: str) -> None:
    prefix = f"j25-{time.time_ns()}."
    counts = {"accepted": 2, "queue": 3, "dispatched": 1, "attempted": 2, "events": 2}
    topics = [NewTopic(prefix + name, count, 1) for name, count in counts.items()]
    asyncio.run(_with_admin(kafka_bootstrap, lambda admin: admin.create_topics(topics)))
    for command in (("router",), ("topics", "create")):
        line = refused(run(*command, log={"url": f"kafka://{kafka_bootstrap}", "prefix": prefix}))
        assert f"topic {prefix}accepted has 2 partitions and {prefix}queue has 3" in line
        assert "use another log.prefix" in line


@pytest.mark.kafka
def test_topics_check_reports_a_retention_limit(run: Run, kafka_bootstrap: str) -> None:
    log = {"url": f"kafka://{kafka_bootstrap}", "prefix": f"j25-{time.time_ns()}.", "shards": 1, "delivery_shards": 1}
    run("topics", "create", log=log)
    resource = ConfigResource(
        ConfigResourceType.TOPIC, f"{log['prefix']}accepted", {"cleanup.policy": "delete", "retention.ms": "1000"}
    )
    asyncio.run(_with_admin(kafka_bootstrap, lambda admin: admin.alter_configs([resource])))
    status, out, _ = run("topics", "check", log=log | {"durability": "safe"})
    assert (status, "retention.ms = 1000 removes undelivered mail: set it to -1" in out) == (1, True)


@pytest.mark.kafka
def test_dedicated_tenant_without_topics_is_reported(run: Run, kafka_bootstrap: str, tmp_path: Path) -> None:
    log = {"url": f"kafka://{kafka_bootstrap}", "prefix": f"j25-{time.time_ns()}.", "shards": 1, "delivery_shards": 1}
    with (tmp_path / "directory.toml").open("a") as directory:
        directory.write('\n[tenants.acme]\nhosting = "dedicated"\n')
    assert run("topics", "create", log=log)[0] == 0
    status, out, _ = run("doctor", log=log)
    assert status == 1
    assert out.count("FAIL  ") == 1
    assert "-> run `eilpost topics create --tenant acme`" in out
    assert run("topics", "create", "--tenant", "acme", log=log)[0] == 0
    status, out, _ = run("doctor", log=log)
    assert (status, "start `eilpost router --tenant acme`" in out) == (0, True)


# --- an embedded log


@pytest.mark.parametrize("action", ["create", "check"])
def test_embedded_log_has_no_topics(run: Run, action: str) -> None:
    status, out, err = run("topics", action, log={"url": "embedded:var/log.db"})
    assert (status, out, err) == (0, "embedded:var/log.db: this log has no topics\n", "")


def test_doctor_works_on_an_embedded_log(run: Run) -> None:
    status, out, err = run("doctor", log={"url": "embedded:var/log.db"})
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].endswith("checks: all OK")


# --- doctor


@pytest.mark.kafka
def test_doctor_without_brokers_reports_the_other_checks(run: Run) -> None:
    status, out, err = run("doctor", log={"url": "kafka://127.0.0.1:1"})
    assert (status, err) == (1, "")
    assert "FAIL  broker 127.0.0.1:1" in out
    assert "-> start a broker there, or correct log.url" in out
    assert "OK    directory" in out  # the other checks still run


@pytest.mark.parametrize("how", [(), ("--json",)], ids=["text", "json"])
def test_doctor_reports_an_unknown_certificate_authority(run: Run, how: tuple[str, ...]) -> None:
    status, out, err = run("doctor", *how, log={"url": "kafka://127.0.0.1:1", "tls": True, "tls_ca": "nix.pem"})
    assert (status, err) == (1, "")
    assert "nix.pem: no such file or directory" in out.lower()
    assert "name a file of PEM certificates" in out


@pytest.mark.kafka
def test_doctor_reports_unread_mail_and_an_active_group(run: Run, kafka_bootstrap: str, tmp_path: Path) -> None:
    settings = settings_on(kafka_bootstrap, shards=1, delivery_shards=1)
    log = {"url": settings.url, "prefix": settings.prefix}

    async def one_message() -> None:
        async with running(settings) as kafka_log:
            await kafka_log.append(samples.accepted())

    asyncio.run(one_message())
    group = f"group {make_access(settings).group(ROUTER)}"

    def look() -> dict[str, Any]:
        status, out, err = run("doctor", "--json", log=log)
        assert (status in (0, 1), err) == (True, "")
        return {finding["what"]: finding for finding in json.loads(out)["findings"]}

    for _ in range(2):  # doctor's own probe does not count as unread mail
        finding = look()[group]
        assert finding["level"] == "FAIL"
        assert finding["text"] == "no process of this role is running, lag 1 record"
        assert finding["advice"] == ["start `eilpost router` with this log.url"]

    sections = {
        "log": log | {"durability": "dev", "replication": 1, "session_timeout": "6s"},
        "delivery": {"relay": f"smtp://127.0.0.1:{free_port()}"},
    }
    with EilpostProcess(tmp_path / "box", sections):
        block_until(lambda: look()[group]["level"] == "OK", deadline_seconds=30, what=lambda: look()[group])
        finding = look()[group]
    assert finding["text"].startswith("1 process, 1 shards, ")


@pytest.mark.kafka_cluster
def test_doctor_reports_a_dead_broker(run: Run) -> None:
    settings = {
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
    }
    with kafka.cluster(3, settings=settings) as cluster:
        log = {
            "url": f"kafka://{cluster.bootstrap}",
            "durability": "safe",
            "replication": 3,
            "shards": 3,
            "delivery_shards": 3,
        }
        assert run("topics", "create", log=log)[0] == 0
        status, out, _ = run("doctor", log=log)
        assert (status, "FAIL" in out) == (0, False), out
        assert out.count("clock of broker") == 3

        cluster.node(2).kill()
        _, out, _ = run("doctor", log=log)  # the other brokers still list it
        assert "WARN  cluster size" in out, out
        assert "2 brokers alive" in out
        block_until(lambda: len(cluster.alive(observer=1)) == 2, what="the detection of the dead broker")
        status, out, _ = run("doctor", log=log)
        assert (status, "FAIL" in out) == (0, False), out  # mail flows
        assert "WARN  cluster size" in out
        assert "has 2 of 3 replicas in sync" in out
        assert f"WARN  broker 127.0.0.1:{cluster.port(2)}" in out


@pytest.mark.kafka_cluster
def test_doctor_reports_unreachable_advertised_listeners(run: Run) -> None:
    port = free_port()
    elsewhere = {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}"}
    with kafka.cluster(1, settings=elsewhere) as cluster:
        line = refused(run("queue", log={"url": f"kafka://{cluster.bootstrap}"}))
        assert f"log.url: 127.0.0.1:{port} refuses the connection, but broker 1 advertises this address" in line
        assert "advertised.listeners" in line
        status, out, _ = run("doctor", log={"url": f"kafka://{cluster.bootstrap}"})
        assert (status, f"FAIL  broker 127.0.0.1:{port}" in out) == (1, True)


# --- a secured listener


@pytest.fixture(scope="module")
def secured_node() -> Iterator[Cluster]:
    with kafka.cluster(1, secure=True) as cluster:
        yield cluster


@pytest.mark.kafka_cluster
def test_doctor_works_on_a_secured_cluster(run: Run, secured_node: Cluster) -> None:
    log = secured_log(secured_node, prefix="secured.", shards=1, delivery_shards=1)
    assert run("topics", "create", log=log)[0] == 0
    status, out, err = run("doctor", "--json", log=log)
    levels = {finding["what"]: finding["level"] for finding in json.loads(out)["findings"]}
    assert (status, err) == (0, "")
    assert levels[f"certificate {secured_node.addresses('secure')}"] == "OK"
    assert levels["append"] == levels["clock of broker 1"] == "OK"
    assert secured_node.credentials is not None
    assert secured_node.credentials.password not in out


@pytest.mark.kafka_cluster
@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN"])
async def test_message_is_delivered_over_a_secured_listener(secured_node: Cluster, mechanism: str) -> None:
    """Uses TLS and SASL for both groups and the router's transactions."""
    section = secured_log(secured_node, prefix=f"way-{mechanism.lower()}.", shards=1, delivery_shards=1)
    settings = LogSettings.model_validate(
        section | {"sasl_mechanism": mechanism, "durability": "dev", "replication": 1, "session_timeout": "6s"}
    )
    async with running(settings) as log:
        await log.append(samples.accepted(1))
        async with router_shard_of(log) as router:
            taken = await read_inputs(router, 1)
            await router.commit([samples.queue_entry(1), samples.dispatched(1), samples.event(1)], taken)
            assert await replay_all(router) == [samples.queue_entry(1)]
            async with delivery_shard_of(log) as delivery_shard:
                (entry,) = await read_dispatches(delivery_shard, 1)
                await delivery_shard.finish(entry, samples.attempted(1))
            report = await read_inputs(router, 1)
            assert records_of(report) == [samples.attempted(1)]
            await router.commit([QueueTombstone(samples.delivery(1).id)], report)
            assert await replay_all(router) == []
        await eventually_equals(lambda: events(log, 1), [samples.event(1)])
    async with running(settings) as log:  # the offsets of both groups are committed
        async with router_shard_of(log) as router:
            assert not await router.read(10, NOW)
        assert (await log.backlog()).dispatched == 0
