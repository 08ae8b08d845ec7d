"""Simulated environment of the pipeline: DNS, remote mail servers, senders, and POP3 clients.

The local part of a recipient selects the remote reply: `ok`, `full` (deferred, then accepted), `policy` (the same, by
policy), `gone` (failed). slow.test is slow. Everything is on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import poplib
import random
import time
from collections.abc import AsyncIterator, Sequence

import aiosmtplib

from tests.support.servers.dns import DnsServer, Zone
from tests.support.servers.eilpost_process import PASSWORD
from tests.support.servers.listener import Listener, streams
from tests.support.servers.ports import free_port

HOSTS = {  # mail exchanger and address of each domain
    "remote.test": ("mx.remote.test", "127.0.0.2"),
    "google.test": ("aspmx.l.google.com", "127.0.0.3"),
    "microsoft.test": ("mx.mail.protection.outlook.com", "127.0.0.4"),
    "slow.test": ("mx.slow.test", "127.0.0.6"),
}
DOWN = ("down.test", "mx.down.test", "127.0.0.5")  # no listener
KINDS = (*("ok",) * 27, "full", "full", "policy", "gone", "gone")  # recipient kinds; one is drawn at random for each


def zone() -> Zone:
    hosts = {**HOSTS, DOWN[0]: DOWN[1:]}
    return Zone(
        mx={domain: [(10, host)] for domain, (host, _) in hosts.items()},
        addresses={host: [address] for host, address in hosts.values()}
        | {"client.test": ["127.0.0.1"], "example.test": ["127.0.0.1"]},
        fail={"broken.test"},
        ttl_seconds=20,
        negative_seconds=10,
    )


class RemoteServers:
    """One server on one port for all `HOSTS`."""

    def __init__(self) -> None:
        self.port = free_port()
        self._listeners = [Listener(streams(self._serve), address, self.port) for _, address in HOSTS.values()]
        self._deferred: set[str] = set()

    async def start(self) -> None:
        for listener in self._listeners:
            await listener.start()

    async def stop(self) -> None:
        for listener in self._listeners:
            await listener.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._say(writer, "220 remote.test ESMTP")
            while line := (await reader.readline()).decode("latin-1").strip():
                verb = line[:4].upper()
                if verb == "EHLO":
                    await self._say(writer, "250-remote.test\r\n250-PIPELINING\r\n250 ENHANCEDSTATUSCODES")
                elif verb == "RCPT":
                    await self._say(writer, self._recipient(line))
                elif verb == "DATA":
                    await self._say(writer, "354 send the message")
                    while await reader.readline() != b".\r\n":
                        pass
                    await asyncio.sleep(
                        random.uniform(0.005, 0.08)
                        * (12 if "127.0.0.6" in str(writer.get_extra_info("sockname")) else 1)
                    )
                    await self._say(writer, "250 2.0.0 taken")
                else:
                    await self._say(writer, "221 2.0.0 bye" if verb == "QUIT" else "250 2.0.0 ok")
                    if verb == "QUIT":
                        break
        writer.close()

    def _recipient(self, line: str) -> str:
        address = line.partition("<")[2].partition(">")[0]
        kind = address.partition("-")[0]
        if kind == "gone":
            return "550 5.1.1 no such user"
        if kind in ("full", "policy") and address not in self._deferred:
            self._deferred.add(address)
            return "452 4.2.2 mailbox full" if kind == "full" else "450 4.7.1 too much mail from your address"
        return "250 2.1.5 ok"

    @staticmethod
    async def _say(writer: asyncio.StreamWriter, text: str) -> None:
        writer.write(text.encode() + b"\r\n")
        await writer.drain()


class Senders:
    """SMTP clients of the ingresses; counts replies by first digit."""

    def __init__(self, ports: Sequence[int], *, per_second: float, local: Sequence[str], seed: int = 1) -> None:
        self._ports = ports
        self._per_second = per_second
        self._local = local
        self._random = random.Random(seed)
        self._count = 0
        self.answers: dict[str, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as sessions:
            while not stop.is_set():
                now = asyncio.get_running_loop().time() - began
                burst = 6 if int(now) % 30 == 7 else 1  # a burst to slow.test
                for _ in range(burst):
                    sessions.create_task(self._session(slow=burst > 1))
                wave = 1.0 + 0.5 * (int(now / 15) % 3)
                await asyncio.sleep(3 / (self._per_second * wave))

    async def _session(self, *, slow: bool) -> None:
        """Send three messages in one session."""
        client = aiosmtplib.SMTP(
            hostname="127.0.0.1", port=self._random.choice(self._ports), timeout=60, start_tls=False
        )
        try:
            await client.connect()
            for _ in range(3):
                await self._message(client, slow=slow)
            if self._random.random() < 0.9:
                await client.quit()
        except (aiosmtplib.SMTPException, OSError) as error:
            self._note(str(getattr(error, "code", "lost"))[:1])
        finally:
            client.close()

    async def _message(self, client: aiosmtplib.SMTP, *, slow: bool) -> None:
        self._count += 1
        pick = self._random.random()
        sender = self._random.choice(
            (*("alice@example.test",) * 30, *("someone@client.test",) * 9, "someone@broken.test")
        )
        if slow:
            recipients = [f"ok-{self._count}@slow.test"]
        elif pick < 0.4:
            recipients = [self._random.choice(self._local)]
        elif pick < 0.97:
            domain = self._random.choice(("remote.test", "google.test", "microsoft.test"))
            recipients = [f"{self._random.choice(KINDS)}-{self._count}@{domain}"]
        elif pick < 0.98:
            recipients = [f"ok-{self._count}@{self._random.choice((DOWN[0], 'nowhere.test', 'broken.test'))}"]
        else:
            recipients = ["nobody@example.test", self._local[0]]
        size = self._random.choice((700, 1500, 3000, 6000, 20_000, 90_000))
        head = b"Received: from a by b\r\n" * (60 if self._random.random() < 0.03 else 1)
        body = head + b"Subject: load\r\n\r\n" + b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * (size // 72)
        try:
            await client.sendmail(sender, recipients, body)
            self._note("2")
        except (aiosmtplib.SMTPDataError, aiosmtplib.SMTPSenderRefused) as error:
            self._note(str(error.code)[:1])
        except aiosmtplib.SMTPRecipientsRefused as error:
            self._note(str(error.recipients[0].code)[:1])

    def _note(self, digit: str) -> None:
        self.answers[digit] = self.answers.get(digit, 0) + 1


async def fetch_mail(ports: Sequence[int], users: Sequence[str], stop: asyncio.Event) -> None:
    """POP3 clients that fetch their mail every few seconds, sometimes with a wrong password."""

    async def owner(port: int, user: str, chance: random.Random) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, EOFError):
                await asyncio.to_thread(_fetch, port, user, chance)
            await asyncio.sleep(chance.uniform(0.5, 3))

    async with asyncio.TaskGroup() as owners:
        for number, (port, user) in enumerate(itertools.product(ports, users)):
            owners.create_task(owner(port, user, random.Random(number)))


def _fetch(port: int, user: str, chance: random.Random) -> None:
    pop = poplib.POP3("127.0.0.1", port, timeout=20)
    try:
        pop.user(user)
        pop.pass_(PASSWORD if chance.random() < 0.85 else "mistyped")
        for number in range(1, min(30, pop.stat()[0]) + 1):
            pop.retr(number)
            pop.dele(number)
            time.sleep(chance.uniform(0, 0.1))  # a slow client
        pop.quit()
    except poplib.error_proto:
        pop.close()


@contextlib.asynccontextmanager
async def outside() -> AsyncIterator[tuple[DnsServer, RemoteServers]]:
    """The DNS server and the remote servers, running."""
    remote = RemoteServers()
    async with DnsServer(zone()) as dns_server:
        await remote.start()
        try:
            yield dns_server, remote
        finally:
            await remote.stop()
