"""Proof by bookkeeping: a source that knows what was promised, a sink that knows what arrived.

Every message has an id, in its `X-Id` header and nowhere else. The source notes for each whether the server said 250
after the dot (*promised*: it must arrive), nothing (*unknown*: the connection died between the dot and the reply; it
may or may not arrive), or was refused (*refused*: it must not arrive). The sink counts each id it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

X_ID = re.compile(rb"^X-Id: (\S+)\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Posting:
    """One message to send."""

    id: str
    sender: str
    recipients: tuple[str, ...]
    size_bytes: int = 2000

    def content(self) -> bytes:
        head = (
            f"From: <{self.sender or 'mailer-daemon@example.test'}>\r\n"
            f"To: {', '.join(f'<{name}>' for name in self.recipients)}\r\n"
            f"Subject: accounted {self.id}\r\nX-Id: {self.id}\r\n\r\n"
        ).encode()
        line = b"0123456789 every line of this is accounted for, to the last one. 0123456789\r\n"
        lines, rest = divmod(max(0, self.size_bytes - len(head)), len(line))
        return head + line * lines + (b"x" * max(0, rest - 2) + b"\r\n" if rest else b"")


@dataclass(frozen=True, slots=True, order=True)
class Answer:
    """A 4xx: when it came, how long after what it answers ("connect", "MAIL", "RCPT", "DATA" or "dot")."""

    at: float
    to: str
    seconds: float
    reply: bytes


@dataclass(slots=True)
class Source:
    """Sends postings over `sessions` connections, again and again until each is promised, unknown or refused.

    With `once`, a 4xx before the dot is final too: such a posting is `turned_away`, and must not arrive.
    """

    port: int
    sessions: int = 20
    per_connection: int = 50
    once: bool = False
    dot_after_seconds: float = 0.0  # between the content and its final dot
    promised: dict[str, Posting] = field(default_factory=dict, repr=False)
    unknown: dict[str, Posting] = field(default_factory=dict)
    refused: dict[str, Posting] = field(default_factory=dict)
    turned_away: dict[str, Posting] = field(default_factory=dict)
    queue_ids: dict[str, str] = field(default_factory=dict, repr=False)  # of what was promised
    answers: list[Answer] = field(default_factory=list, repr=False)
    accept_seconds: list[float] = field(default_factory=list, repr=False)  # from the dot to its 250
    sent_at: dict[str, float] = field(default_factory=dict, repr=False)
    promised_at: dict[str, float] = field(default_factory=dict, repr=False)
    connections_lost: int = 0
    silences: int = 0  # of them, those where no answer came at all
    temporary_refusals: int = 0
    _stop: bool = False

    def stop(self) -> None:
        """No further message is begun."""
        self._stop = True

    async def send(self, postings: Iterable[Posting], *, per_second: float | None = None) -> None:
        """Return when every posting has its fate, or after `stop()`. Servers that are away are waited for."""
        supply = iter(postings)
        begun = time.monotonic()
        count = 0

        async def take() -> Posting | None:
            nonlocal count
            posting = next(supply, None)
            due = begun + count / per_second if per_second else begun
            count += 1  # before the wait: or all sessions wait for the same instant, and come together
            if posting is not None:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            return posting

        await asyncio.gather(*(self._session(take) for _ in range(self.sessions)))

    async def _session(self, take: Callable[[], object]) -> None:
        posting: Posting | None = await take()  # type: ignore[misc]
        while posting is not None and not self._stop:
            writer = None
            began = time.monotonic()
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                greeting = await _reply(reader)
                if not greeting.startswith(b"220"):
                    self._note(greeting, "connect", began)
                    await asyncio.sleep(0.2)
                    continue
                await _say(reader, writer, b"EHLO source.test\r\n", b"250")
                for _ in range(self.per_connection):
                    if not await self._one(reader, writer, posting):
                        await asyncio.sleep(0.05)  # a 4xx before the dot: it is still to be sent
                        break
                    posting = await take()  # type: ignore[misc]
                    if posting is None or self._stop:
                        break
                writer.write(b"QUIT\r\n")
            except (OSError, asyncio.IncompleteReadError, _Away) as error:
                self.connections_lost += 1
                self.silences += isinstance(error, TimeoutError)
                if posting is not None and (posting.id in self.unknown or posting.id in self.turned_away):
                    posting = await take()  # type: ignore[misc]
                await asyncio.sleep(0.02)
            finally:
                if writer is not None:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, posting: Posting) -> bool:
        """True when the posting has its fate; False when it is to be sent again."""
        commands = [f"MAIL FROM:<{posting.sender}>\r\n", *(f"RCPT TO:<{name}>\r\n" for name in posting.recipients)]
        began = time.monotonic()
        writer.write("".join(commands).encode() + b"DATA\r\n")
        replies = []
        for command in (*commands, "DATA"):
            replies.append(await _reply(reader))
            if replies[-1].startswith(b"421"):
                self._note(replies[-1], command[:4], began)
                self.temporary_refusals += 1
                if self.once:
                    self.turned_away[posting.id] = posting
                raise _Away
        data = replies.pop()
        if not data.startswith(b"354"):
            worst, to = next(
                ((reply, command) for reply, command in zip(replies, commands, strict=True) if reply[:1] in b"45"),
                (data, "DATA"),
            )
            self._note(worst, to[:4], began)
            if self.once and worst.startswith(b"4"):
                self.turned_away[posting.id] = posting
            await _say(reader, writer, b"RSET\r\n", b"250")
            if worst.startswith(b"5"):
                self.refused[posting.id] = posting
                return True
            self.temporary_refusals += 1
            return self.once
        content = posting.content()
        writer.write(content.replace(b"\r\n.", b"\r\n.."))
        await writer.drain()
        if self.dot_after_seconds:
            await asyncio.sleep(self.dot_after_seconds)
        self.unknown[posting.id] = posting  # from the dot on, nobody knows until the reply is here
        self.sent_at[posting.id] = dot = time.monotonic()
        writer.write(b".\r\n")
        reply = await _reply(reader)
        if reply.startswith(b"250"):
            self.promised_at[posting.id] = time.monotonic()
            self.accept_seconds.append(self.promised_at[posting.id] - dot)
            self.promised[posting.id] = posting
            self.queue_ids[posting.id] = reply.partition(b"queued as ")[2].decode().strip()
            del self.unknown[posting.id]
            return True
        self._note(reply, "dot", dot)
        if reply.startswith(b"5"):
            self.refused[posting.id] = posting
            del self.unknown[posting.id]
            return True
        self.temporary_refusals += 1  # a 4xx after the dot may still have been written: unknown for ever
        return True

    def _note(self, reply: bytes, to: str, began: float) -> None:
        if reply.startswith(b"4"):
            now = time.monotonic()
            self.answers.append(Answer(now, to, now - began, reply.strip()))


class _Away(Exception):
    """The server hung up, or spoke out of turn."""


async def _reply(reader: asyncio.StreamReader) -> bytes:
    while True:
        line = await asyncio.wait_for(reader.readline(), 60)
        if not line.endswith(b"\n"):
            raise _Away
        if line[3:4] != b"-":
            return line


async def _expect(reader: asyncio.StreamReader, code: bytes) -> None:
    if not (await _reply(reader)).startswith(code):
        raise _Away


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes, code: bytes) -> None:
    writer.write(line)
    await _expect(reader, code)


@dataclass(slots=True)
class Arrival:
    """What the sink took: the ids' owners, and when."""

    id: str
    recipient: str
    at: float
    sender: str
    content: bytes


