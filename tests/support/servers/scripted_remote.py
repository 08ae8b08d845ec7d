"""Scripted remote SMTP or LMTP server that records commands and can fail at any point.

    async with ScriptedRemote() as remote:                            # accepts everything
    async with ScriptedRemote({"RCPT": ["250 ok", "550 5.1.1 unknown"]}) as remote:
        # replies to the first, second, ... RCPT of the whole server; the last one is repeated
    async with ScriptedRemote({"DATA": [Drop()]}) as remote:          # closes the connection instead of replying

Script keys: "GREETING", a verb ("EHLO", "LHLO", "HELO", "MAIL", "RCPT", "DATA", "RSET", "QUIT", "NOOP"), or "DOT" for
the reply to the final dot (LMTP: one per accepted recipient). A reply is a string (lines separated by LF, CRLF added),
bytes (unchanged), `Drop()`, `Stall()`, or `Then(reply, Drop())`. `messages` were accepted with 2xx at the dot;
connections with their number in `close_at_next_command` are closed at the next command.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.servers.listener import Listener, settle, streams


@dataclass(frozen=True)
class Drop:
    """Close the connection without a reply; by RST with `reset`."""

    reset: bool = False


@dataclass(frozen=True)
class Stall:
    """Never reply; the connection stays open."""


@dataclass(frozen=True)
class Then:
    """Reply with `answer`, then do `next`."""

    answer: str | bytes
    next: Drop | Stall


@dataclass(frozen=True)
class Wait:
    """Reply after `event` is set (`Wait(event, "250 ok")`)."""

    event: asyncio.Event
    answer: str | bytes


ScriptedReply = str | bytes | Drop | Stall | Then | Wait

DEFAULT_REPLIES: Mapping[str, ScriptedReply] = {
    "GREETING": "220 remote.example.test ESMTP",
    "HELO": "250 remote.example.test",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 send the message",
    "DOT": "250 2.0.0 accepted",
    "RSET": "250 2.0.0 ok",
    "NOOP": "250 2.0.0 ok",
    "QUIT": "221 2.0.0 bye",
}


@dataclass
class Received:
    """An accepted message: arguments of MAIL and RCPT, and the content without dot-stuffing, with its final CRLF."""

    mail: str
    rcpts: list[str]
    content: bytes
    session: int  # number of the connection, from 0


@dataclass
class Session:
    """One connection from the address `peer`."""

    peer: str = ""
    commands: list[str] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    ended: bool = False


class _Closed(Exception):
    pass


class ScriptedRemote:
    """The server, an async context manager. Listens on a free port of 127.0.0.1, or on `port`."""

    def __init__(
        self,
        script: Mapping[str, Sequence[ScriptedReply]] | None = None,
        *,
        extensions: Sequence[str] = ("PIPELINING", "SIZE 26214400", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"),
        lmtp: bool = False,
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.script = {verb: list(answers) for verb, answers in (script or {}).items()}
        self.extensions = tuple(extensions)
        self.lmtp = lmtp
        self.messages: list[Received] = []
        self.sessions: list[Session] = []
        self.close_at_next_command: set[int] = set()
        self.changed = asyncio.Condition()
        self._listener = Listener(streams(self._serve), host, port)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ScriptedRemote:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def port(self) -> int:
        return self._listener.port

    async def start(self) -> None:
        """Listen; after `stop`, on the same port again."""
        await self._listener.start()

    async def stop(self) -> None:
        """Close the listener and every connection."""
        await self._cancel_sessions()
        await self._listener.stop()

    async def drop_connections(self) -> None:
        """Close every open connection at once."""
        await self._cancel_sessions()
        await self._listener.close_connections()

    async def _cancel_sessions(self) -> None:
        await settle()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def open_connections(self) -> int:
        return len(self._tasks)

    @property
    def commands(self) -> list[str]:
        """All commands, ordered by connection."""
        return [command for session in self.sessions for command in session.commands]

    async def wait_messages(self, count: int, timeout: float = 10.0) -> list[Received]:
        """Wait for that many messages."""
        async with asyncio.timeout(timeout), self.changed:
            await self.changed.wait_for(lambda: len(self.messages) >= count)
        return self.messages

    async def wait_command(self, verb: str, timeout: float = 10.0) -> None:
        """Wait until a client has sent `verb` (or "DOT")."""
        async with asyncio.timeout(timeout), self.changed:
            await self.changed.wait_for(lambda: any(command.split(" ")[0].upper() == verb for command in self.commands))

    # Session

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number = len(self.sessions)
        session = Session(writer.get_extra_info("peername")[0])
        self.sessions.append(session)
        try:
            await self._run_session(number, session, reader, writer)
        except (_Closed, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            session.ended = True
            writer.close()
            with contextlib.suppress(Exception):
                await self._notify()

    async def _run_session(
        self, number: int, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await self._reply("GREETING", writer)
        mail = ""
        rcpts: list[str] = []
        while True:
            line = (await reader.readuntil(b"\n")).decode("utf-8", "surrogateescape").rstrip("\r\n")
            verb, _, argument = line.partition(" ")
            verb = verb.upper()
            session.commands.append(line)
            await self._notify()
            if number in self.close_at_next_command:
                raise _Closed
            match verb:
                case "EHLO" | "LHLO":
                    if verb not in self.script:
                        if (verb == "LHLO") is not self.lmtp:
                            await self._write("500 5.5.1 unknown command", writer)
                            continue
                        lines = ["remote.example.test", *self.extensions]
                        last = len(lines) - 1
                        text = "\n".join(f"250{' ' if at == last else '-'}{word}" for at, word in enumerate(lines))
                        await self._write(text, writer)
                    else:
                        await self._reply(verb, writer)
                case "MAIL":
                    if await self._reply(verb, writer) < 300:
                        mail, rcpts = argument, []
                case "RCPT":
                    if await self._reply(verb, writer) < 300:
                        rcpts.append(argument)
                case "DATA" if not rcpts and "DATA" not in self.script:
                    await self._write("554 5.5.1 no valid recipients", writer)
                case "DATA":
                    if await self._reply(verb, writer) == 354:
                        content = await self._content(reader)
                        session.commands.append("DOT")
                        await self._notify()
                        accepted: list[str] = []
                        if self.lmtp:
                            for rcpt in rcpts:
                                if await self._reply("DOT", writer) < 300:
                                    accepted.append(rcpt)
                        elif not rcpts and "DOT" not in self.script:
                            await self._write("554 5.5.1 no valid recipients", writer)
                        elif await self._reply("DOT", writer) < 300:
                            accepted = rcpts
                        if accepted:
                            self.messages.append(Received(mail, list(accepted), content, number))
                            await self._notify()
                        mail, rcpts = "", []
                case "RSET":
                    mail, rcpts = "", []
                    await self._reply(verb, writer)
                case "QUIT":
                    await self._reply(verb, writer)
                    return
                case _ if verb in DEFAULT_REPLIES or verb in self.script:
                    await self._reply(verb, writer)
                case _:
                    await self._write("500 5.5.1 unknown command", writer)

    async def _content(self, reader: asyncio.StreamReader) -> bytes:
        lines = []
        while (line := await _line(reader)) != b".\r\n":
            lines.append(line[1:] if line.startswith(b".") else line)
        return b"".join(lines)

    async def _reply(self, key: str, writer: asyncio.StreamWriter) -> int:
        """Send the script's next reply; returns its code, or 999."""
        answers = self.script.get(key)
        answer = DEFAULT_REPLIES[key] if answers is None else answers.pop(0) if len(answers) > 1 else answers[0]
        return await self._play(answer, writer)

    async def _play(self, answer: ScriptedReply, writer: asyncio.StreamWriter) -> int:
        match answer:
            case str() | bytes():
                return await self._write(answer, writer)
            case Wait(event, text):
                await event.wait()
                return await self._write(text, writer)
            case Then(text, after):
                await self._write(text, writer)
                return await self._play(after, writer)
            case Stall():
                await asyncio.Event().wait()
            case Drop(reset):
                if reset:
                    writer.transport.abort()
                raise _Closed
        return 999

    async def _write(self, answer: str | bytes, writer: asyncio.StreamWriter) -> int:
        raw = answer if isinstance(answer, bytes) else answer.replace("\n", "\r\n").encode() + b"\r\n"
        writer.write(raw)
        await writer.drain()
        code = raw[:3]
        return int(code) if code.isdigit() else 999

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError as error:  # a very long line, in pieces
        return await reader.readexactly(error.consumed) + await _line(reader)
