"""A next hop that hangs, drops connections, disappears and returns: no message is lost and memory stays bounded."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults.accounting import AccountedMessage, Sink, Source, digest
from tests.support.servers.eilpost_process import EilpostProcess
from tests.support.servers.ports import free_port, wait_until

pytestmark = pytest.mark.fault

MB = 1_000_000


def relayed(count: int, size_bytes: int, prefix: str = "m") -> Iterator[AccountedMessage]:
    for number in range(count):
        yield AccountedMessage(f"{prefix}{number}", "bob@example.test", (f"r{number}@remote.test",), size_bytes)


def box_for(home: Path, sink_port: int, retry: str = "300ms") -> EilpostProcess:
    return EilpostProcess(
        home,
        {
            "node": {"log_level": "warning"},
            "delivery": {"relay": f"smtp://127.0.0.1:{sink_port}", "reconnect_backoff": "200ms"},
            "router": {"retry_delays": [retry]},
        },
    )


def check_all_arrived(source: Source, sink: Sink) -> None:
    assert not source.refused
    missing = source.promised.keys() - sink.ids()
    assert not missing, f"{len(missing)} of {len(source.promised)} lost"
    for id_, digests in sink.contents.items():
        assert digests == {digest((source.promised | source.unknown)[id_].content())}


async def test_hanging_and_restarting_next_hop_loses_nothing(tmp_path: Path) -> None:
    async with Sink() as sink:
        box = box_for(tmp_path, sink.port)
        source = Source(box.mx)
        try:
            await asyncio.to_thread(box.start)
            sending = asyncio.create_task(source.send(relayed(2500, 3000), per_second=600))
            await wait_until(lambda: len(sink.taken) > 300, what="the first arrivals")
            sink.pause()
            await asyncio.sleep(1)
            sink.resume()
            await asyncio.sleep(0.3)
            await sink.stop()  # drops all connections, before and after the dot
            await asyncio.sleep(0.7)
            await sink.start()
            os.kill(box.pid, signal.SIGSTOP)  # now eilpost is stopped
            await asyncio.sleep(0.5)
            os.kill(box.pid, signal.SIGCONT)
            await asyncio.wait_for(sending, 60)
            await wait_until(lambda: source.promised.keys() <= sink.ids(), deadline_seconds=60, what="all arrivals")
            assert not source.unknown  # a SIGSTOP leaves no message in doubt
            print(f"{len(source.promised)} arrived, {sink.duplicates} duplicates")
            assert sink.duplicates <= 20  # one for each connection that was cut after its dot
            check_all_arrived(source, sink)
            assert await asyncio.to_thread(box.stop) == 0
        finally:
            box.kill()
    assert "traceback" not in box.output().lower()  # no caught exception either: the log line has the word as a key


@pytest.mark.timeout(180)
async def test_memory_is_bounded_while_the_sink_hangs(tmp_path: Path) -> None:
    count = 8000
    async with Sink() as sink:
        sink.pause()
        box = box_for(tmp_path, sink.port)
        source = Source(box.mx)
        try:
            await asyncio.to_thread(box.start)
            await source.send(relayed(count, 10_000))  # 80 MB while the sink does not reply
            assert len(source.promised) == count
            print(f"resident with {count} messages accepted and none delivered: {box.resident_bytes() / MB:.0f} MB")
            sink.resume()
            await wait_until(lambda: len(sink.taken) == count, deadline_seconds=100, what="all arrivals")
            highest = box.resident_bytes("VmHWM")
            print(f"highest: {highest / MB:.0f} MB")
            assert highest < 250 * MB
            assert sink.duplicates == 0
            check_all_arrived(source, sink)
        finally:
            box.kill()


@pytest.mark.timeout(180)
async def test_memory_is_bounded_with_ten_thousand_queued_messages(tmp_path: Path) -> None:
    count = 10_000
    box = box_for(tmp_path, free_port(), retry="1h")  # no listener there: all deliveries are deferred
    source = Source(box.mx)
    try:
        await asyncio.to_thread(box.start)
        await source.send(relayed(count, 10_000))

        def all_deferred() -> bool:
            return box.metric("eilpost_queue_recipients", state="deferred") == count

        await wait_until(all_deferred, deadline_seconds=100, poll_seconds=0.3, what="ten thousand deferrals")
        resident, highest = box.resident_bytes(), box.resident_bytes("VmHWM")
        print(
            f"{count} messages of 10 kB queued: {resident / MB:.0f} MB resident, {highest / MB:.0f} MB at its highest"
        )
        assert resident < 150 * MB
        box.kill()
        await asyncio.to_thread(box.start)
        await wait_until(all_deferred, deadline_seconds=60, poll_seconds=0.3, what="the queue, replayed")
        print(f"after a restart: {box.resident_bytes() / MB:.0f} MB")
        assert box.resident_bytes() < 150 * MB
    finally:
        box.kill()
