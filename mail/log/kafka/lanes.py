"""Appends for dedicated tenants: each has topics of its own, and a producer of its own, so that nothing is shared.

A tenant's topics have the log's prefix and the tenant's name before theirs ("mail.acme.accepted"). Its producer is
opened with its first message, on topics as safe as those a start demands. What ails one tenant's topics is
LogUnavailable for its messages, at once where it is known, and for nobody else's.
Next: `mail/log/kafka/producing.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from mail.log import Condition, Down, LogUnavailable, LogUnusable, Usable
from mail.log.kafka.access import FAULTS, Access, reason
from mail.log.kafka.history import KafkaHistorian
from mail.log.kafka.lookout import Lookout
from mail.log.kafka.producing import Producing
from mail.log.kafka.topics import counts_of, refuse_unsafe
from mail.log.topics import ShardCounts, place, prefix_of_tenant
from mail.record import Accepted
from mail.settings import LogSettings

log = structlog.get_logger()

_AGAIN_SECONDS = 5.0  # before topics that were missing are looked for again


class Lanes:
    """The tenants' producers of one process."""

    def __init__(self, access: Access, settings: LogSettings) -> None:
        self._access = access
        self._settings = settings
        self._open: dict[str, tuple[Producing, ShardCounts]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._failed: dict[str, tuple[float, str]] = {}

    async def append(self, tenant: str, record: Accepted) -> None:
        """Return when the record is confirmed. Raises LogUnavailable."""
        lane = self._open.get(tenant)
        if lane is None:
            async with self._locks.setdefault(tenant, asyncio.Lock()):
                lane = self._open.get(tenant) or await self._open_lane(tenant)
        producing, counts = lane
        condition = self.condition(tenant)
        if isinstance(condition, Down):  # or each of its messages would hold a session and its bytes for a time-out
            raise LogUnavailable(f"tenant {tenant}: {condition.reason}")
        await producing.append(record, place(record, counts))

    def condition(self, tenant: str) -> Condition:
        """Usable until the first message has found out."""
        lane = self._open.get(tenant)
        if lane is not None:
            return lane[0].condition()
        why = self._why_not_again(tenant)
        return Usable() if why is None else Down(why)

    async def measure(self, lookout: Lookout) -> None:
        """See how much of what was appended is routed."""
        for tenant, (producing, counts) in list(self._open.items()):
            appended = producing.appended
            try:
                backlog = await KafkaHistorian(self._access_of(tenant), lookout, counts).backlog()
            except (LogUnavailable, LogUnusable) as error:  # at the next turn; the others are measured
                log.debug("backlog not measured", tenant=tenant, reason=str(error))
            else:
                producing.measured(backlog.accepted, appended)

    def _why_not_again(self, tenant: str) -> str | None:
        """What ailed the tenant's topics a moment ago."""
        since, why = self._failed.get(tenant, (float("-inf"), ""))
        return why if asyncio.get_running_loop().time() - since < _AGAIN_SECONDS else None

    def _access_of(self, tenant: str) -> Access:
        return replace(self._access, prefix=prefix_of_tenant(self._access.prefix, tenant))

    async def _open_lane(self, tenant: str) -> tuple[Producing, ShardCounts]:
        why = self._why_not_again(tenant)
        if why is not None:
            raise LogUnavailable(why)
        now = asyncio.get_running_loop().time()
        access = self._access_of(tenant)
        # The settings say how many shards the shared topics have; a tenant's have what they have.
        settings = self._settings.model_copy(update={"shards": 0, "delivery_shards": 0})
        producing = Producing(access, settings)
        try:
            async with Lookout(access) as lookout:
                found = await lookout.topics()
            counts = counts_of(found, access, settings)
            if settings.durability != "dev":
                refuse_unsafe(found, access, settings)
            await producing.start()
        except (LogUnavailable, LogUnusable, *FAULTS) as error:
            await producing.close()
            text = str(error) if isinstance(error, LogUnavailable | LogUnusable) else reason(error)
            log.error("no topics for a dedicated tenant", tenant=tenant, reason=text)  # noqa: TRY400
            self._failed[tenant] = now, f"tenant {tenant}: {text}"
            raise LogUnavailable(f"tenant {tenant}: {text}") from None
        except BaseException:
            await producing.close()
            raise
        self._failed.pop(tenant, None)
        lane = self._open[tenant] = producing, counts
        return lane

    async def close(self) -> None:
        for producing, _ in self._open.values():
            await producing.close()
        self._open.clear()
