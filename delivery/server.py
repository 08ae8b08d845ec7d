"""The delivery role: couriers, and a worker for each shard that this process owns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from delivery.attempt import AttemptRunner
from delivery.capacity import Capacity
from delivery.mailbox_courier import MailboxCourier
from delivery.own_addresses import OwnAddresses
from delivery.pool import Pool
from delivery.smtp_courier import SmtpCourier
from delivery.worker import ReportFailed, Worker
from mail.backoff import backoff
from mail.directory import Directory
from mail.log import DeliveryLog, DeliveryShard
from mail.resolver import Resolver
from mail.settings import NodeSettings
from mail.settings_roles import DeliverySettings
from mail.spool import Spool
from mail.tasks import is_set_within
from mailstore.mailboxes import Mailboxes

logger = structlog.get_logger()

_RESTART_SECONDS, _RESTART_SECONDS_MAX = 1.0, 300.0  # before the shards are acquired again


class DeliveryRole:
    """Implements `mail.service.Role`."""

    name = "delivery"

    def __init__(
        self,
        *,
        settings: DeliverySettings,
        node: NodeSettings,
        log: DeliveryLog,
        spool: Spool,
        directory: Directory,
        resolver: Resolver,
        mailboxes: Mailboxes,
        own_addresses: OwnAddresses,
    ) -> None:
        self._drain_seconds = node.drain_timeout.total_seconds()
        self._log = log
        self._capacity = Capacity(settings, spool)
        self._pool = Pool(
            settings=settings,
            windows=self._capacity.windows,
            resolver=resolver,
            hostname=node.hostname,
            own_addresses=own_addresses,
        )
        mailbox = MailboxCourier(mailboxes=mailboxes, directory=directory)
        self._attempt_runner = AttemptRunner(smtp=SmtpCourier(self._pool), mailbox=mailbox, spool=spool)

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Deliver until `stop`; then drain and close the connections."""

        async def run_worker(shard: DeliveryShard) -> None:
            await Worker(
                shard=shard,
                attempt_runner=self._attempt_runner,
                capacity=self._capacity,
                drain_seconds=self._drain_seconds,
            ).run()

        try:
            loop = asyncio.get_running_loop()
            pauses = backoff(_RESTART_SECONDS, _RESTART_SECONDS_MAX)
            while True:
                started = loop.time()
                try:
                    await self._log.own_delivery_shards(run_worker, stop, ready)
                    break
                except ReportFailed as error:
                    # The committed offset is before the attempt, so the shard's next owner repeats it.
                    if loop.time() - started > _RESTART_SECONDS_MAX:  # not one failure after another
                        pauses = backoff(_RESTART_SECONDS, _RESTART_SECONDS_MAX)
                    pause, event = next(pauses), "delivery restarts, unreported attempts are repeated"
                    logger.error(event, retry_seconds=pause, error=str(error))  # noqa: TRY400
                    if await is_set_within(stop, pause):
                        break
        finally:
            await self._capacity.close()
            await self._pool.close()
