"""Logs on a real Kafka for tests, each with its own prefix and topics like those of `eilpost topics create`.

`NetworkCut` simulates a network failure at the client's connections, so it works with any broker; tests/support/faults
stops real brokers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import DescribeConfigsRequest

from mail.log import Log
from mail.log.kafka import KafkaLog
from mail.log.kafka.access import make_access
from mail.log.kafka.create_topics import create_missing, open_admin
from mail.log.kafka.topics import topic_config
from mail.log.topics import TOPICS, Topic, Topics
from mail.queue_id import new_queue_id
from mail.settings import LogSettings


def settings_on(bootstrap: str, settings: LogSettings | None = None, **changes: Any) -> LogSettings:
    """`settings` for the broker at `bootstrap`, with a unique prefix and short time-outs."""
    base = {
        "url": f"kafka://{bootstrap}",
        "prefix": f"t{new_queue_id().lower()[-12:]}.",
        "durability": "dev",
        "replication": 1,
        "append_timeout": timedelta(seconds=3),
        "session_timeout": timedelta(seconds=6),
    }
    return (settings or LogSettings()).model_copy(update={**base, **changes})


async def make_topics(settings: LogSettings, topics: Topics = TOPICS) -> None:
    access = make_access(settings, topics=topics)
    admin = await open_admin(access)
    try:
        await create_missing(admin, access, settings)
    finally:
        await admin.close()


async def configure(settings: LogSettings, topic: Topic, changes: Mapping[str, str]) -> None:
    """Change a topic's configuration; returns when every broker has it."""
    name, wanted = settings.prefix + topic.name, {**topic_config(topic, settings), **changes}
    resource = ConfigResource(ConfigResourceType.TOPIC, name, wanted)
    admin = await open_admin(make_access(settings))
    try:
        await admin.alter_configs([resource])
        question = DescribeConfigsRequest([(ConfigResourceType.TOPIC, name, list(wanted))], False)
        for broker in (await admin.describe_cluster())["brokers"]:
            async with asyncio.timeout(20):
                while await _configured(admin, question, broker["node_id"]) != wanted:
                    await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def _configured(admin: AIOKafkaAdminClient, question: DescribeConfigsRequest, broker: int) -> dict[str, str]:
    ((*_, entries),) = (await admin._send_request(question, broker)).resources
    return {entry[0]: entry[1] for entry in entries}


@asynccontextmanager
async def running(settings: LogSettings, topics: Topics = TOPICS) -> AsyncIterator[KafkaLog]:
    """A started log; missing topics are created."""
    await make_topics(settings, topics)
    log = KafkaLog(settings, topics=topics)
    await log.start()
    try:
        yield log
    finally:
        await log.close()


async def append_frame(settings: LogSettings, topic: Topic, shard: int, frame: bytes, key: str = "planted") -> int:
    """Append raw bytes as the next record of a shard; returns the offset."""
    producer = AIOKafkaProducer(acks="all", **make_access(settings).client_options())
    await producer.start()
    try:
        raw_key = key.encode("utf-8", "surrogateescape")
        metadata = await producer.send_and_wait(settings.prefix + topic.name, frame, raw_key, partition=shard)
        return int(metadata.offset)
    finally:
        await producer.stop()


class NetworkCut:
    """Cuts all connections between aiokafka and its brokers in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_active = False
        send = AIOKafkaConnection.send

        def maybe(connection: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
            if self.is_active:
                raise KafkaConnectionError("the network was cut")
            return send(connection, request, expect_response)

        monkeypatch.setattr(AIOKafkaConnection, "send", maybe)


class KafkaHarness:
    """Harness of the log contract whose store is one prefix. `maker`: credentials for creating topics, where the user
    in `changes` may not.
    """

    shards_are_shared = True

    def __init__(
        self,
        bootstrap: str,
        monkeypatch: pytest.MonkeyPatch,
        *,
        maker: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        self._base = settings_on(bootstrap, **changes)
        self._maker = dict(maker or {})
        self._log_in = {key: value for key, value in changes.items() if key.startswith("sasl_")}
        self._network_cut = NetworkCut(monkeypatch)
        self._has_topics = False
        self._settings = self._base

    async def make(self, settings: LogSettings) -> Log:
        self._settings = settings_on(
            "", settings, url=self._base.url, prefix=self._base.prefix, shards=settings.shards or 1,
            delivery_shards=settings.delivery_shards or 1, replication=self._base.replication,
            durability=self._base.durability, **self._log_in,
        )  # fmt: skip
        if not self._has_topics:
            await make_topics(self._settings.model_copy(update=self._maker))
            self._has_topics = True
        log = KafkaLog(self._settings)
        await log.start()
        return log

    async def append_frame(self, log: Log, topic: Topic, shard: int, frame: bytes, key: str) -> None:
        await append_frame(self._settings, topic, shard, frame, key)

    def fail_writes(self, log: Log) -> None:
        self._network_cut.is_active = True

    def repair(self, log: Log) -> None:
        self._network_cut.is_active = False
