"""Appends for dedicated tenants: each has topics of its own, and a producer of its own, so that nothing is shared.

A tenant's topics have the log's prefix and the tenant's name before theirs ("mail.acme.accepted"). Its producer is
opened with its first message. What ails one tenant's topics is LogUnavailable for its messages, and for nobody else's.
Next: `mail/log/kafka/producing.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from mail.log import LogUnavailable, LogUnusable
from mail.log.kafka.access import FAULTS, Access, reason
from mail.log.kafka.lookout import Lookout
from mail.log.kafka.producing import Producing
from mail.log.kafka.topics import counts_of
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
        await producing.append(record, place(record, counts))

    async def _open_lane(self, tenant: str) -> tuple[Producing, ShardCounts]:
        now = asyncio.get_running_loop().time()
        since, why = self._failed.get(tenant, (-_AGAIN_SECONDS, ""))
        if now - since < _AGAIN_SECONDS:
            raise LogUnavailable(why)
        access = replace(self._access, prefix=prefix_of_tenant(self._access.prefix, tenant))
        # The settings say how many shards the shared topics have; a tenant's have what they have.
        settings = self._settings.model_copy(update={"shards": 0, "delivery_shards": 0})
        producing = Producing(access, settings)
        try:
            async with Lookout(access) as lookout:
                counts = counts_of(await lookout.topics(with_config=False), access, settings)
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
