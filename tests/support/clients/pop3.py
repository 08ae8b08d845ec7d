"""The POP3 role on its own port, and its clients: poplib, or raw bytes."""

from __future__ import annotations

import asyncio
import poplib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

from mail.address import Address
from mail.directory import Domain, Snapshot, User
from mail.settings import NodeSettings
from mail.settings_roles import MailstoreSettings
from mail.telemetry import REGISTRY
from mailstore.mailboxes import MailboxUnavailable
from mailstore.maildir import Maildir
from mailstore.memory import MemoryMailboxes
from mailstore.pop3.server import Pop3Server
from tests.support.servers.static_directory import StaticDirectory

T = TypeVar("T")
OWNER = "alice@example.test"
FIRST = b"Subject: one\r\n\r\n.dot first\r\nplain\r\n..two\r\n.\r\nend\r\n"
SECOND = b"Subject: two\r\nX: y\r\n\r\n" + b"".join(b"line %d\r\n" % n for n in range(40))
LOG_IN = b"USER alice@example.test\r\nPASS secret  word\r\n"


def make_directory() -> StaticDirectory:
    users = {key: User(Address.parse(key)) for key in (OWNER, "bob@example.test")}
    snapshot = Snapshot(domains={"example.test": Domain("example.test", "default")}, users=users)
    return StaticDirectory(snapshot, {OWNER: "secret  word", "bob@example.test": "bobs"})


@asynccontextmanager
async def running_pop3(
    mailboxes: MemoryMailboxes | Maildir, max_connections: int = 50, idle: str = "10m", **more: Any
) -> AsyncIterator[Pop3Server]:
    settings = MailstoreSettings(pop3_listen="127.0.0.1:0", max_connections=max_connections, idle_timeout=idle)  # type: ignore[arg-type]
    defaults: dict[str, Any] = {"failure_delay": timedelta(0), "directory": make_directory(), "node": NodeSettings()}
    role = Pop3Server(settings=settings, mailboxes=mailboxes, **(defaults | more))
    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(role.run(ready.set, stop))
    await asyncio.wait_for(ready.wait(), 10)
    try:
        yield role
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def with_poplib(role: Pop3Server, job: Callable[[poplib.POP3], T]) -> T:
    def run() -> T:
        client = poplib.POP3("127.0.0.1", role.port, timeout=10)
        try:
            return job(client)
        finally:
            client.close()

    return await asyncio.to_thread(run)


async def connect(role: Pop3Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", role.port)


async def exchange(role: Pop3Server, commands: bytes) -> bytes:
    """Send all commands at once and read until the server closes."""
    reader, writer = await connect(role)
    writer.write(commands)
    answers = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answers


async def log_in(role: Pop3Server, commands: bytes = LOG_IN) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await connect(role)
    writer.write(commands)
    for _ in range(3):
        assert (await reader.readline()).startswith(b"+OK")
    return reader, writer


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class FailingMailboxes(MemoryMailboxes):
    """A store in which `method` fails after `successes` calls."""

    def __init__(self, mailboxes: MemoryMailboxes, method: str, successes: int = 0) -> None:
        self._mailboxes, self.locked = mailboxes._mailboxes, mailboxes.locked
        self._successes = successes
        real = getattr(self, method)

        async def failing(*arguments: Any) -> Any:
            self._successes -= 1
            if self._successes < 0:
                raise MailboxUnavailable("disk failure")
            return await real(*arguments)

        setattr(self, method, failing)
