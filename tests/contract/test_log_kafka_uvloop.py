"""Connections that were just reset, as uvloop reports them to aiokafka, and recovery of members whose client failed.

The reset is simulated at the StreamWriter, where uvloop raises; everything else is a real Kafka.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.client import ConnectionGroup
from aiokafka.conn import AIOKafkaConnection

from mail.log.kafka import KafkaLog
from mail.log.kafka.access import make_access
from mail.log.kafka.cluster_info import ClusterInfo
from mail.log.kafka.partition_reader import PartitionReader
from mail.log.topics import ACCEPTED
from tests.contract.log_contract.harness import read_inputs, records_of, router_shard_of
from tests.contract.test_log_kafka_ownership import ShardOwner
from tests.support.builders.records import accepted
from tests.support.kafka_timeouts import set_timeouts
from tests.support.servers.kafka_log import running, settings_on
from tests.support.servers.ports import wait_until

pytestmark = pytest.mark.kafka


class _ResetWriter:
    """A StreamWriter of a reset connection, before its reader is notified."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, data: bytes) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def _reset(client: Any, kind: ConnectionGroup) -> list[AIOKafkaConnection]:
    """Simulate a reset of the client's connections of this kind; returns them."""
    hit = [connection for (_, group), connection in client._conns.items() if group == kind]
    assert hit
    for connection in hit:
        connection._writer = _ResetWriter(connection._writer)
    return hit


def _consumer(log: KafkaLog) -> Any:
    assert log._router is not None
    assert log._router._consumer is not None
    return log._router._consumer


async def test_a_reset_does_not_end_the_metadata_task(kafka_bootstrap: str) -> None:
    """Otherwise a group leader would wait for metadata without end, and its group for the leader."""
    async with running(settings_on(kafka_bootstrap, shards=2, delivery_shards=1)) as log:
        owner = ShardOwner(log.own_router_shards)
        await owner.owns(2)
        consumer = _consumer(log)
        coordinator, generation = consumer._coordinator, consumer._coordinator.generation
        _reset(consumer._client, ConnectionGroup.DEFAULT)
        consumer._client.force_metadata_update()
        coordinator.request_rejoin()
        await wait_until(lambda: coordinator.generation > generation, deadline_seconds=4, what="the next generation")
        async with asyncio.timeout(4):
            assert await consumer._client.force_metadata_update()
        await owner.owns(2)
        assert _consumer(log) is consumer
        assert sorted(owner.processed) == [0, 1]
        await owner.leave()


async def test_a_reset_does_not_end_the_heartbeat(kafka_bootstrap: str) -> None:
    async with running(settings_on(kafka_bootstrap, shards=2, delivery_shards=1)) as log:
        owner = ShardOwner(log.own_router_shards)
        await owner.owns(2)
        consumer = _consumer(log)
        client, generation = consumer._client, consumer._coordinator.generation
        (closed,) = _reset(client, ConnectionGroup.COORDINATION)
        await wait_until(
            lambda: any(
                group == ConnectionGroup.COORDINATION and connection is not closed
                for (_, group), connection in client._conns.items()
            ),
            deadline_seconds=4,
            what="another connection",
        )
        await asyncio.sleep(2.5)
        assert _consumer(log) is consumer
        assert consumer._coordinator.generation == generation
        assert log._router is not None
        assert log._router.is_member
        assert sorted(owner.processed) == [0, 1]
        await owner.leave()


async def test_an_append_on_a_reset_connection_is_retried_on_a_new_one(kafka_bootstrap: str) -> None:
    """Otherwise the producer would never confirm anything again."""
    async with running(settings_on(kafka_bootstrap, shards=1, delivery_shards=1)) as log:
        await log.append(accepted(0))
        assert log._producer._producer is not None
        _reset(log._producer._producer.client, ConnectionGroup.DEFAULT)
        await log.append(accepted(1))
        async with router_shard_of(log) as router:
            assert records_of(await read_inputs(router, 2)) == [accepted(0), accepted(1)]


async def test_a_leader_whose_metadata_task_ended_rejoins_within_a_session(kafka_bootstrap: str) -> None:
    """For any error. It leaves the group first, so that no member waits for the end of its session."""
    settings = settings_on(kafka_bootstrap, shards=2, delivery_shards=1)
    async with running(settings) as log:
        owner = ShardOwner(log.own_router_shards)
        await owner.owns(2)
        consumer = _consumer(log)

        async def broken(*_: object) -> bool:
            raise LookupError("an unexpected error")

        consumer._client._metadata_update = broken
        consumer._client.force_metadata_update()
        consumer._coordinator.request_rejoin()
        await wait_until(lambda: len(owner.processed) == 4, deadline_seconds=4.5, what="owning both again")
        assert _consumer(log) is not consumer
        assert consumer._coordinator._coordination_task.done()
        assert not any(connection.connected() for connection in consumer._client._conns.values())
        group = f"{settings.prefix}router"
        async with ClusterInfo(make_access(settings)) as cluster_info:
            assert (await cluster_info.describe_groups([group]))[group][1] == 1
        await owner.leave()


async def test_a_leader_that_hangs_in_a_rebalance_is_replaced(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka's `getmany` does not return during a rebalance, so a caller that waits in it could not check."""
    set_timeouts(monkeypatch, rebalance_seconds=1.0)
    async with running(settings_on(kafka_bootstrap, shards=2, delivery_shards=1)) as log:
        owner = ShardOwner(log.own_router_shards)
        await owner.owns(2)
        consumer = _consumer(log)
        consumer._client._maybe_wait_metadata = asyncio.Event().wait
        consumer._coordinator.request_rejoin()
        await wait_until(lambda: len(owner.processed) == 4, deadline_seconds=25, what="owning both again")
        await owner.owns(2)
        assert _consumer(log) is not consumer
        await owner.leave()


async def test_a_client_that_does_not_stop_in_time_is_aborted(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_timeouts(monkeypatch, close_seconds=0.1)
    async with running(settings_on(kafka_bootstrap, shards=1, delivery_shards=1)) as log:
        at = log._access.partition(ACCEPTED, 0)
        reader = PartitionReader(log._access, [at])
        await reader.open({at: None})
        consumer: Any = reader._consumer
        connections = list(consumer._client._conns.values())
        assert any(connection.connected() for connection in connections)
        stop, consumer.stop = consumer.stop, asyncio.Event().wait
        await reader.close()
        assert not any(connection.connected() for connection in connections)
        await asyncio.gather(asyncio.ensure_future(stop()), return_exceptions=True)  # its other tasks end too
