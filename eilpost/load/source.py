"""Source of a load: sends messages over N sessions and reports the server's replies.

A message is sent until it has a final result: accepted (250 after the dot), refused (5xx), or in doubt (the connection
was lost between the dot and the reply). After a 4xx, a refused connection or a connection lost before the dot, it is
sent again to the next target after a back-off.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from delivery.reply_parser import ServerReply
from eilpost.load.client import Client, ConnectionLost
from eilpost.load.supply import Supply
from eilpost.load.target import NameNotResolved, Target
from eilpost.load.workload import OutgoingMessage

_CONNECT_SECONDS = 10.0
_QUIT_SECONDS = 2.0
_SMALL_BYTES = 65536  # the high-water mark of a transport's write buffer


class Stage(StrEnum):
    """The command that a reply belongs to."""

    CONNECT = "connect"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    DOT = "dot"


class Recorder(Protocol):
    """Receives the events of messages and connections, in order, for the recipients in `message.recipients`."""

    def dot(self, message: OutgoingMessage) -> None:
        """The final dot is about to be written."""

    def accepted(self, message: OutgoingMessage, reply: ServerReply) -> None: ...

    def refused(self, message: OutgoingMessage, reply: ServerReply, stage: Stage) -> None: ...

    def in_doubt(self, message: OutgoingMessage, error: BaseException) -> None:
        """No reply to the dot: the connection was lost, no reply came in time, or the source was cancelled."""

    def deferred(self, message: OutgoingMessage, reply: ServerReply, stage: Stage, seconds: float) -> bool:
        """A 4xx, `seconds` after its command; returns whether to send the message again."""

    def connection_refused(self, reason: str) -> None: ...

    def connection_lost(self, message: OutgoingMessage, stage: Stage, error: Exception) -> bool:
        """The connection was lost before the dot (TimeoutError: no reply in time); returns whether to send again."""


@dataclass(slots=True)
class _Attempt:
    message: OutgoingMessage  # with the recipients that are not decided yet
    stage: Stage = Stage.MAIL
    is_decided: bool = False  # every recipient has a result


@dataclass(eq=False)
class Source:
    targets: Sequence[Target]
    supply: Supply
    recorder: Recorder
    _: KW_ONLY
    sessions: int = 20
    per_connection: int = 100  # messages
    name: str = "load.test"
    back_off_seconds: tuple[float, float] = (0.1, 5.0)  # the first and the longest
    reply_seconds: float = 60.0
    connections: int = field(default=0, init=False)  # opened so far

    async def run(self) -> None:
        """Send until the supply ends. Raises TargetRefused. When cancelled, messages past the dot are in doubt."""
        async with asyncio.TaskGroup() as sessions:
            for number in range(self.sessions):
                sessions.create_task(self._session(number))

    async def _session(self, target_index: int) -> None:
        client: Client | None = None
        sent = failures = 0
        try:
            while (message := await self.supply.take()) is not None:
                if client is not None and not client.is_idle:  # closed by the server
                    await _quit(client)
                    client = None
                if client is None:
                    client, target_index = await self._connect(message, target_index)
                    sent = 0
                    if client is None:  # the session waits too, else waiting messages would grow at the full rate
                        failures += 1
                        seconds = self._back_off(failures)
                        self.supply.retry(message, seconds)
                        await asyncio.sleep(seconds)
                        continue
                failures = 0
                sent += 1
                is_usable = await self._send(client, message)
                if not is_usable or sent >= self.per_connection:  # close now: the next message may be due much later
                    await _quit(client) if is_usable else client.transport.abort()
                    client = None
                    target_index += 1
        finally:
            if client is not None:
                client.write(b"QUIT\r\n")
                client.transport.close()

    async def _connect(self, message: OutgoingMessage, target_index: int) -> tuple[Client | None, int]:
        """A client of the first usable target from `target_index` on; None if there is none."""
        for _ in self.targets:
            target = self.targets[target_index % len(self.targets)]
            client: Client | None = None
            started_at = time.monotonic()
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    address = await target.address()
                    _, client = await asyncio.get_running_loop().create_connection(Client, address, target.port)
                    self.connections += 1
                    reply = await client.greet(self.name)
                if reply.positive:
                    return client, target_index
                if reply.code < 500:
                    self.recorder.deferred(message, reply, Stage.CONNECT, time.monotonic() - started_at)
                else:
                    self.recorder.connection_refused(str(reply.to_reply()))
                await _quit(client)
            except (OSError, TimeoutError, NameNotResolved) as error:
                self.recorder.connection_refused(error_text(error))
                if client is not None:
                    client.transport.abort()
            except ConnectionLost as error:
                self.recorder.connection_lost(message, Stage.CONNECT, error)
                assert client is not None
                client.transport.abort()
            target_index += 1
        return None, target_index

    async def _send(self, client: Client, message: OutgoingMessage) -> bool:
        """Run one transaction; returns whether the connection can be reused."""
        attempt = _Attempt(message)
        try:
            async with asyncio.timeout(self.reply_seconds):
                return await self._transaction(client, attempt)
        except (ConnectionLost, TimeoutError) as error:
            if attempt.is_decided:
                pass
            elif attempt.stage is Stage.DOT:
                self.recorder.in_doubt(attempt.message, error)
                self.supply.finished()
            elif self.recorder.connection_lost(attempt.message, attempt.stage, error):
                self.supply.retry(attempt.message, self._back_off(message.attempts))
            else:
                self.supply.finished()
            return False
        except asyncio.CancelledError as error:
            if attempt.stage is Stage.DOT:
                self.recorder.in_doubt(attempt.message, error)
                self.supply.finished()
            raise

    async def _transaction(self, client: Client, attempt: _Attempt) -> bool:
        started_at = time.monotonic()
        message = attempt.message
        size = f" SIZE={message.size_bytes}" if client.supports_size else ""
        commands = [
            f"MAIL FROM:<{message.sender}>{size}\r\n".encode(),
            *(f"RCPT TO:<{name}>\r\n".encode() for name in message.recipients),
            b"DATA\r\n",
        ]
        replies = await self._commands(client, commands, attempt)
        accepted = [
            name
            for name, reply in zip(message.recipients, replies[1:-1], strict=False)
            if reply.positive and replies[0].positive
        ]
        if replies[-1].code != 354 or not accepted:
            return await self._handle_refusals(client, attempt, replies, started_at)
        if len(accepted) < len(message.recipients):
            message = attempt.message = self._split(message, accepted, replies[1:-1], started_at)
        final_data = await self.write_content(client, message)
        attempt.stage = Stage.DOT
        started_at = time.monotonic()
        self.recorder.dot(message)
        client.write(*final_data)
        reply = await client.reply()
        if reply.positive:
            self.recorder.accepted(message, reply)
            self.supply.finished()
        else:
            self._not_accepted(message, reply, Stage.DOT, started_at)
        return reply.code != 421

    async def write_content(self, client: Client, message: OutgoingMessage) -> tuple[bytes, ...]:
        """Send large content; returns the data to write with the dot, which includes small content."""
        if message.size_bytes <= _SMALL_BYTES:
            return message.head, message.body, b".\r\n"
        client.write(message.head, message.body)
        await client.drain()
        return (b".\r\n",)

    async def _commands(self, client: Client, commands: Sequence[bytes], attempt: _Attempt) -> list[ServerReply]:
        """The replies to MAIL, RCPT and DATA, pipelined if the server offers PIPELINING (RFC 2920), else up to the
        first one that ends the transaction.
        """
        replies: list[ServerReply] = []
        if client.pipelining:
            client.write(b"".join(commands))
        for number, command in enumerate(commands):
            attempt.stage = _stage(number, len(commands))
            if not client.pipelining:
                if attempt.stage is Stage.DATA and not any(reply.positive for reply in replies[1:]):
                    break
                client.write(command)
            replies.append(await client.reply())
            if replies[-1].code == 421 or (not client.pipelining and replies[0].negative):
                break
        return replies

    async def _handle_refusals(
        self, client: Client, attempt: _Attempt, replies: Sequence[ServerReply], started_at: float
    ) -> bool:
        """No recipient or DATA was accepted: the first refusal decides, or each recipient's reply and, for accepted
        recipients, the reply to DATA. Returns whether the connection can be reused.
        """
        message, count = attempt.message, len(attempt.message.recipients) + 2
        index = next((index for index, reply in enumerate(replies) if reply.code == 421), None)
        if index is None:
            index = next((index for index, reply in enumerate(replies) if reply.negative), len(replies) - 1)
        stage = _stage(index, count)
        closing = replies[index].code == 421
        if stage is Stage.RCPT and count > 3 and not closing:
            rcpt_replies = replies[1 : count - 1]
            accepted = [name for name, reply in zip(message.recipients, rcpt_replies, strict=False) if reply.positive]
            remaining = self._split(message, accepted, rcpt_replies, started_at)
            if accepted:
                self._not_accepted(remaining, replies[-1], Stage.DATA, started_at)
        else:
            self._not_accepted(message, replies[index], stage, started_at)
        attempt.is_decided = True
        if not closing:
            # RFC 2920 section 3.1: a single dot ends DATA when no recipient was accepted.
            await client.command(b".\r\n" if replies[-1].code == 354 else b"RSET\r\n")
        return not closing

    def _split(
        self, message: OutgoingMessage, accepted: Sequence[str], replies: Sequence[ServerReply], started_at: float
    ) -> OutgoingMessage:
        """Report the refused recipients; returns the message for the accepted ones. A 3xx counts as 4xx."""
        for is_final in (False, True):
            refused = [
                (name, reply)
                for name, reply in zip(message.recipients, replies, strict=False)
                if not reply.positive and (reply.code >= 500) == is_final
            ]
            if refused:
                names = tuple(name for name, _ in refused)
                self.supply.split()
                self._not_accepted(replace(message, recipients=names), refused[0][1], Stage.RCPT, started_at)
        if not accepted:
            self.supply.finished()
        return replace(message, recipients=tuple(accepted))

    def _not_accepted(self, message: OutgoingMessage, reply: ServerReply, stage: Stage, started_at: float) -> None:
        """Report a message that was not accepted, and retry it after 4xx."""
        if reply.code >= 500:
            self.recorder.refused(message, reply, stage)
            self.supply.finished()
        elif self.recorder.deferred(message, reply, stage, time.monotonic() - started_at):
            self.supply.retry(message, self._back_off(message.attempts))
        else:
            self.supply.finished()

    def _back_off(self, failures: int) -> float:
        """Exponential, with jitter."""
        first, longest = self.back_off_seconds
        return min(longest, first * 2.0 ** min(failures, 20)) * random.uniform(0.5, 1.0)  # noqa: S311


async def _quit(client: Client) -> None:
    with suppress(ConnectionLost, TimeoutError):
        async with asyncio.timeout(_QUIT_SECONDS):
            await client.command(b"QUIT\r\n")
    client.transport.close()


def _stage(number: int, count: int) -> Stage:
    return Stage.MAIL if number == 0 else Stage.DATA if number == count - 1 else Stage.RCPT


def error_text(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no reply in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
