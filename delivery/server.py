"""The delivery role: couriers, and a worker for each shard this process owns.

In charge of putting the pieces together and of their order at the end; decides nothing about mail.
Next: `delivery/worker.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from delivery.attempt import Attempts
from delivery.capacity import Capacity
from delivery.dialogue import Deadlines
from delivery.mailbox import MailboxCourier
from delivery.smtp import SmtpCourier
from delivery.worker import Unreportable, Worker
from mail.directory import Directory
from mail.log import DeliveryLog, DeliveryShard
from mail.resolver import Resolver
from mail.service import stopped_within
from mail.settings import DeliverySettings, NodeSettings
from mail.spool import Spool
from mailstore.mailboxes import Mailboxes

log = structlog.get_logger()

_ANEW_SECONDS = 1.0  # before shards are taken anew, doubled each time
_ANEW_SECONDS_MAX = 300.0


class Delivery:
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
        deadlines: Deadlines | None = None,
    ) -> None:
        self._settings = settings
        self._drain_seconds = node.drain.total_seconds()
        self._log = log
        self._spool = spool
        self._smtp = SmtpCourier(settings=settings, hostname=node.hostname, resolver=resolver, deadlines=deadlines)
        self._mailbox = MailboxCourier(mailboxes=mailboxes, directory=directory)
        self._attempts = Attempts(smtp=self._smtp, mailbox=self._mailbox, spool=spool)
        self._capacity = Capacity(settings, spool)

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Deliver until `stop`; then drain, then QUIT everywhere."""

        async def tend(shard: DeliveryShard) -> None:
            await Worker(
                shard=shard, attempts=self._attempts, capacity=self._capacity, drain_seconds=self._drain_seconds
            ).tend()

        try:
            waits = _ANEW_SECONDS
            while True:
                try:
                    await self._log.deliver(tend, stop, ready)
                    break
                except Unreportable as error:
                    # Its mark stands before the attempt, so the shard's next owner, us again, makes it once more.
                    log.error("deliveries are taken anew", seconds=waits, reason=str(error))  # noqa: TRY400
                    if await stopped_within(stop, waits):
                        break
                    waits = min(2 * waits, _ANEW_SECONDS_MAX)
        finally:
            await self._capacity.close()
            await self._smtp.close()
            await self._mailbox.close()
