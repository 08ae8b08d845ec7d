"""One POP3 connection: executes the actions of `session`, with its time-outs.

A client that does not read holds at most one slice of a message in memory; a lost connection removes no message; a
wrong password takes as long as an unknown user, and each further one of a client longer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import assert_never

import structlog

from mail.client_counts import ClientCounts
from mail.directory import Directory, DirectoryUnavailable
from mail.telemetry.pop3 import AUTH, POP3_RETRIEVED_BYTES, POP3_RETRIEVED_MESSAGES, POP3_SESSIONS
from mailstore.mailboxes import Mailboxes, MailboxInUse, MailboxUnavailable
from mailstore.pop3.command import LineReader, LineTooLong
from mailstore.pop3.login_failures import LoginFailures, delay_factor
from mailstore.pop3.session import GREETING, Action, Close, LogIn, LoginFailure, Send, SendMessage, Session, Update
from mailstore.pop3.transfer import MultiLineResponse

logger = structlog.get_logger()

SLICE_BYTES = 64 * 1024
READ_BYTES = 8 * 1024
MAX_UNAUTHENTICATED_PER_CLIENT = 20  # connections per client before login; loopback is exempt


@dataclass(slots=True)
class Services:
    """Dependencies, limits and tables that the connections share."""

    mailboxes: Mailboxes
    directory: Directory
    failure_delay_seconds: float
    write_timeout_seconds: float
    idle_seconds: float
    unauthenticated: ClientCounts = field(default_factory=lambda: ClientCounts(MAX_UNAUTHENTICATED_PER_CLIENT))
    login_failures: LoginFailures = field(default_factory=LoginFailures)


class _SessionEnded(Exception):
    """The connection was lost or must be closed; `end` is the metric label."""

    def __init__(self, end: str) -> None:
        super().__init__(end)
        self.end = end


class Connection:
    """One client connection."""

    def __init__(self, services: Services, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        self._services = services
        self._reader = reader
        self._writer = writer
        self.ip: str = peer[0].partition("%")[0] if peer else ""
        self.is_exempt = is_loopback(self.ip)  # from the limits of connections before login
        self._is_counted = False
        self._session = Session(clear_text_allowed=self.is_exempt)
        self._lines = LineReader()
        self._owner: str | None = None
        self._session_lock = AsyncExitStack()  # held from login to the end
        self._sent_bytes = 0
        self._expunged = 0
        self._stopped_as: str | None = None  # the end of the session after the current command
        self._read_task: asyncio.Task[bytes] | None = None
        writer.transport.set_write_buffer_limits(high=SLICE_BYTES)

    def count_unauthenticated(self) -> None:
        if not self.is_exempt:
            self._is_counted = True
            self._services.unauthenticated.add(self.ip)

    def uncount_unauthenticated(self) -> None:
        """After login, and at the end. Idempotent."""
        if self._is_counted:
            self._is_counted = False
            self._services.unauthenticated.add(self.ip, -1)

    @property
    def is_replaceable(self) -> bool:
        """Whether it waits for a command before login, and is not exempt."""
        return self._is_counted and self._read_task is not None and self._stopped_as is None

    def stop(self, end: str = "shutdown") -> None:
        """End the session after the current command."""
        self._stopped_as = end
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
                async with asyncio.timeout(self._services.write_timeout_seconds):
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
        if self._stopped_as is not None:
            raise _SessionEnded(self._stopped_as)
        line = self._lines.next_line(self._session.line_limit)
        if line is not None:
            return line
        await self._flush()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._services.idle_seconds  # for a complete line; single octets do not extend it
        while line is None:
            if self._stopped_as is not None:
                raise _SessionEnded(self._stopped_as)
            self._read_task = asyncio.ensure_future(self._reader.read(READ_BYTES))
            try:
                data = await asyncio.wait_for(self._read_task, deadline - loop.time())
            except TimeoutError:  # RFC 1939 section 3: close without a response and without the UPDATE state
                raise _SessionEnded("timeout") from None
            except asyncio.CancelledError:
                if self._stopped_as is not None and self._read_task.cancelled():
                    raise _SessionEnded(self._stopped_as) from None
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
            # After the check, so that users behind the same address with the right password do not wait.
            failures = self._services.login_failures.add(self.ip, time.monotonic())
            await asyncio.sleep(delay_factor(failures) * self._services.failure_delay_seconds)
        return await self._execute(self._session.log_in_failed(failure))

    async def _authenticate(self, login: str, password: str) -> LoginFailure | None:
        try:
            user = await self._services.directory.authenticate(login, password)
        except DirectoryUnavailable as error:
            logger.warning("login refused, directory unavailable", client=self.ip, error=str(error))
            return LoginFailure.UNAVAILABLE
        if user is None:
            return LoginFailure.INVALID_CREDENTIALS
        owner = user.address.key
        try:
            await self._session_lock.enter_async_context(self._services.mailboxes.session_lock(owner))
            messages = await self._services.mailboxes.messages(owner)
        except MailboxInUse:
            return LoginFailure.IN_USE
        except MailboxUnavailable as error:
            await self._session_lock.aclose()
            logger.warning("login refused, mailbox unavailable", user=owner, error=str(error))
            return LoginFailure.UNAVAILABLE
        self._owner = owner
        self.uncount_unauthenticated()
        await self._execute(self._session.logged_in(messages))
        return None

    async def _send_message(self, action: SendMessage) -> None:
        assert self._owner is not None
        mailboxes, response, offset = self._services.mailboxes, MultiLineResponse(action.top_lines), 0
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
                await asyncio.shield(self._services.mailboxes.expunge(self._owner, expunge))
                self._expunged = len(expunge)
        except MailboxUnavailable as error:
            logger.warning("messages not removed, mailbox unavailable", user=self._owner, error=str(error))
            done = False
        try:
            if seen:
                await asyncio.shield(self._services.mailboxes.mark_seen(self._owner, seen))
        except MailboxUnavailable as error:
            logger.warning("messages not flagged as seen", user=self._owner, error=str(error))
        return await self._execute(self._session.updated(done=done))

    async def _write(self, data: bytes) -> None:
        transport = self._writer.transport
        if transport.is_closing():  # the client has disconnected; uvloop would raise RuntimeError
            raise _SessionEnded("disconnected")
        self._writer.write(data)
        if transport.get_write_buffer_size() >= SLICE_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        """Wait until at most one slice is unsent."""
        try:
            async with asyncio.timeout(self._services.write_timeout_seconds):
                await self._writer.drain()
        except TimeoutError:
            raise _SessionEnded("slow") from None


def is_loopback(ip: str) -> bool:
    with suppress(ValueError):
        address = ipaddress.ip_address(ip.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)
    return False
