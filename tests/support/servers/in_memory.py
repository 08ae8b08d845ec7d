"""In-memory mail server for journeys: all four roles of `eilpost up` with in-memory adapters and short time-outs.

async with InMemoryMailServer() as mail_server:
    queue_id = await mail_server.send(b"Subject: hello\\r\\n\\r\\nhello\\r\\n", to=["alice@example.test"])
    assert await mail_server.wait_closed(queue_id) ...
"""

from __future__ import annotations

import asyncio
import poplib
import re
import smtplib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from delivery.own_addresses import OwnAddresses
from delivery.server import DeliveryRole
from ingress.listener import configured_listeners
from ingress.server import Ingress
from mail.address import Address
from mail.directory import Domain, Snapshot, User
from mail.endpoint import parse_relay
from mail.log import Log
from mail.log.memory import MemoryLog
from mail.message import QueueId
from mail.record import Bounced, Closed, Event, EventDetail, QueueEntry
from mail.service import run_roles
from mail.settings import Settings
from mail.spool import Spool
from mail.spool.disk import DiskSpool
from mail.spool.memory import MemorySpool
from mailstore.mailboxes import Mailboxes
from mailstore.memory import MemoryMailboxes
from mailstore.pop3.server import Pop3Server
from router.server import Router
from tests.support.servers.ports import free_port, wait_until
from tests.support.servers.static_directory import StaticDirectory
from tests.support.servers.static_resolver import StaticResolver

H = TypeVar("H", bound=EventDetail)

PASSWORD = "eilpost-demo"
QUEUED_AS = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{26}\b")


def snapshot(aliases: Mapping[str, Sequence[str]] | None = None) -> Snapshot:
    """A directory with the domain example.test, the users alice and bob, and `aliases`."""
    people = [Address.parse(f"{name}@example.test") for name in ("alice", "bob")]
    return Snapshot(
        domains={"example.test": Domain("example.test", "default")},
        users={person.key: User(person) for person in people},
        aliases={name: tuple(Address.parse(target) for target in to) for name, to in (aliases or {}).items()},
    )


