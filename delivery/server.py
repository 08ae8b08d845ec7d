"""The delivery role: couriers, and a worker for each shard this process owns.

In charge of putting the pieces together and of their order at the end; decides nothing about mail.
Next: `delivery/worker.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from delivery.attempt import Attempts
from delivery.dialogue import Deadlines
from delivery.mailbox import MailboxCourier
from delivery.smtp import SmtpCourier
from delivery.worker import Worker
from mail.directory import Directory
from mail.log import DeliveryLog, DeliveryShard
from mail.resolver import Resolver
from mail.settings import DeliverySettings, NodeSettings
from mail.spool import Spool
from mailstore.mailboxes import Mailboxes


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

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Deliver until `stop`; then drain, then QUIT everywhere."""

        async def tend(shard: DeliveryShard) -> None:
            worker = Worker(
                shard=shard,
                attempts=self._attempts,
                spool=self._spool,
                settings=self._settings,
                drain_seconds=self._drain_seconds,
            )
            await worker.tend()

        ready()
        try:
            await self._log.deliver(tend, stop)
        finally:
            await self._smtp.close()
            await self._mailbox.close()
