"""Faults of the environment of one process with all roles: no accepted message is lost, and no person is needed.

The process serves all the time, or ends with the status that its service manager expects and is started again.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.support.faults.accounting import Sink, Source
from tests.support.faults.environment import (
    ENVIRONMENT_FAULTS,
    HOLD_SECONDS,
    REFUSED_BY_MACHINE,
    FaultyEnvironmentProcess,
)
from tests.support.faults.one_process import Arrivals, postings, settings
from tests.support.servers.ports import wait_until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

PER_SECOND = 60


@pytest.mark.parametrize("name", ENVIRONMENT_FAULTS)
async def test_no_fault_of_the_environment_loses_mail(name: str, tmp_path: Path) -> None:
    fault = ENVIRONMENT_FAULTS[name]
    async with Sink() as sink:
        box = FaultyEnvironmentProcess(tmp_path / "box", settings(sink), fault.stderr)
        source = Source(box.mx)
        try:
            await asyncio.to_thread(box.start)
            pid = box.pid
            sending = asyncio.create_task(source.send(postings(random.Random(name)), per_second=PER_SECOND))
            await asyncio.sleep(1)
            with fault.apply(box):
                if fault.ends is not None:
                    assert await asyncio.to_thread(box.wait) == fault.ends
                await asyncio.sleep(HOLD_SECONDS)
            if fault.ends is not None:
                await asyncio.to_thread(box.start)
            assert box.is_running, box.output()[-4000:]
            assert fault.ends is not None or box.pid == pid
            await _is_accepting(source)
            source.stop()
            await asyncio.wait_for(sending, 60)
            await wait_until(
                lambda: not missing(source, sink, box), deadline_seconds=60, what=lambda: missing(source, sink, box)
            )
            assert await asyncio.to_thread(box.stop) == 0
        finally:
            source.stop()
            box.close_stderr()
            box.kill()
    assert not source.refused
    assert fault.shows in box.output()
    bugs = [line for line in box.output().splitlines() if "traceback" in line.lower()]
    assert [line for line in bugs if not any(text in line for text in REFUSED_BY_MACHINE)] == []


async def _is_accepting(source: Source) -> None:
    """New mail is accepted again."""
    before = len(source.promised)
    await wait_until(
        lambda: len(source.promised) > before + PER_SECOND, deadline_seconds=40, what="new mail is accepted"
    )


def missing(source: Source, sink: Sink, box: FaultyEnvironmentProcess) -> list[tuple[str, str]]:
    """Recipients of promised messages for whom neither the message nor a DSN has arrived."""
    arrivals = Arrivals(sink, box)
    return [
        (posting.id, recipient)
        for posting in list(source.promised.values())
        for recipient in posting.recipients
        if not arrivals.count(posting.id, recipient)
    ]
