"""Message accounting for fault tests: a source that records replies and a sink that records arrivals.

Each message has its id in its `X-Id` header only. After the final dot the source records *promised* (250: it must
arrive), *unknown* (connection lost before the reply: it may arrive) or *refused* (it must not arrive). The sink counts
each id.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from delivery.reply_parser import ServerReply as SmtpAnswer
from eilpost.load.client import Client
from eilpost.load.sink import Sink as ProductSink
from eilpost.load.sink import SinkSession
from eilpost.load.source import Source as ProductSource
from eilpost.load.source import Stage
from eilpost.load.supply import Supply
from eilpost.load.target import Target
from eilpost.load.workload import OutgoingMessage

X_ID = re.compile(rb"^X-Id: (\S+)\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class AccountedMessage:
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
class TemporaryReply:
    """A 4xx reply: its time, and the delay after its command ("connect", "MAIL", "RCPT", "DATA" or "dot")."""

    at: float
    stage: str
    seconds: float
    reply: bytes


@dataclass(slots=True)
class Source:
    """Sends messages over `sessions` connections and retries each until it is promised, unknown or refused.

    With `once`, a 4xx before the dot is final: the message is `turned_away` and must not arrive.
    """

    port: int
    sessions: int = 20
    per_connection: int = 50
    once: bool = False
    dot_after_seconds: float = 0.0  # between the content and its final dot
    promised: dict[str, AccountedMessage] = field(default_factory=dict, repr=False)
    unknown: dict[str, AccountedMessage] = field(default_factory=dict)
    refused: dict[str, AccountedMessage] = field(default_factory=dict)
    turned_away: dict[str, AccountedMessage] = field(default_factory=dict)
    queue_ids: dict[str, str] = field(default_factory=dict, repr=False)  # of promised messages
    answers: list[TemporaryReply] = field(default_factory=list, repr=False)
    accept_seconds: list[float] = field(default_factory=list, repr=False)  # from the dot to the 250
    sent_at: dict[str, float] = field(default_factory=dict, repr=False)
    promised_at: dict[str, float] = field(default_factory=dict, repr=False)
    connections_lost: int = 0
    timeouts: int = 0  # those of `connections_lost` without any reply
    temporary_refusals: int = 0
    _supply: Supply | None = None
    _stopped: bool = False

    def stop(self) -> None:
        """Start no further message."""
        self._stopped = True
        if self._supply is not None:
            self._supply.stop()

    async def send(self, postings: Iterable[AccountedMessage], *, per_second: float | None = None) -> None:
        """Return when every message has its result, or after `stop()`. Unavailable servers are retried."""
        outgoing = (_Outgoing.of(number, posting) for number, posting in enumerate(postings))
        self._supply = Supply(outgoing, per_second=per_second, waiting_max=self.sessions)
        if self._stopped:
            self._supply.stop()
        source = _SlowDots(
            [Target("127.0.0.1", self.port)],
            self._supply,
            _SourceRecorder(self),
            sessions=self.sessions,
            per_connection=self.per_connection,
            name="source.test",
            back_off_seconds=(0.05, 0.2),
        )
        source.dot_after_seconds = self.dot_after_seconds
        await source.run()


class _SourceRecorder:
    """Records the events of `eilpost load`'s source by message."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def dot(self, message: OutgoingMessage) -> None:
        posting = _posting(message)
        self._source.unknown[posting.id] = posting  # until the reply arrives
        self._source.sent_at[posting.id] = time.monotonic()

    def accepted(self, message: OutgoingMessage, answer: SmtpAnswer) -> None:
        source, posting, now = self._source, _posting(message), time.monotonic()
        source.promised_at[posting.id] = now
        source.accept_seconds.append(now - source.sent_at[posting.id])
        source.promised[posting.id] = posting
        source.queue_ids[posting.id] = answer.lines[-1].partition(b"queued as ")[2].decode().strip()
        del source.unknown[posting.id]

    def refused(self, message: OutgoingMessage, answer: SmtpAnswer, stage: Stage) -> None:
        posting = _posting(message)
        self._source.refused[posting.id] = posting
        self._source.unknown.pop(posting.id, None)

    def in_doubt(self, message: OutgoingMessage, error: BaseException) -> None:
        self._lost(error)

    def deferred(self, message: OutgoingMessage, answer: SmtpAnswer, stage: Stage, seconds: float) -> bool:
        source = self._source
        reply = b"%d %b" % (answer.code, answer.lines[-1])
        source.answers.append(TemporaryReply(time.monotonic(), str(stage), seconds, reply))
        if stage is Stage.CONNECT:
            return True
        source.temporary_refusals += 1
        if stage is Stage.DOT:  # the message may have been written: stays unknown
            return False
        if source.once:
            source.turned_away[_posting(message).id] = _posting(message)
        return not source.once

    def connection_refused(self, reason: str) -> None:
        self._source.connections_lost += 1

    def connection_lost(self, message: OutgoingMessage, stage: Stage, error: Exception) -> bool:
        self._lost(error)
        return True

    def _lost(self, error: BaseException) -> None:
        self._source.connections_lost += 1
        self._source.timeouts += isinstance(error, TimeoutError)


