"""Journey 20: a real Kafka comes up with one node and with three, takes records and gives them back, and a node dies.

Nothing of eilpost is in it: it shows that the ground the cluster stands on is real, and that tests can break it.
"""

from __future__ import annotations

import asyncio
import ssl
import uuid

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.kafka.cluster import Cluster
from tests.conftest import MakesClusters
from tests.support.ports import wait_until


async def _make_topic(bootstrap: str, *, replicas: int) -> str:
    topic = f"journey-20-{uuid.uuid4().hex}"
    async with AIOKafkaAdminClient(bootstrap_servers=bootstrap) as admin:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=replicas)])
    return topic


async def _send(bootstrap: str, topic: str, values: list[bytes]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", request_timeout_ms=20_000) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)


async def _fetch(bootstrap: str, topic: str, count: int) -> list[bytes]:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        async with asyncio.timeout(20):
            return [(await consumer.getone()).value for _ in range(count)]
