"""Probes of failed partitions, without a broker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import NotLeaderForPartitionError
from structlog.testing import capture_logs

from mail.log import Down, LogUnavailable, Usable
from mail.log.kafka.access import make_access
from mail.log.kafka.producer import Producer
from mail.settings import LogSettings
from tests.support.kafka_timeouts import set_timeouts
from tests.support.servers.ports import wait_until

SETTINGS = LogSettings(url="kafka://127.0.0.1:1")

FAILED = 12
SLOW_SECONDS = 0.4  # of each probe, until its time-out


class Brokers:
    """A producer whose sends take `SLOW_SECONDS`, and fail while `are_away`."""

    def __init__(self) -> None:
        self.are_away = True
        self.under_way = self.most = 0

    async def send(self, *_: Any) -> asyncio.Future[None]:
        async def answer() -> None:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await asyncio.sleep(SLOW_SECONDS)
            self.under_way -= 1
            if self.are_away:
                raise NotLeaderForPartitionError

        return asyncio.ensure_future(answer())


async def test_failed_partitions_are_probed_concurrently(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, retry_seconds=0.05)
    brokers = Brokers()
    log = Producer(make_access(SETTINGS), SETTINGS)
    log._producer = brokers  # type: ignore[assignment]
    sends = [log._send(TopicPartition("mail.accepted", n), b"", b"") for n in range(FAILED)]
    assert all(isinstance(result, LogUnavailable) for result in await asyncio.gather(*sends, return_exceptions=True))
    assert isinstance(log.condition(), Down)
    brokers.most, brokers.are_away = 0, False
    await wait_until(lambda: isinstance(log.condition(), Usable), what="the log to accept writes again")
    assert brokers.most == FAILED


@pytest.mark.parametrize("effect", ["new mail is refused", "queued mail and reports of attempts wait"])
async def test_a_deleted_partition_does_not_keep_the_log_down(effect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_timeouts(monkeypatch, retry_seconds=0.05)
    log = Producer(make_access(SETTINGS), SETTINGS, effect=effect)
    log._producer = ShrunkCluster()  # type: ignore[assignment]
    with capture_logs() as lines:
        with pytest.raises(LogUnavailable, match="the partition does not exist"):
            await log._send(TopicPartition("mail.accepted", 2), b"", b"")
        assert isinstance(log.condition(), Down)
        await log.refresh_metadata()
        await wait_until(lambda: isinstance(log.condition(), Usable), what="the log to accept writes again")
    assert [line["event"] for line in lines] == [f"log append failed, {effect}", "log appends work again"]


class ShrunkCluster:
    """A producer that knows partitions 0 and 1."""

    client: Any

    def __init__(self) -> None:
        async def update() -> bool:
            return True

        self.client = SimpleNamespace(
            force_metadata_update=update, cluster=SimpleNamespace(partitions_for_topic=lambda _: {0, 1})
        )

    async def send(self, *_: Any) -> None:
        raise AssertionError("unrecognized partition")