class InMemoryMailServer:
    """`settings`: sections that override the defaults. `log`: an existing log, to restart on it."""

    def __init__(
        self,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        aliases: Mapping[str, Sequence[str]] | None = None,
        resolver: StaticResolver | None = None,
        log: Log | None = None,
        spool: Path | None = None,
        mailboxes: Mailboxes | None = None,
    ) -> None:
        self.smtp_port, self.pop3_port = free_port(), free_port()
        sections: dict[str, dict[str, Any]] = {
            "node": {"hostname": "mx.example.test", "drain_timeout": "5s"},
            "ingress": {"smtp_listen": f"127.0.0.1:{self.smtp_port}", "sender_domain_must_resolve": False},
            "mailstore": {"pop3_listen": f"127.0.0.1:{self.pop3_port}"},
        }
        for name, section in (settings or {}).items():
            sections.setdefault(name, {}).update(section)
        self.settings = Settings(**sections)  # type: ignore[arg-type]
        passwords = {f"{name}@example.test": PASSWORD for name in ("alice", "bob")}
        self.directory = StaticDirectory(snapshot(aliases), passwords)
        self.resolver = resolver or StaticResolver()
        self.log = log or MemoryLog(self.settings.log)
        self.spool: Spool = DiskSpool(spool) if spool else MemorySpool()
        self.mailboxes = mailboxes or MemoryMailboxes()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> InMemoryMailServer:
        await self.log.start()
        settings = self.settings
        relay = parse_relay(settings.delivery.relay) if settings.delivery.relay else None
        directory, resolver, mailboxes = self.directory, self.resolver, self.mailboxes
        node = settings.node
        roles = [
            Ingress(
                listeners=configured_listeners(settings.ingress, node, alias_depth=settings.router.max_alias_depth),
                settings=settings.ingress,
                node=node,
                spool_settings=settings.spool,
                log_settings=settings.log,
                log=self.log,
                spool=self.spool,
                directory=directory,
                resolver=resolver,
            ),
            Router(
                settings=settings.router,
                node=node,
                relay=relay,
                log=self.log,
                spool=self.spool,
                directory=directory,
                resolver=resolver,
            ),
            DeliveryRole(
                settings=settings.delivery,
                node=node,
                log=self.log,
                spool=self.spool,
                directory=directory,
                resolver=resolver,
                mailboxes=mailboxes,
                own_addresses=OwnAddresses([("127.0.0.1", self.smtp_port)]),
            ),
            Pop3Server(settings=settings.mailstore, node=node, mailboxes=mailboxes, directory=directory),
        ]
        ready = asyncio.Event()
        self._task = asyncio.create_task(run_roles(roles, node.drain_timeout, ready.set, stop=self._stop))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED, timeout=20)
        if self._task.done():
            waiting.cancel()
            self._task.result()
        assert ready.is_set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        assert self._task is not None
        try:
            await self._task
        finally:
            await self.log.close()

    # Sending

    async def send(
        self, content: bytes, *, to: Sequence[str], sender: str = "bob@example.test", options: Sequence[str] = ()
    ) -> QueueId:
        """Send by smtplib; returns the queue id in the 250 reply."""

        def by_smtplib() -> bytes:
            with smtplib.SMTP("127.0.0.1", self.smtp_port, "client.test", timeout=30) as client:
                client.ehlo()
                assert client.mail(sender, options)[0] == 250
                for recipient in to:
                    code, text = client.rcpt(recipient)
                    assert code == 250, text
                code, text = client.data(content)
                assert code == 250, text
                return text

        return queue_id_in((await asyncio.to_thread(by_smtplib)).decode())

    async def smtp_session(self, *lines: str, helo: str = "client.test") -> list[str]:
        """Send raw commands one by one; returns the last line of every reply."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.smtp_port)
        replies = [await _reply(reader)]
        for line in (f"EHLO {helo}", *lines):
            writer.write(line.encode() + b"\r\n")
            replies.append(await _reply(reader))
        writer.close()
        await writer.wait_closed()
        return replies

    # Results

    async def history(self, queue_id: QueueId) -> list[EventDetail]:
        """The event details of a message, oldest first."""
        return [event.detail async for event in self.log.history(queue_id)]

    async def events(self, queue_id: QueueId) -> list[Event]:
        return [event async for event in self.log.history(queue_id)]

    async def details(self, queue_id: QueueId, kind: type[H]) -> list[H]:
        return [what for what in await self.history(queue_id) if isinstance(what, kind)]

    async def wait_closed(self, queue_id: QueueId) -> list[EventDetail]:
        """Wait until the message is closed; returns its history."""

        async def is_closed() -> bool:
            return bool(await self.details(queue_id, Closed))

        try:
            await wait_until(is_closed, what=f"{queue_id} closed")
        except AssertionError as error:
            raise AssertionError(
                f"{error}; so far: {await self.history(queue_id)}; queue: {await self.queue()}"
            ) from None
        return await self.history(queue_id)

    async def wait_bounce(self, queue_id: QueueId) -> QueueId:
        """Wait until the message and its DSN are closed; returns the queue id of the DSN."""
        await self.wait_closed(queue_id)
        (bounced,) = await self.details(queue_id, Bounced)
        await self.wait_closed(bounced.dsn)
        return bounced.dsn

    async def queue(self) -> list[QueueEntry]:
        return [entry async for entry in self.log.queue_entries()]

    async def mailbox(self, user: str) -> list[bytes]:
        """All messages of a mailbox, read by poplib."""

        def by_poplib() -> list[bytes]:
            pop = poplib.POP3("127.0.0.1", self.pop3_port, timeout=30)
            try:
                pop.user(f"{user}@example.test")
                pop.pass_(PASSWORD)
                count = len(pop.list()[1])
                return [b"".join(line + b"\r\n" for line in pop.retr(number + 1)[1]) for number in range(count)]
            finally:
                pop.quit()

        return await asyncio.to_thread(by_poplib)


def queue_id_in(reply: str) -> QueueId:
    """The queue id in a 250 reply."""
    found = QUEUED_AS.search(reply)
    assert found is not None, f"no queue id in {reply!r}"
    return QueueId(found[0])


async def _reply(reader: asyncio.StreamReader) -> str:
    while True:
        line = await asyncio.wait_for(reader.readline(), 20)
        if line[3:4] != b"-":
            return line.decode().rstrip("\r\n")
