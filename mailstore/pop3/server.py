"""The POP3 role: sockets around `session`, and what a session may not do to us.

In charge of connections (how many, how long silent, how fast they read), of having the mailbox reserved as long as a
session lasts, and of carrying out what that asks for. Promises: a client that never reads holds one slice of a message,
not a message; a connection that breaks removes nothing; a wrong password takes as long as an unknown user.
Never parses. Next: `mailstore/maildir.py`.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import assert_never

import structlog

from mail import endpoint
from mail.directory import Directory, DirectoryUnavailable
from mail.service import ServiceError
from mail.settings import MailstoreSettings, NodeSettings
from mail.telemetry.pop3 import (
    AUTH,
    POP3_CONNECTIONS,
    POP3_RETRIEVED_BYTES,
    POP3_RETRIEVED_MESSAGES,
    POP3_SESSIONS,
)
from mailstore.mailboxes import Mailboxes, MailboxInUse, MailboxUnavailable
from mailstore.pop3.command import Lines, TooLong
from mailstore.pop3.session import (
    GREETING,
    TOO_MANY,
    Action,
    Close,
    Denied,
    Fetch,
    LogIn,
    Say,
    Session,
    Update,
)
from mailstore.pop3.transfer import Transfer

log = structlog.get_logger()

SLICE_OCTETS = 64 * 1024
MAX_STRANGERS_PER_CLIENT = 20  # connections of one address that have not logged in; loopback is exempt
_READ_OCTETS = 8 * 1024


class _Gone(Exception):
    """The client has gone, or has to go; `end` is the label of the metric."""

    def __init__(self, end: str) -> None:
        super().__init__(end)
        self.end = end


class Pop3:
    """mail.service.Role. `port` is where it listens once it is ready."""

    name = "mailstore.pop3"

    def __init__(
        self,
        *,
        settings: MailstoreSettings,
        node: NodeSettings,
        mailboxes: Mailboxes,
        directory: Directory,
        failure_delay: timedelta = timedelta(seconds=2),
        write_timeout: timedelta = timedelta(seconds=60),
    ) -> None:
        """`failure_delay` follows a wrong password; `write_timeout` is what a client may take to read one slice."""
        self._settings = settings
        self._node = node
        self.mailboxes = mailboxes
        self.directory = directory
        self.failure_delay_seconds = failure_delay.total_seconds()
        self.write_timeout_seconds = write_timeout.total_seconds()
        self.idle_seconds = settings.idle.total_seconds()
        self.stopping = False
        self.port = 0
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        if not self._settings.pop3:
            ready()
            await stop.wait()
            return
        try:
            host, port = endpoint.parse(self._settings.pop3)
        except ValueError as error:
            raise ServiceError(f"mailstore.pop3: {error}") from error
        try:
            server = await asyncio.start_server(self._connected, host, port, limit=_READ_OCTETS, backlog=256)
        except OSError as error:
            why = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
            raise ServiceError(
                f"mailstore.pop3: cannot listen on {self._settings.pop3}: {why}; set another address there, or by "
                "EILPOST_MAILSTORE__POP3=HOST:PORT"
            ) from error
        self.port = server.sockets[0].getsockname()[1]
        log.debug("listening", service="pop3", address=f"{host}:{self.port}")
        ready()
        try:
            await stop.wait()
        finally:
            server.close()
            await self._drain()

    async def _drain(self) -> None:
        """Sessions between two commands end at once, the others when their command is done or time is up."""
        self.stopping = True
        for connection in self._connections.values():
            connection.stop()
        tasks = set(self._connections)
        if tasks:
            _done, late = await asyncio.wait(tasks, timeout=self._node.drain.total_seconds())
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(self, reader, writer)
        strangers = sum(other.is_stranger and other.ip == connection.ip for other in self._connections.values())
        if (
            self.stopping
            or len(self._connections) >= self._settings.max_connections
            or (strangers >= MAX_STRANGERS_PER_CLIENT and not _is_loopback(connection.ip))
        ):
            POP3_SESSIONS.labels("turned_away").inc()
            writer.write(TOO_MANY.data)
            writer.close()
            return
        self._connections[task] = connection
        POP3_CONNECTIONS.inc()
        try:
            await connection.run()
        finally:
            POP3_CONNECTIONS.dec()
            del self._connections[task]


class _Connection:
    """One client, from greeting to close."""

    def __init__(self, role: Pop3, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        self._role = role
        self._reader = reader
        self._writer = writer
        self.ip: str = peer[0] if peer else ""
        self._session = Session(clear_text_allowed=_is_loopback(self.ip))
        self._lines = Lines()
        self._owner: str | None = None
        self._reserved = AsyncExitStack()  # the mailbox, from log-in to the end
        self._fetched_bytes = 0
        self._expunged = 0
        self._stopping = False
        self._waiting: asyncio.Task[bytes] | None = None
        writer.transport.set_write_buffer_limits(high=SLICE_OCTETS)

    @property
    def is_stranger(self) -> bool:
        """Not logged in."""
        return self._owner is None

    def stop(self) -> None:
        """End after the command in hand."""
        self._stopping = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def run(self) -> None:
        begun = time.monotonic()
        end = "error"
        try:
            end = await self._serve()
        except _Gone as gone:
            end = gone.end
        except (ConnectionError, TimeoutError):
            end = "dropped"
        except asyncio.CancelledError:
            end = "shutdown"
            raise
        except Exception:
            log.exception("pop3 session failed", ip=self.ip)
        finally:
            await self._reserved.aclose()
            POP3_SESSIONS.labels(end).inc()
            log.info(
                "pop3 session",
                **({} if self._owner is None else {"user": self._owner}),
                ip=self.ip,
                end=end,
                fetched_bytes=self._fetched_bytes,
                expunged=self._expunged,
                seconds=round(time.monotonic() - begun, 3),
            )
            await self._close(abort=end in ("dropped", "slow", "cut_off"))

    async def _close(self, *, abort: bool) -> None:
        """Let the client read what is on its way, but not for ever."""
        if not abort:
            self._writer.close()
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(self._role.write_timeout_seconds):
                    await self._writer.wait_closed()
                return
        self._writer.transport.abort()

    async def _serve(self) -> str:
        self._writer.write(GREETING.data)
        while True:
            line = await self._next_line()
            end = await self._carry_out(self._session.receive(line))
            if end is not None:
                await self._flush()
                return end

    async def _next_line(self) -> bytes | TooLong:
        """The next line. Replies to pipelined commands (RFC 2449 section 6.6) leave together, before we wait."""
        if self._stopping:
            raise _Gone("shutdown")
        deadline: float | None = None
        while (line := self._lines.next(self._session.line_limit)) is None:
            await self._flush()
            loop = asyncio.get_running_loop()
            if deadline is None:
                deadline = loop.time() + self._role.idle_seconds  # for a whole line: drops of octets do not count
            if self._stopping:
                raise _Gone("shutdown")
            self._waiting = asyncio.ensure_future(self._reader.read(_READ_OCTETS))
            try:
                data = await asyncio.wait_for(self._waiting, deadline - loop.time())
            except TimeoutError:
                raise _Gone("idle") from None
            except asyncio.CancelledError:
                if self._stopping and self._waiting.cancelled():
                    raise _Gone("shutdown") from None
                raise
            finally:
                self._waiting = None
            if not data:
                raise _Gone("dropped")
            self._lines.feed(data)
        return line

    async def _carry_out(self, actions: Iterable[Action]) -> str | None:
        for action in actions:
            match action:
                case Say(data):
                    await self._write(data)
                case LogIn(login, password):
                    end = await self._log_in(login, password)
                    if end is not None:
                        return end
                case Fetch():
                    await self._fetch(action)
                case Update(expunge, seen):
                    return await self._update(expunge, seen)
                case Close(end):
                    return end
                case _:
                    assert_never(action)
        return None

    async def _log_in(self, login: str, password: str) -> str | None:
        denied = await self._check(login, password)
        AUTH.labels("pop3", "ok" if denied is None else denied.name.lower()).inc()
        log.info("login", service="pop3", user=login[:320], ip=self.ip, result=denied.name.lower() if denied else "ok")
        if denied is None:
            return None
        if denied is Denied.WRONG:
            await self._flush()
            await asyncio.sleep(self._role.failure_delay_seconds)
        return await self._carry_out(self._session.log_in_failed(denied))

    async def _check(self, login: str, password: str) -> Denied | None:
        try:
            user = await self._role.directory.verify(login, password)
        except DirectoryUnavailable as error:
            log.warning("login not checked", service="pop3", reason=str(error))
            return Denied.UNAVAILABLE
        if user is None:
            return Denied.WRONG
        owner = user.address.key
        try:
            await self._reserved.enter_async_context(self._role.mailboxes.reserve(owner))
            kept = await self._role.mailboxes.messages(owner)
        except MailboxInUse:
            return Denied.IN_USE
        except MailboxUnavailable as error:
            await self._reserved.aclose()
            log.warning("mailbox not available", user=owner, reason=str(error))
            return Denied.UNAVAILABLE
        self._owner = owner
        await self._carry_out(self._session.logged_in(kept))
        return None

    async def _fetch(self, fetch: Fetch) -> None:
        assert self._owner is not None
        mailboxes, transfer, place = self._role.mailboxes, Transfer(fetch.top_lines), 0
        try:
            part = await mailboxes.read(self._owner, fetch.uid, 0, SLICE_OCTETS)
        except KeyError:
            await self._write(b"-ERR [SYS/PERM] the message has been removed by another program\r\n")
            return
        except MailboxUnavailable as error:
            log.warning("mailbox not available", user=self._owner, reason=str(error))
            await self._write(b"-ERR [SYS/TEMP] the message cannot be read now\r\n")
            return
        await self._write(b"+OK %d octets\r\n" % fetch.size_bytes if fetch.top_lines is None else b"+OK\r\n")
        while part:
            await self._write(transfer.slice(part))
            place += len(part)
            POP3_RETRIEVED_BYTES.inc(len(part))
            # The size comes from the file's name, which may lie: only where it says the same is nothing left to read.
            if transfer.complete or (place == fetch.size_bytes and len(part) < SLICE_OCTETS):
                break
            try:
                part = await mailboxes.read(self._owner, fetch.uid, place, SLICE_OCTETS)
            except (KeyError, MailboxUnavailable) as error:
                # Half a message with a dot behind it would be taken for a whole one.
                log.warning("message cut off", user=self._owner, reason=str(error))
                raise _Gone("cut_off") from error
        await self._write(transfer.end())
        self._fetched_bytes += place
        if fetch.top_lines is None:
            POP3_RETRIEVED_MESSAGES.inc()
            self._session.fetched(fetch.number)

    async def _update(self, expunge: tuple[str, ...], seen: tuple[str, ...]) -> str | None:
        """Shielded: once QUIT was read, it is done whether or not the client waits for the answer. What it answers for
        is the removal (RFC 1939 section 6); a flag that could not be set is for our log.
        """
        assert self._owner is not None
        done = True
        try:
            if expunge:
                await asyncio.shield(self._role.mailboxes.expunge(self._owner, expunge))
                self._expunged = len(expunge)
        except MailboxUnavailable as error:
            log.warning("mailbox not available", user=self._owner, reason=str(error))
            done = False
        try:
            if seen:
                await asyncio.shield(self._role.mailboxes.mark_seen(self._owner, seen))
        except MailboxUnavailable as error:
            log.warning("messages not flagged as seen", user=self._owner, reason=str(error))
        return await self._carry_out(self._session.updated(done=done))

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        transport = self._writer.transport
        if transport.get_write_buffer_size() >= SLICE_OCTETS:
            await self._flush()

    async def _flush(self) -> None:
        """Wait until the client has read all but one slice."""
        try:
            async with asyncio.timeout(self._role.write_timeout_seconds):
                await self._writer.drain()
        except TimeoutError:
            raise _Gone("slow") from None


def _is_loopback(ip: str) -> bool:
    with suppress(ValueError):
        address = ipaddress.ip_address(ip.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)
    return False
