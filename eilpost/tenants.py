"""Combined history of the shared topics and the topics of dedicated tenants, for `eilpost trace` and `eilpost queue`.

The shared topics are read first, then those of the dedicated tenants by name. A tenant without topics has no mail.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from operator import add
from typing import TYPE_CHECKING, TypeVar

from eilpost.wiring import ProcessConfig, directory_path, log_settings, make_history
from mail.log import Backlog, HistoryLog, LogUnusable

if TYPE_CHECKING:
    from mail.directory import Snapshot
    from mail.log import Damaged
    from mail.log.kafka.history import KafkaHistory
    from mail.log.queue_summary import QueueSummary
    from mail.message import QueueId
    from mail.record import Accepted, Event, QueueEntry

T = TypeVar("T")


def open_history(process_config: ProcessConfig) -> HistoryLog:
    """The history of the configured log; with dedicated tenants unless the process is of one of them."""
    shared = make_history(process_config)
    has_own_topics = not process_config.tenant and process_config.settings.log.url.startswith("kafka:")
    names = dedicated_tenants(process_config) if has_own_topics else []
    tenants = [make_history(process_config.for_tenant(name)) for name in names]
    return CombinedHistory(shared, tenants) if tenants else shared


def tenant_queues(process_config: ProcessConfig, snapshot: Snapshot) -> list[KafkaHistory]:
    """The queues of dedicated tenants; empty without Kafka."""
    if not process_config.settings.log.url.startswith("kafka:"):
        return []
    from mail.log.kafka.history import KafkaHistory

    return [KafkaHistory(log_settings(process_config.for_tenant(name)), name) for name in _dedicated(snapshot)]


def dedicated_tenants(process_config: ProcessConfig) -> list[str]:
    """The names of the dedicated tenants. Raises DirectoryUnusable."""
    from mail.directory.file import load

    return _dedicated(load(directory_path(process_config))[0])


def _dedicated(snapshot: Snapshot) -> list[str]:
    return sorted(name for name, tenant in snapshot.tenants.items() if tenant.dedicated)


@dataclass(frozen=True, slots=True)
class CombinedHistory:
    shared: HistoryLog
    tenants: Sequence[HistoryLog]

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event | Damaged]:
        for events in (
            self.shared.history(queue_id),
            *(_readable(tenant.history(queue_id)) for tenant in self.tenants),
        ):
            is_found = False
            async for event in events:
                is_found = True
                yield event
            if is_found:
                return

    async def queue_entries(self, queue_id: QueueId | None = None) -> AsyncIterator[QueueEntry]:
        async for entry in self.shared.queue_entries(queue_id):
            yield entry
        for tenant in self.tenants:
            async for entry in _readable(tenant.queue_entries(queue_id)):
                yield entry

    async def summarize_queue(self, summary: QueueSummary) -> None:
        await self.shared.summarize_queue(summary)
        for tenant in self.tenants:
            with suppress(LogUnusable):
                await tenant.summarize_queue(summary)

    async def unrouted_messages(self, queue_id: QueueId) -> Sequence[Accepted]:
        if inputs := await self.shared.unrouted_messages(queue_id):
            return inputs
        for tenant in self.tenants:
            with suppress(LogUnusable):
                if inputs := await tenant.unrouted_messages(queue_id):
                    return inputs
        return ()

    async def backlog(self) -> Backlog:
        total = await self.shared.backlog()
        for tenant in self.tenants:
            with suppress(LogUnusable):
                total = Backlog(*map(add, astuple(total), astuple(await tenant.backlog())))
        return total


async def _readable(items: AsyncIterator[T]) -> AsyncIterator[T]:
    """The items of a tenant, none if it has no topics."""
    with suppress(LogUnusable):
        async for item in items:
            yield item