class Sink:
    """An SMTP server that counts. Recipients whose local part starts with `refused` get 550; with `later`, 451 once.

    `stop()` hangs up on everybody at once and lets the port go; `start()` takes the same port again; `pause()` leaves
    connections open and answers nothing, like a stopped process; `hush()` lets one host answer no final dot, and
    take nothing, until `resume()`.
    """

    def __init__(self, *, port: int = 0, keep: bool = False, hosts: Sequence[str] = ("127.0.0.1",)) -> None:
        """`hosts`: addresses of loopback, each a site of its own for whoever delivers to it."""
        self.port = port
        self.hosts = hosts
        self.keep = keep
        self.taken: Counter[tuple[str, str]] = Counter()  # (id, recipient)
        self.contents: dict[str, set[bytes]] = {}  # digests of what arrived under an id, without the hops' headers
        self.first_at: dict[str, float] = {}
        self.arrivals: list[Arrival] = []
        self.without_id = 0
        self.connections = 0
        self._seen_later: set[str] = set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._going = asyncio.Event()
        self._going.set()
        self._hushed: dict[str, asyncio.Event] = {}
        self.held = 0  # messages whose final dot a hushed host leaves without an answer, now

    @property
    def duplicates(self) -> int:
        """Copies beyond the first, of all ids and recipients."""
        return sum(count - 1 for count in self.taken.values())

    def ids(self) -> set[str]:
        return {id_ for id_, _ in self.taken}

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, list(self.hosts), self.port, limit=1 << 20, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None
            for _ in range(len(self._open) + 10):  # each sees its end
                await asyncio.sleep(0)

    def pause(self) -> None:
        self._going.clear()

    def hush(self, host: str) -> None:
        self._hushed[host] = asyncio.Event()

    def resume(self) -> None:
        self._going.set()
        for hushed in self._hushed.values():
            hushed.set()
        self._hushed.clear()

    async def __aenter__(self) -> Sink:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.resume()
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self.connections += 1
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = writer.get_extra_info("sockname")[0]
        await self._going.wait()
        writer.write(b"220 sink.test ESMTP\r\n")
        sender, recipients = "", list[str]()
        while line := await reader.readline():
            await self._going.wait()
            verb = line[:4].upper()
            if verb == b"EHLO":
                writer.write(
                    b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES\r\n"
                )
            elif verb == b"MAIL":
                sender, recipients = _path(line), []
                writer.write(b"250 2.1.0 Ok\r\n")
            elif verb == b"RCPT":
                answer = self._recipient(_path(line))
                if answer.startswith(b"250"):
                    recipients.append(_path(line))
                writer.write(answer)
            elif verb == b"DATA" and not recipients:
                writer.write(b"554 5.5.1 No valid recipients\r\n")
            elif verb == b"DATA":
                writer.write(b"354 Go on\r\n")
                content = (await _content(reader)).replace(b"\r\n..", b"\r\n.")
                await self._going.wait()
                await self._hold(host)
                self._took(sender, recipients, content)
                writer.write(b"250 2.0.0 Taken\r\n")
                recipients = []
            elif verb == b"QUIT":
                writer.write(b"221 2.0.0 Bye\r\n")
                await writer.drain()
                return
            else:
                writer.write(b"250 2.0.0 Ok\r\n")

    async def _hold(self, host: str) -> None:
        hushed = self._hushed.get(host)
        if hushed is not None:
            self.held += 1
            await hushed.wait()
            self.held -= 1

    def _recipient(self, address: str) -> bytes:
        if address.startswith("refused"):
            return b"550 5.1.1 No such user\r\n"
        if address.startswith("later") and address not in self._seen_later:
            self._seen_later.add(address)
            return b"451 4.3.0 Later\r\n"
        return b"250 2.1.5 Ok\r\n"

    def _took(self, sender: str, recipients: list[str], content: bytes) -> None:
        found = X_ID.search(content, 0, 8192)
        if found is None:
            self.without_id += 1
            return
        id_ = found[1].decode()
        now = time.monotonic()
        self.first_at.setdefault(id_, now)
        self.contents.setdefault(id_, set()).add(digest(content))
        for recipient in recipients:
            self.taken[id_, recipient] += 1
            if self.keep:
                self.arrivals.append(Arrival(id_, recipient, now, sender, content))


def digest(content: bytes) -> bytes:
    """Of a posting's content, whatever headers were put before it on its way."""
    return blake2b(content[content.index(b"From: <") :], digest_size=16).digest()


async def _content(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = [b"\r\n"]
    while True:
        try:
            parts.append(await reader.readuntil(b"\r\n.\r\n"))
        except asyncio.LimitOverrunError as error:
            parts.append(await reader.readexactly(error.consumed))
            continue
        return b"".join(parts)[2:-3]


def _path(line: bytes) -> str:
    start = line.find(b"<")
    return line[start + 1 : line.find(b">", start)].decode()
