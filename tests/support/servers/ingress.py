"""An Ingress on its own port with a static directory and resolver, a stub log and a stub spool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ssl import SSLContext
from typing import Any

from ingress.listener import configured_listeners
from ingress.server import Ingress
from mail.address import Address
from mail.directory import Domain, Snapshot, User
from mail.log import Condition, Usable
from mail.message import Inline, Spooled
from mail.record import Accepted, Record
from mail.route import ToRelay
from mail.settings import LogSettings, NodeSettings, SpoolSettings
from mail.settings_roles import IngressSettings
from tests.support.docs.metrics import value
from tests.support.servers.static_directory import StaticDirectory
from tests.support.servers.static_resolver import StaticResolver

LINE_SECONDS = 10.0


class StubLog:
    """Records appends. They wait while `gate` is cleared, and raise `error` when it is set."""

    def __init__(self) -> None:
        self.accepted: list[Accepted] = []
        self.current_condition: Condition = Usable()
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()

    async def append(self, record: Record) -> None:
        self.waiting.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        assert isinstance(record, Accepted)
        self.accepted.append(record)

    async def open_tenant(self, _tenant: str, /) -> None:
        pass

    def condition(self, _tenant: str = "", /) -> Condition:
        return self.current_condition


class StubSpool:
    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.error: Exception | None = None
        self.free_space: int | None = None
        self.free_bytes_error: Exception | None = None  # raised by free_bytes

    async def free_bytes(self) -> int | None:
        if self.free_bytes_error is not None:
            raise self.free_bytes_error
        return self.free_space

    async def put(self, content: bytes) -> Spooled:
        if self.error is not None:
            raise self.error
        name = f"file-{len(self.contents)}"
        self.contents[name] = content
        return Spooled(name, len(content), "digest")


def make_snapshot() -> Snapshot:
    a = Address.parse
    return Snapshot(
        domains={
            "example.test": Domain("example.test", "default"),
            "catch.test": Domain("catch.test", "default"),
            "list.example.test": Domain("list.example.test", "default"),
            "relayed.test": Domain("relayed.test", "default", relay_to=ToRelay("127.0.0.1", 25)),
        },
        users={f"{name}@example.test": User(a(f"{name}@example.test")) for name in ("alice", "bob")},
        aliases={
            "postmaster@example.test": (a("alice@example.test"),),
            "team@example.test": (a("alice@example.test"), a("bob@example.test")),
            "@catch.test": (a("bob@example.test"),),
            "round@example.test": (a("about@example.test"),),
            "about@example.test": (a("round@example.test"),),
            "nobody@list.example.test": (),
            "gone@example.test": (a("left@example.test"), a("moved@example.test")),
            "half@example.test": (a("left@example.test"), a("bob@example.test")),
            "outside@example.test": (a("somebody@elsewhere.test"),),
        },
    )


def make_resolver() -> StaticResolver:
    return StaticResolver(
        mx={"good.test": [(10, "mx.good.test")], "null.test": [(0, ".")], "empty.test": []},
        addresses={"implicit.test": ["192.0.2.1"]},
        fail=["unknown.test"],
    )


class SmtpClient:
    """Sends octets and reads complete replies."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def read_line(self) -> str:
        async with asyncio.timeout(LINE_SECONDS):
            return (await self.reader.readline()).decode()

    async def read_reply(self) -> str:
        """One reply, its lines joined by LF; empty at the end of the connection."""
        lines = []
        while line := await self.read_line():
            assert line.endswith("\r\n"), line
            lines.append(line[:-2])
            if line[3:4] == " ":
                break
        return "\n".join(lines)

    async def command(self, text: str) -> str:
        self.send(text.encode() + b"\r\n")
        return await self.read_reply()

    async def start_data(self, sender: str = "alice@example.test", recipient: str = "bob@example.test") -> None:
        """Run a session from the greeting to the 354."""
        assert (await self.read_reply()).startswith("220 ")
        for command in ("EHLO client.test", f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>"):
            assert (await self.command(command)).startswith("250"), command
        assert (await self.command("DATA")).startswith("354 ")

    async def read_to_end(self) -> bytes:
        async with asyncio.timeout(LINE_SECONDS):
            return await self.reader.read()


class RunningIngress:
    """A running Ingress and its dependencies."""

    def __init__(self, **settings: Any) -> None:
        self.log = StubLog()
        self.spool = StubSpool()
        self.resolver = make_resolver()
        self.directory: Any = settings.pop("directory", None) or StaticDirectory(make_snapshot())
        node = settings.pop("node", NodeSettings(hostname="mx.example.test", drain_timeout="2s"))
        ingress_settings = IngressSettings(**{"smtp_listen": "127.0.0.1:0", **settings})
        self.ingress = Ingress(
            listeners=configured_listeners(ingress_settings, node, alias_depth=20),
            settings=ingress_settings,
            node=node,
            spool_settings=SpoolSettings(),
            log_settings=LogSettings(),
            log=self.log,
            spool=self.spool,  # type: ignore[arg-type]  # ingress uses put and free_bytes only
            directory=self.directory,
            resolver=self.resolver,
        )
        self.stop = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._clients: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        ready = asyncio.Event()
        self.task = asyncio.create_task(self.ingress.run(ready.set, self.stop))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({self.task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.task.done():
            self.task.result()

    @property
    def open_connections(self) -> float:
        return value("smtp_connections", listener="mx")

    @property
    def in_flight_bytes(self) -> float:
        return value("ingress_in_flight_bytes")

    async def connect(
        self, listener: str = "mx", tls: SSLContext | None = None, *, from_ip: str = "127.0.0.1"
    ) -> SmtpClient:
        host, port = self.ingress.bound_addresses[listener]
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, local_addr=(from_ip, 0))
        self._clients.append(writer)
        return SmtpClient(reader, writer)

    async def close(self) -> None:
        self.stop.set()
        self.log.gate.set()
        if self.task is not None:
            await self.task
        for writer in self._clients:
            writer.close()

    def content(self, number: int = 0) -> bytes:
        content = self.log.accepted[number].content
        return content.data if isinstance(content, Inline) else self.spool.contents[content.name]

    def body(self, number: int = 0) -> bytes:
        """The content without the Received field."""
        content = self.content(number)
        assert content.startswith(b"Received: ")
        return content.partition(b"+0000\r\n")[2]


@asynccontextmanager
async def running_ingress(**settings: Any) -> AsyncIterator[RunningIngress]:
    server = RunningIngress(**settings)
    await server.start()
    try:
        yield server
    finally:
        await server.close()
