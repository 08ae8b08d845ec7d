"""The history of all tenants as one: where dedicated tenants have topics of their own, each is asked in turn.

For `trace` and `queue`: a person who looks for a message does not know whose topics it is in. The shared ones are asked
first, then each dedicated tenant's, in the order of their names; a tenant whose topics are not made yet has no mail.
Next: `mail/log/__init__.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from eilpost.compose import Plan, directory_path, log_settings, make_history
from mail.log import Backlog, HistoryLog, LogUnusable

if TYPE_CHECKING:
    from mail.directory import Snapshot
    from mail.log.kafka.history import KafkaHistory
    from mail.message import QueueId
    from mail.record import Accepted, Event, Pending


def history_of(plan: Plan) -> HistoryLog:
    """What the plan's log has to tell, those of dedicated tenants included unless it is for one of them."""
    shared = make_history(plan)
    names = [] if plan.tenant or not plan.settings.log.url.startswith("kafka:") else dedicated(plan)
    return AllTenants(shared, [make_history(plan.for_tenant(name)) for name in names]) if names else shared


def queues_of_tenants(plan: Plan, snapshot: Snapshot) -> list[KafkaHistory]:
    """The queues of dedicated tenants, where they have their own."""
    if not plan.settings.log.url.startswith("kafka:"):
        return []
    from mail.log.kafka.history import KafkaHistory

    names = sorted(name for name, tenant in snapshot.tenants.items() if tenant.dedicated)
    return [KafkaHistory(log_settings(plan.for_tenant(name)), name) for name in names]


def dedicated(plan: Plan) -> list[str]:
    """The names of the tenants that have topics of their own. Raises DirectoryUnusable."""
    from mail.directory.file import load

    snapshot, _ = load(directory_path(plan))
    return sorted(name for name, tenant in snapshot.tenants.items() if tenant.dedicated)


class AllTenants:
    """HistoryLog over several."""

    def __init__(self, shared: HistoryLog, tenants: Sequence[HistoryLog]) -> None:
        self._shared = shared
        self._tenants = tenants

    async def history(self, queue_id: QueueId) -> AsyncIterator[Event]:
        found = False
        async for event in self._shared.history(queue_id):
            found = True
            yield event
        for tenant in () if found else self._tenants:
            with suppress(LogUnusable):
                async for event in tenant.history(queue_id):
                    found = True
                    yield event
            if found:
                return

    async def open_lines(self, queue_id: QueueId | None = None) -> AsyncIterator[Pending]:
        async for line in self._shared.open_lines(queue_id):
            yield line
        for tenant in self._tenants:
            with suppress(LogUnusable):
                async for line in tenant.open_lines(queue_id):
                    yield line

    async def waiting_inputs(self, queue_id: QueueId) -> Sequence[Accepted]:
        inputs = await self._shared.waiting_inputs(queue_id)
        for tenant in self._tenants:
            if inputs:
                break
            with suppress(LogUnusable):
                inputs = await tenant.waiting_inputs(queue_id)
        return inputs

    async def backlog(self) -> Backlog:
        total = await self._shared.backlog()
        for tenant in self._tenants:
            with suppress(LogUnusable):
                one = await tenant.backlog()
                total = Backlog(
                    total.accepted + one.accepted, total.dispatched + one.dispatched, total.attempted + one.attempted
                )
        return total
