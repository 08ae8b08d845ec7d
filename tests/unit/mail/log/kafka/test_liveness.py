"""Liveness of a group member: why its membership has failed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import UnknownError

from mail.log.kafka.liveness import MemberLiveness

TASKS = ("heartbeat", "coordination", "metadata")


async def _forever() -> None:
    await asyncio.Event().wait()


async def _fail() -> None:
    raise UnknownError


def _consumer(tasks: dict[str, asyncio.Task[None]]) -> Any:
    coordinator = SimpleNamespace(_heartbeat_task=tasks["heartbeat"], _coordination_task=tasks["coordination"])
    return SimpleNamespace(_coordinator=coordinator, _client=SimpleNamespace(_sync_task=tasks["metadata"]))


@pytest.mark.parametrize("failed", TASKS)
async def test_failure_names_the_task_that_ended_and_its_error(failed: str) -> None:
    liveness = MemberLiveness(7.0, lambda: 0.0)
    liveness.record_heartbeat()
    tasks = {name: asyncio.create_task(_forever()) for name in TASKS}
    assert liveness.failure(_consumer(tasks)) is None
    tasks[failed].cancel()
    tasks[failed] = asyncio.create_task(_fail())
    await asyncio.wait({tasks[failed]})
    expected = f"the client's {failed} task ended: a broker failed without a reason: see its logs"
    assert liveness.failure(_consumer(tasks)) == expected
    for task in tasks.values():
        task.cancel()


async def test_failure_names_the_time_without_a_heartbeat() -> None:
    now = 0.0
    liveness = MemberLiveness(7.0, lambda: now)
    liveness.record_heartbeat()
    tasks = {name: asyncio.create_task(_forever()) for name in TASKS}
    now = 32.0
    assert liveness.failure(_consumer(tasks)) is None
    now = 33.0
    assert liveness.failure(_consumer(tasks)) == "no heartbeat confirmed for 33 s"
    for task in tasks.values():
        task.cancel()
