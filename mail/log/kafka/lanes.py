"""Appends for dedicated tenants: each has topics of its own, and a producer of its own, so that nothing is shared.

A tenant's topics have the log's prefix and the tenant's name before theirs ("mail.acme.accepted"). Its lane is opened
with its first recipient, on topics as safe as those a start demands: not at start, since there may be many tenants, and
a process talks to all brokers for each. What ails one tenant's topics is LogUnavailable for its messages, at once where
it is known, and for nobody else's. Next: `mail/log/kafka/producing.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from mail.log import Condition, Down, LogUnavailable, LogUnusable, Usable
from mail.log.kafka.access import FAULTS, Access, reason
from mail.log.kafka.history import KafkaHistorian
from mail.log.kafka.lookout import Lookout
from mail.log.kafka.presence import look
from mail.log.kafka.producing import Producing
from mail.log.kafka.topics import counts_of, refuse_unsafe
from mail.log.topics import ShardCounts, place, prefix_of_tenant
from mail.record import Accepted
from mail.settings import LogSettings

log = structlog.get_logger()

_AGAIN_SECONDS = 5.0  # before topics that were missing are looked for again
_OPEN_SECONDS_MOST = 30.0  # then the brokers do not answer
_OPEN_SECONDS = 3.0  # that a recipient waits for a lane, which takes a tenth of a second where all is well

Lane = tuple[Producing, ShardCounts]


class Lanes:
    """The tenants' producers of one process."""

    def __init__(self, access: Access, settings: LogSettings) -> None:
        self._access = access
        # The settings say how many shards the shared topics have; a tenant's have what they have.
        self._settings = settings.model_copy(update={"shards": 0, "delivery_shards": 0})
        self._open: dict[str, Lane] = {}
        self._opening: dict[str, tuple[float, asyncio.Task[None]]] = {}  # since when
        self._failed: dict[str, tuple[float, str]] = {}

    async def prepare(self, tenant: str) -> None:
        """Open the tenant's lane unless it is open, or failed a moment ago; wait for that, but not long."""
        if tenant in self._open or self._why_not_again(tenant) is not None:
            return
        since, task = self._begin_to_open(tenant)
        left = since + _OPEN_SECONDS - asyncio.get_running_loop().time()
        await asyncio.wait({task}, timeout=max(0.0, left))

    async def append(self, tenant: str, record: Accepted) -> None:
        """Return when the record is confirmed. Raises LogUnavailable."""
        if tenant not in self._open and self._why_not_again(tenant) is None:
            _, task = self._begin_to_open(tenant)
            await asyncio.wait({task})
        condition = self.condition(tenant)
        if isinstance(condition, Down):  # or each of its messages would hold a session and its bytes for a time-out
            raise LogUnavailable(condition.reason)
        lane = self._open.get(tenant)
        if lane is None:
            raise LogUnavailable(f"tenant {tenant}: the log is closed")
        producing, counts = lane
        await producing.append(record, place(record, counts))

    def condition(self, tenant: str) -> Condition:
        """Usable while nobody has asked."""
        lane = self._open.get(tenant)
        if lane is not None:
            now = lane[0].condition()
            return Down(f"tenant {tenant}: {now.reason}") if isinstance(now, Down) else now
        why = self._why_not_again(tenant)
        if why is None and tenant in self._opening:
            why = f"tenant {tenant}: its topics have not answered yet"
        return Usable() if why is None else Down(why)

    async def measure(self, lookout: Lookout) -> None:
        """See how much of what was appended is routed, and whether the topics are there."""
        for tenant, (producing, counts) in list(self._open.items()):
            appended = producing.appended
            access = self._access_of(tenant)
            try:
                there, _ = await look(lookout, access, self._settings, with_config=False)
                if there.by_queue_id != counts.by_queue_id:
                    await self._shut(tenant)  # they were made anew: with the next recipient they are looked at
                    continue
                backlog = await KafkaHistorian(access, lookout, counts).backlog()
            except LogUnusable as error:
                await self._shut(tenant)
                self._fail(tenant, str(error))
            except LogUnavailable as error:  # at the next turn; the others are measured
                log.debug("backlog not measured", tenant=tenant, reason=str(error))
            else:
                producing.measured(backlog.accepted, appended)

    def _why_not_again(self, tenant: str) -> str | None:
        """What ailed the tenant's topics a moment ago."""
        since, why = self._failed.get(tenant, (float("-inf"), ""))
        return why if asyncio.get_running_loop().time() - since < _AGAIN_SECONDS else None

    def _access_of(self, tenant: str) -> Access:
        return replace(self._access, prefix=prefix_of_tenant(self._access.prefix, tenant), tenant=tenant)

    def _begin_to_open(self, tenant: str) -> tuple[float, asyncio.Task[None]]:
        opening = self._opening.get(tenant)
        if opening is None:
            task = asyncio.create_task(self._open_lane(tenant), name=f"lane of {tenant}")
            opening = self._opening[tenant] = asyncio.get_running_loop().time(), task
            task.add_done_callback(lambda _: self._opening.pop(tenant, None))
        return opening

    async def _open_lane(self, tenant: str) -> None:
        access, settings = self._access_of(tenant), self._settings
        producing = Producing(access, settings)
        is_open = False
        try:
            async with asyncio.timeout(_OPEN_SECONDS_MOST):
                async with Lookout(access) as lookout:
                    found = await lookout.topics()
                counts = counts_of(found, access, settings)
                if settings.durability != "dev":
                    refuse_unsafe(found, access, settings)
                await producing.start()
            is_open = True
        except (LogUnavailable, LogUnusable) as error:
            self._fail(tenant, str(error))
        except FAULTS as error:
            self._fail(tenant, reason(error))
        except Exception as error:  # a bug; without a reason every message would only find the lane shut
            log.exception("lane not opened", tenant=tenant)
            self._fail(tenant, f"a bug of ours ({type(error).__name__})")
        finally:
            if not is_open:
                await producing.close()
        if is_open:
            self._failed.pop(tenant, None)
            self._open[tenant] = producing, counts

    def _fail(self, tenant: str, text: str) -> None:
        """Said once, for as long as nothing else is wrong."""
        why = f"tenant {tenant}: {text}"
        if self._failed.get(tenant, (0.0, ""))[1] != why:
            log.error("no topics for a dedicated tenant", tenant=tenant, reason=text)
        self._failed[tenant] = asyncio.get_running_loop().time(), why

    async def _shut(self, tenant: str) -> None:
        lane = self._open.pop(tenant, None)
        if lane is not None:
            await lane[0].close()

    async def close(self) -> None:
        opening = [task for _, task in self._opening.values()]
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for tenant in list(self._open):
            await self._shut(tenant)
