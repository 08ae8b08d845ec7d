"""State of a consumer group member that aiokafka does not report, and how a failed member leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.protocol.commit import OffsetCommitRequest

from mail.log.kafka.aiokafka_compat.clients import stop_or_abort, task_error
from mail.log.kafka.timeouts import TIMEOUTS


def member_options() -> dict[str, Any]:
    """Arguments of one member's consumer. aiokafka's assignor keeps its state in the class, so each member gets its own
    class. A member that reads nothing counts as idle after the poll interval, and would not rejoin.
    Upstream: aiokafka issues 1175, 720 and 1187 (open). Remove when the state belongs to the consumer; and when a
    member without partitions rejoins.
    """
    assignor = type("StickyAssignor", (StickyPartitionAssignor,), {})
    return {"partition_assignment_strategy": (assignor,), "max_poll_interval_ms": 86_400_000}


def generation_of(consumer: AIOKafkaConsumer | None) -> int | None:
    """The generation of the group in which the consumer is a member. After an exclusion aiokafka commits without one,
    and an empty group accepts that.
    Upstream: aiokafka issue 1154 (closed without a public API). Remove when a consumer reports its membership.
    """
    coordinator = None if consumer is None else consumer._coordinator
    generation = OffsetCommitRequest.DEFAULT_GENERATION_ID if coordinator is None else coordinator.generation
    return None if generation == OffsetCommitRequest.DEFAULT_GENERATION_ID else int(generation)


def observe_heartbeats(
    consumer: AIOKafkaConsumer, clock: Callable[[], float], confirmed: Callable[[float], None]
) -> None:
    """Call `confirmed` with the time of each heartbeat that the coordinator confirms.
    Upstream: aiokafka issue 1154 (closed without a public API). Remove when a consumer reports its heartbeats.
    """
    coordinator: Any = consumer._coordinator
    do_heartbeat = coordinator._do_heartbeat

    async def heartbeat() -> bool:
        sent_at = clock()  # the session timeout starts when the coordinator has received it, not earlier
        is_member = bool(await do_heartbeat())
        if is_member:
            confirmed(sent_at)
        return is_member

    coordinator._do_heartbeat = heartbeat


def ended_task(consumer: AIOKafkaConsumer) -> tuple[str, BaseException | None] | None:
    """Name and error of a task of the member that has ended. The heartbeat and coordination tasks end at any unknown
    error, and then only repeat that error; the metadata task ends silently.
    Upstream: aiokafka issues 712 (open) and 1154 (closed without a public API). Remove when the consumer recovers, or
    its calls raise.
    """
    coordinator: Any = consumer._coordinator
    heartbeat = coordinator._heartbeat_task
    if heartbeat is not None and (error := task_error(heartbeat)) is not None:
        return "heartbeat", error
    tasks = {"coordination": coordinator._coordination_task, "metadata": consumer._client._sync_task}
    return next(((name, task_error(task)) for name, task in tasks.items() if task.done()), None)


async def leave_group(consumer: AIOKafkaConsumer, *, is_hung: bool = False) -> None:
    """Leave the group and stop the consumer and all its tasks, even if they have failed or hang.
    Upstream: aiokafka issue 1101 (open, about producers). Remove with `stop_or_abort`.
    """
    coordinator, client, fetcher = consumer._coordinator, consumer._client, consumer._fetcher
    tasks = [] if coordinator is None else [coordinator._coordination_task, coordinator._heartbeat_task]
    if is_hung and tasks:
        # Otherwise leaving would wait for this task, and the other members for our session timeout.
        tasks[0].cancel()
        await asyncio.wait({tasks[0]}, timeout=TIMEOUTS.cancel_seconds)
    if client._sync_task is not None and client._sync_task.done():
        client._sync_task = None  # otherwise `stop` would raise its error before it closes any connection
    if fetcher is not None:
        tasks += [fetcher._fetch_task, *fetcher._pending_tasks]
    await stop_or_abort(consumer, TIMEOUTS.stop_seconds, tasks)
