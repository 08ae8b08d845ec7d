"""The POP3 role: sockets, limits and time-outs around `session`.

It limits connections, idle time and slow readers, holds the session lock, and executes the session's actions. A client
that does not read holds at most one slice of a message in memory; a lost connection removes no message; a wrong
password takes as long as an unknown user.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import assert_never

import structlog

from mail import endpoint
from mail.directory import Directory, DirectoryUnavailable
from mail.service import ServiceError, cannot_listen
from mail.settings import NodeSettings
from mail.settings_roles import MailstoreSettings
from mail.telemetry.pop3 import (
    AUTH,
    POP3_CONNECTIONS,
    POP3_RETRIEVED_BYTES,
    POP3_RETRIEVED_MESSAGES,
    POP3_SESSIONS,
)
from mailstore.mailboxes import Mailboxes, MailboxInUse, MailboxUnavailable
from mailstore.pop3.command import LineReader, LineTooLong
from mailstore.pop3.session import (
    GREETING,
    SHUTTING_DOWN,
    TOO_MANY_CONNECTIONS,
    Action,
    Close,
    LogIn,
    LoginFailure,
    Send,
    SendMessage,
    Session,
    Update,
)
from mailstore.pop3.transfer import MultiLineResponse

logger = structlog.get_logger()

SLICE_BYTES = 64 * 1024
MAX_UNAUTHENTICATED_PER_CLIENT = 20  # connections per address before login; loopback is exempt
_READ_BYTES = 8 * 1024


class _SessionEnded(Exception):
    """The connection was lost or must be closed; `end` is the metric label."""

    def __init__(self, end: str) -> None:
        super().__init__(end)
        self.end = end


class Pop3Server:
    """mail.service.Role. `port` is valid after `ready`."""

    name = "mailstore"

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
        """`failure_delay` follows a failed login; `write_timeout` is the time a client has to read one slice."""
        self._settings = settings
        self._node = node
        self.mailboxes = mailboxes
        self.directory = directory
        self.failure_delay_seconds = failure_delay.total_seconds()
        self.write_timeout_seconds = write_timeout.total_seconds()
        self.idle_seconds = settings.idle_timeout.total_seconds()
        self.stopping = False
        self.port = 0
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    async def run(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        if not self._settings.pop3_listen:
            ready()
            await stop.wait()
            return
        try:
            host, port = endpoint.parse(self._settings.pop3_listen)
        except ValueError as error:
            raise ServiceError(f"mailstore.pop3_listen: {error}") from error
        try:
            server = await asyncio.start_server(self._connected, host, port, limit=_READ_BYTES, backlog=256)
        except OSError as error:
            raise cannot_listen("mailstore.pop3_listen", self._settings.pop3_listen, error) from error
        self.port = server.sockets[0].getsockname()[1]
        logger.debug("listening", role=self.name, listener="pop3", address=f"{host}:{self.port}")
        ready()
        try:
            await stop.wait()
        finally:
            server.close()
            await self._drain()

    async def _drain(self) -> None:
        """End idle sessions at once, the others after their command or when the drain time expires."""
        self.stopping = True
        for connection in self._connections.values():
            connection.stop()
        tasks = set(self._connections)
        if tasks:
            _done, late = await asyncio.wait(tasks, timeout=self._node.drain_timeout.total_seconds())
            if late:
                logger.warning("drain timed out", role=self.name, listener="pop3", sessions_aborted=len(late))
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(self, reader, writer)
        unauthenticated = sum(
            other.is_unauthenticated and other.ip == connection.ip for other in self._connections.values()
        )
        if (
            self.stopping
            or len(self._connections) >= self._settings.max_connections
            or (unauthenticated >= MAX_UNAUTHENTICATED_PER_CLIENT and not _is_loopback(connection.ip))
        ):
            POP3_SESSIONS.labels("rejected").inc()
            writer.write((SHUTTING_DOWN if self.stopping else TOO_MANY_CONNECTIONS).data)
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
    """One client connection."""

    def __init__(self, server: Pop3Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        self._server = server
        self._reader = reader
        self._writer = writer
        self.ip: str = peer[0] if peer else ""
        self._session = Session(clear_text_allowed=_is_loopback(self.ip))
        self._lines = LineReader()
        self._owner: str | None = None
        self._session_lock = AsyncExitStack()  # held from login to the end
        self._sent_bytes = 0
        self._expunged = 0
        self._stopping = False
        self._read_task: asyncio.Task[bytes] | None = None
        writer.transport.set_write_buffer_limits(high=SLICE_BYTES)

    @property
    def is_unauthenticated(self) -> bool:
        return self._owner is None

    def stop(self) -> None:
        """End the session after the current command."""
        self._stopping = True
        if self._read_task is not None:
            self._read_task.cancel()

    async def run(self) -> None:
        started = time.monotonic()
        end = "internal_error"
        try:
            end = await self._serve()
        except _SessionEnded as ended:
            end = ended.end
        except (ConnectionError, TimeoutError):
            end = "disconnected"
        except asyncio.CancelledError:
            end = "shutdown"
            raise
        except Exception:  # boundary of the task
            logger.exception("pop3 session aborted by an internal error", client=self.ip)
        finally:
            await self._session_lock.aclose()
            POP3_SESSIONS.labels(end).inc()
            logger.info(
                "pop3 session ended",
                **({} if self._owner is None else {"user": self._owner}),
                client=self.ip,
                end=end,
                fetched_bytes=self._sent_bytes,
                expunged=self._expunged,
                seconds=round(time.monotonic() - started, 3),
            )
            await self._close(abort=end in ("disconnected", "slow", "read_error"))

    async def _close(self, *, abort: bool) -> None:
        """Flush the output within the write time-out, then close."""
        if not abort:
            self._writer.close()
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(self._server.write_timeout_seconds):
                    await self._writer.wait_closed()
                return
        self._writer.transport.abort()

    async def _serve(self) -> str:
        self._writer.write(GREETING.data)
        while True:
            line = await self._next_line()
            end = await self._execute(self._session.receive(line))
            if end is not None:
                await self._flush()
                return end

    async def _next_line(self) -> bytes | LineTooLong:
        """The next line. Replies to pipelined commands (RFC 2449 section 6.6) are flushed together before waiting."""
        if self._stopping:
            raise _SessionEnded("shutdown")
        line = self._lines.next_line(self._session.line_limit)
        if line is not None:
            return line
        await self._flush()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._server.idle_seconds  # for a complete line; single octets do not extend it
        while line is None:
            if self._stopping:
                raise _SessionEnded("shutdown")
            self._read_task = asyncio.ensure_future(self._reader.read(_READ_BYTES))
            try:
                data = await asyncio.wait_for(self._read_task, deadline - loop.time())
            except TimeoutError:  # RFC 1939 section 3: close without a response and without the UPDATE state
                raise _SessionEnded("timeout") from None
            except asyncio.CancelledError:
                if self._stopping and self._read_task.cancelled():
                    raise _SessionEnded("shutdown") from None
                raise
            finally:
                self._read_task = None
            if not data:
                raise _SessionEnded("disconnected")
            self._lines.feed(data)
            line = self._lines.next_line(self._session.line_limit)
        return line

    async def _execute(self, actions: Iterable[Action]) -> str | None:
        for action in actions:
            match action:
                case Send(data):
                    await self._write(data)
                case LogIn(login, password):
                    end = await self._log_in(login, password)
                    if end is not None:
                        return end
                case SendMessage():
                    await self._send_message(action)
                case Update(expunge, seen):
                    return await self._update(expunge, seen)
                case Close(end):
                    return end
                case _:
                    assert_never(action)
        return None

    async def _log_in(self, login: str, password: str) -> str | None:
        failure = await self._authenticate(login, password)
        AUTH.labels("pop3", "ok" if failure is None else failure.name.lower()).inc()
        logger.info(
            "login",
            role="mailstore",
            listener="pop3",
            user=login[:320],
            client=self.ip,
            result=failure.name.lower() if failure else "ok",
        )
        if failure is None:
            return None
        if failure is LoginFailure.INVALID_CREDENTIALS:
            await self._flush()
            await asyncio.sleep(self._server.failure_delay_seconds)
        return await self._execute(self._session.log_in_failed(failure))

    async def _authenticate(self, login: str, password: str) -> LoginFailure | None:
        try:
            user = await self._server.directory.authenticate(login, password)
        except DirectoryUnavailable as error:
            logger.warning("login refused, directory unavailable", client=self.ip, error=str(error))
            return LoginFailure.UNAVAILABLE
        if user is None:
            return LoginFailure.INVALID_CREDENTIALS
        owner = user.address.key
        try:
            await self._session_lock.enter_async_context(self._server.mailboxes.session_lock(owner))
            messages = await self._server.mailboxes.messages(owner)
        except MailboxInUse:
            return LoginFailure.IN_USE
        except MailboxUnavailable as error:
            await self._session_lock.aclose()
            logger.warning("login refused, mailbox unavailable", user=owner, error=str(error))
            return LoginFailure.UNAVAILABLE
        self._owner = owner
        await self._execute(self._session.logged_in(messages))
        return None

    async def _send_message(self, action: SendMessage) -> None:
        assert self._owner is not None
        mailboxes, response, offset = self._server.mailboxes, MultiLineResponse(action.top_lines), 0
        try:
            part = await mailboxes.read(self._owner, action.uid, 0, SLICE_BYTES)
        except KeyError:
            await self._write(b"-ERR [SYS/PERM] message was removed by another program\r\n")
            return
        except MailboxUnavailable as error:
            logger.warning("message not sent, mailbox unavailable", user=self._owner, error=str(error))
            await self._write(b"-ERR [SYS/TEMP] message not available, try again later\r\n")
            return
        await self._write(b"+OK %d octets\r\n" % action.size_bytes if action.top_lines is None else b"+OK\r\n")
        while part:
            await self._write(response.encode(part))
            offset += len(part)
            POP3_RETRIEVED_BYTES.inc(len(part))
            # The size in the file name may be wrong: skip the last read only when both agree.
            if response.complete or (offset == action.size_bytes and len(part) < SLICE_BYTES):
                break
            try:
                part = await mailboxes.read(self._owner, action.uid, offset, SLICE_BYTES)
            except (KeyError, MailboxUnavailable) as error:
                # A final dot after half a message would make it look complete.
                logger.warning("message transfer aborted", user=self._owner, error=str(error))
                raise _SessionEnded("read_error") from error
        await self._write(response.terminator())
        self._sent_bytes += offset
        if action.top_lines is None:
            POP3_RETRIEVED_MESSAGES.inc()
            self._session.message_sent(action.number)

    async def _update(self, expunge: tuple[str, ...], seen: tuple[str, ...]) -> str | None:
        """Update the mailbox after QUIT, shielded from a disconnect. The reply reports failed removals (RFC 1939
        section 6); a flag that could not be set is only logged.
        """
        assert self._owner is not None
        done = True
        try:
            if expunge:
                await asyncio.shield(self._server.mailboxes.expunge(self._owner, expunge))
                self._expunged = len(expunge)
        except MailboxUnavailable as error:
            logger.warning("messages not removed, mailbox unavailable", user=self._owner, error=str(error))
            done = False
        try:
            if seen:
                await asyncio.shield(self._server.mailboxes.mark_seen(self._owner, seen))
        except MailboxUnavailable as error:
            logger.warning("messages not flagged as seen", user=self._owner, error=str(error))
        return await self._execute(self._session.updated(done=done))

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        transport = self._writer.transport
        if transport.get_write_buffer_size() >= SLICE_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        """Wait until at most one slice is unsent."""
        try:
            async with asyncio.timeout(self._server.write_timeout_seconds):
                await self._writer.drain()
        except TimeoutError:
            raise _SessionEnded("slow") from None


def _is_loopback(ip: str) -> bool:
    with suppress(ValueError):
        address = ipaddress.ip_address(ip.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)
    return False
