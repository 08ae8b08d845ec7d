"""Faulty SMTP relay for tests: it loses, duplicates, damages, refuses or defers mail, or closes connections.

Each fault is a predicate on the number of the message, recipient or connection, counted from 1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from eilpost.load.client import Client
from eilpost.load.sink import Sink, SinkSession
from eilpost.load.workload import find_load_id

Which = Callable[[int], bool]

HANG_UP = b"close the connection without a reply"


def never(number: int) -> bool:
    return False


def every(count: int) -> Which:
    return lambda number: number % count == 0


class FaultyRelay:
    """Relays to the port `sink`. Faults after the dot: `lose`, `copy` and `damage` (with 250), `refuse` (554),
    `defer` (451, but relayed), `hang_up` (every second one is relayed). At RCPT: `refuse_recipient` (550),
    `defer_recipient` (451), `hang_up_recipient`. At connect: `hang_up_greeting`.
    """

    def __init__(self, sink: int, **faults: Which) -> None:
        self.lost: list[str] = []  # ids of messages
        self.copied: list[str] = []
        self.fault_counts = dict.fromkeys(faults, 0)  # how often each fault happened
        self._faults = faults
        self._messages = self._recipients = 0
        self._sink = sink
        self._sending: set[asyncio.Task[None]] = set()
        self._client_lock = asyncio.Lock()
        self._client: Client | None = None
        self._server = _Server(self)

    @property
    def port(self) -> int:
        return self._server.port

    async def __aenter__(self) -> FaultyRelay:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        if self._client is not None:
            self._client.transport.abort()

    def happens(self, fault: str, number: int) -> bool:
        happens = self._faults.get(fault, never)(number)
        if happens:
            self.fault_counts[fault] += 1
        return happens

    def recipient(self, address: str) -> bytes | None:
        self._recipients += 1
        if self.happens("hang_up_recipient", self._recipients):
            return HANG_UP
        if self.happens("refuse_recipient", self._recipients):
            return b"550 5.7.1 Recipient refused\r\n"
        if self.happens("defer_recipient", self._recipients):
            return b"451 4.7.1 Recipient deferred\r\n"
        return None

    def message(self, sender: str, recipients: list[str], content: bytes) -> bytes | None:
        self._messages += 1
        number = self._messages
        if self.happens("hang_up", number):
            if self.fault_counts["hang_up"] % 2:
                self._relay(sender, recipients, content)
            return HANG_UP
        if self.happens("refuse", number):
            return b"554 5.6.0 Message refused\r\n"
        if self.happens("defer", number):
            self._relay(sender, recipients, content)
            return b"451 4.3.0 Message state unknown\r\n"
        found = find_load_id(content)
        assert found is not None
        if self.happens("lose", number):
            self.lost.append(f"{found[0]}-{found[1]}")
        else:
            if self.happens("damage", number):
                content = content.replace(b"eilpost load writes", b"eilpost load writed", 1)
            if self.happens("copy", number):
                self.copied.append(f"{found[0]}-{found[1]}")
                self._relay(sender, recipients, content)
            self._relay(sender, recipients, content)
        return b"250 2.0.0 Ok: queued as Q%d\r\n" % number

    def _relay(self, sender: str, recipients: list[str], content: bytes) -> None:
        task = asyncio.create_task(self._send(sender, tuple(recipients), content))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, sender: str, recipients: tuple[str, ...], content: bytes) -> None:
        async with self._client_lock:
            if self._client is None:
                loop = asyncio.get_running_loop()
                _, self._client = await loop.create_connection(Client, "127.0.0.1", self._sink)
                await self._client.greet("relay.test")
            names = [f"RCPT TO:<{name}>\r\n".encode() for name in recipients]
            for command in (f"MAIL FROM:<{sender}>\r\n".encode(), *names, b"DATA\r\n", content + b".\r\n"):
                answer = await self._client.command(command)
                assert not answer.negative, answer


class _Server(Sink):
    def __init__(self, relay: FaultyRelay) -> None:
        super().__init__(relay)
        self.relay = relay

    def make_session(self) -> SinkSession:
        return _Session(self)


class _Session(SinkSession):
    sink: _Server

    def greet(self) -> None:
        if self.sink.relay.happens("hang_up_greeting", self.sink.connections):
            self.transport.abort()
        else:
            super().greet()

    def reply(self, reply: bytes) -> None:
        if reply is HANG_UP:
            self.transport.abort()
        else:
            super().reply(reply)