@dataclass(frozen=True, slots=True)
class _Outgoing(OutgoingMessage):
    posting: AccountedMessage | None = None

    @classmethod
    def of(cls, number: int, posting: AccountedMessage) -> _Outgoing:
        body = posting.content().replace(b"\r\n.", b"\r\n..")
        return cls(number, posting.sender, posting.recipients, b"", body, posting=posting)


def _posting(message: OutgoingMessage) -> AccountedMessage:
    assert isinstance(message, _Outgoing)
    assert message.posting is not None
    return message.posting


class _SlowDots(ProductSource):
    dot_after_seconds = 0.0

    async def write_content(self, client: Client, message: OutgoingMessage) -> tuple[bytes, ...]:
        rest = await super().write_content(client, message)
        if self.dot_after_seconds:
            if len(rest) > 1:
                client.write(*rest[:-1])
            await asyncio.sleep(self.dot_after_seconds)
        return rest[-1:] if self.dot_after_seconds else rest


class Sink(ProductSink):
    """The sink of `eilpost load` with counts by id and recipient, and with faults.

    Recipients whose local part starts with `refused` get 550, with `later` 451 once. `stop()` drops all connections and
    frees the port; `start()` binds it again; `pause()` keeps connections open without replies, like a stopped process;
    `stall_host()` leaves the final dots of one host unanswered until `resume()`.
    """

    def __init__(self, *, port: int = 0, hosts: Sequence[str] = ("127.0.0.1",)) -> None:
        """`hosts`: loopback addresses, each a site of its own."""
        super().__init__(self, tuple(hosts), port)
        self.taken: Counter[tuple[str, str]] = Counter()  # (id, recipient)
        self.contents: dict[str, set[bytes]] = {}  # digests by id, without added trace headers
        self.first_at: dict[str, float] = {}
        self.is_paused = False
        self._seen_later: set[str] = set()
        self._stalled_hosts: set[str] = set()
        self._stalled: list[_SinkSession] = []

    @property
    def duplicates(self) -> int:
        """Copies beyond the first, over all ids and recipients."""
        return sum(count - 1 for count in self.taken.values())

    @property
    def stalled_count(self) -> int:
        """Number of messages whose final dot a stalled host has not answered."""
        return len(self._stalled)

    def ids(self) -> set[str]:
        return {id_ for id_, _ in self.taken}

    def pause(self) -> None:
        self.is_paused = True

    def stall_host(self, host: str) -> None:
        self._stalled_hosts.add(host)

    def resume(self) -> None:
        self.is_paused = False
        self._stalled_hosts.clear()
        held, self._stalled = self._stalled, []
        for session in [*held, *self.open]:
            if isinstance(session, _SinkSession):
                session.resume()

    async def __aexit__(self, *_: object) -> None:
        self.resume()
        await self.stop()

    def make_session(self) -> SinkSession:
        return _SinkSession(self)

    def stalls(self, session: _SinkSession) -> bool:
        """Whether the final dot that just arrived stays unanswered."""
        if session.host in self._stalled_hosts:
            self._stalled.append(session)
            return True
        return False

    # The `Destinations` protocol of eilpost.load.sink

    def recipient(self, address: str) -> bytes | None:
        if address.startswith("refused"):
            return b"550 5.1.1 No such user\r\n"
        if address.startswith("later") and address not in self._seen_later:
            self._seen_later.add(address)
            return b"451 4.3.0 Later\r\n"
        return None

    def message(self, sender: str, recipients: list[str], content: bytes) -> None:
        found = X_ID.search(content, 0, 8192)
        if found is not None:
            id_ = found[1].decode()
            self.first_at.setdefault(id_, time.monotonic())
            self.contents.setdefault(id_, set()).add(digest(content.replace(b"\r\n..", b"\r\n.")))
            self.taken.update((id_, recipient) for recipient in recipients)


class _SinkSession(SinkSession):
    sink: Sink

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._is_greeted = False
        self._unprocessed = bytearray()  # received while paused
        self._content: bytes | None = None  # received with its dot, for a stalled host

    def greet(self) -> None:
        self._is_greeted = not self.sink.is_paused
        if self._is_greeted:
            super().greet()

    def data_received(self, data: bytes) -> None:
        if self.sink.is_paused or self._content is not None:
            self._unprocessed += data
        else:
            super().data_received(data)

    def accept_message(self, content: bytes) -> bool:
        if self.sink.stalls(self):
            self._content = content
            return False
        return super().accept_message(content)

    def resume(self) -> None:
        if not self._is_greeted:
            self.greet()
        content, self._content = self._content, None
        if content is not None:
            self.accept_message(content)  # even if the client has disconnected meanwhile
        late, self._unprocessed = bytes(self._unprocessed), bytearray()
        super().data_received(late)


def digest(content: bytes) -> bytes:
    """Digest of a message's content without the headers added on its way."""
    return blake2b(content[content.index(b"From: <") :], digest_size=16).digest()
