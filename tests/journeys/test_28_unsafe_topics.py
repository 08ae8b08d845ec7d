"""Journey 28: no role starts on topics that could lose mail, unless `log.durability = "dev"`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mail.log.topics import ACCEPTED, ATTEMPTED, DISPATCHED, QUEUE, Topic
from mail.settings import LogSettings
from tests.support.clients.commands import Run, commands, refused
from tests.support.servers import kafka
from tests.support.servers.eilpost_process import EILPOST, EilpostProcess
from tests.support.servers.kafka_log import configure, make_topics, settings_on

pytestmark = pytest.mark.kafka_cluster

ROLES = ("ingress", "router", "delivery")  # a mailstore does not read the log
UNSAFE = (
    (ACCEPTED, "retention.ms", "604800000", "removes undelivered mail: set it to -1"),
    (DISPATCHED, "retention.bytes", "1000000000", "removes undelivered mail: set it to -1"),
    (QUEUE, "cleanup.policy", "delete", "removes queue entries: set it to compact"),
    (ATTEMPTED, "unclean.leader.election.enable", "true", "can lose confirmed mail: set it to false"),
    (ACCEPTED, "min.insync.replicas", "1", "set it to 2, so that two brokers have every confirmed record"),
)


@pytest.fixture(scope="module")
def safe() -> Iterator[LogSettings]:
    """Topics as created by `eilpost topics create` on three brokers."""
    with kafka.cluster(3) as cluster:
        settings = settings_on(cluster.bootstrap, durability="safe", replication=3, shards=1, delivery_shards=1)
        asyncio.run(make_topics(settings))
        yield settings


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    with commands(tmp_path, monkeypatch, capsys) as call:
        yield call


def section(settings: LogSettings, durability: str) -> dict[str, Any]:
    return {"url": settings.url, "prefix": settings.prefix, "durability": durability, "session_timeout": "6s"}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("topic", "key", "value", "says"), UNSAFE, ids=[key for _, key, *_ in UNSAFE])
def test_no_role_starts_on_topics_that_could_lose_mail(
    run: Run, safe: LogSettings, role: str, topic: Topic, key: str, value: str, says: str
) -> None:
    asyncio.run(configure(safe, topic, {key: value}))
    try:
        line = refused(run(role, log=section(safe, "safe")))
    finally:
        asyncio.run(configure(safe, topic, {}))
    assert f"topic {safe.prefix}{topic.name}: {key} = {value}" in line
    assert says in line
    assert 'log.durability = "dev"' in line


@pytest.mark.parametrize("role", ROLES)
def test_unsafe_topics_are_allowed_in_dev_and_safe_ones_always(
    run: Run, safe: LogSettings, role: str, tmp_path: Path
) -> None:
    unsafe: dict[Topic, dict[str, str]] = {}
    for topic, key, value, _ in UNSAFE:
        unsafe.setdefault(topic, {})[key] = value

    def starts(durability: str) -> None:
        process = EilpostProcess(
            tmp_path / durability, {"log": section(safe, durability)}, command=(str(EILPOST), role)
        )
        try:
            process.start()
            assert process.stop() == 0
        finally:
            process.kill()

    starts("safe")
    try:
        for topic, changes in unsafe.items():
            asyncio.run(configure(safe, topic, changes))
        assert "(and 4 more: see `eilpost doctor`)" in refused(run(role, log=section(safe, "safe")))
        starts("dev")
    finally:
        for topic in unsafe:
            asyncio.run(configure(safe, topic, {}))
