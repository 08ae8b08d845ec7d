"""SMTP connection driver: reads octets, writes replies, runs time-outs.

It replaces aiosmtpd's line reader (LF ends a line) and its parser (lenient). Replies are sent in order, no exception
text reaches the client, and a disconnect never cancels an append.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import structlog

from ingress import replies
from ingress.access_policy import ClientPolicy, normalize_ip
from ingress.aiosmtpd_compat import SmtpProtocol
from ingress.esmtp import LONGEST_LINE
from ingress.framer import Framer
from ingress.limits import IncomingData
from ingress.listener import Listener
from ingress.session import Session
from ingress.session_end import SessionEnd
from ingress.write_coalescer import WriteCoalescer
from mail.telemetry.ingress import SMTP_CONNECTIONS, SMTP_SESSIONS

logger = structlog.get_logger()

_PIPELINED_MAX_BYTES = 64 * 1024  # octets a client may send ahead before reading is paused
_LONG_DATA_MIN_BYTES_PER_SECOND = 16 * 1024  # average rate required of long data: 25 MiB in less than an hour
_COMMANDS_PER_TURN = 100  # pipelined commands handled before other sessions run
_QUIT_GRACE_SECONDS = 0.5  # for a QUIT in transit when the drain begins
_LINGER_SECONDS = 5.0  # for a client that does not read the last reply

# Labelled children, cached: the set of label values is small.
_open_connections = cache(SMTP_CONNECTIONS.labels)
_ended_sessions = cache(SMTP_SESSIONS.labels)


class Connection(SmtpProtocol):
    """One SMTP connection."""

    def __init__(
        self,
        listener: Listener,
        connections: set[Connection],
        coalescer: WriteCoalescer,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(listener.hostname, loop)
        self._listener = listener
        self._connections = connections
        self._coalescer = coalescer
        self.framer = Framer(LONGEST_LINE)
        self._session = Session(listener, self, "", 0, ClientPolicy(may_relay=False, sender_must_resolve=True))
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._deadline = 0.0
        self._eof = False  # the client sends nothing more; it may still read
        self._lost = False
        self._reading_is_paused = False  # not `_paused`: asyncio uses that name for writing
        self._command_in_progress = False  # timer and drain wait for it
        self._draining = False
        self._drain_at = 0.0  # when the grace time for QUIT ends
        self._incoming_data: IncomingData | None = None  # entry in the memory budget
        self._data_started_at = 0.0
        self.data_over_budget = False

    # Transport events and timers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self._session.ip, self._session.port = normalize_ip(peer[0]), peer[1]
            self._session.client_policy = self._listener.client_policy(self._session.ip)
        self._connections.add(self)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        framer = self.framer
        framer.feed(data)
        if framer.in_data and not self._command_in_progress:
            self._update_memory_budget()
            self._reset_data_timeout()
            if framer.data_is_complete:
                self._wake()
        elif self._waiter is not None and framer.has_line:
            self._wake()
        if (
            not self._reading_is_paused
            and framer.pipelined_bytes > _PIPELINED_MAX_BYTES
            and self._client_transport is not None
        ):
            self._reading_is_paused = True
            self._client_transport.pause_reading()

    def eof_received(self) -> bool:
        # aiosmtpd would cancel the current command; input before the half-close is still handled.
        self._eof = True
        self._wake()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        # aiosmtpd would cancel the current command, even an append. The task sees `_lost` and ends.
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None
        self._wake()

    def reset_timeout(self, seconds: float | None = None) -> None:
        # One timer per session checks the deadline when it fires, so moving the deadline is cheap.
        self._deadline = self.loop.time() + (seconds or self._listener.command_seconds)
        if self._timer is None or self._timer_due > self._deadline:
            self._arm_timer(self._deadline)

    def _arm_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self.loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        now = self.loop.time()
        if self._deadline - now > 0.001:
            self._arm_timer(self._deadline)
        elif self._session.end:
            self.abort()
        elif self._command_in_progress:
            self._arm_timer(now + 1.0)  # the server is busy, the client is not idle
        else:
            self._session.close(replies.TIMED_OUT, SessionEnd.TIMEOUT)
            self._close_connection()

    def drain(self) -> None:
        """Send 421 as soon as no message is in progress (RFC 5321 section 3.8)."""
        self._draining = True
        self._schedule_drain()

    def _schedule_drain(self) -> None:
        """A client that got 250 usually sends QUIT next; a 421 there makes some clients (Python's smtplib) resend."""
        self._drain_at = self.loop.time() + _QUIT_GRACE_SECONDS
        self.loop.call_at(self._drain_at + 0.001, self._drain_if_idle)

    def _drain_if_idle(self) -> None:
        if not self.framer.in_data:
            self._wake()

    def abort(self) -> None:
        """Close the connection without flushing."""
        if self._client_transport is not None:
            self._client_transport.abort()

    @property
    def _client_transport(self) -> asyncio.Transport | None:
        transport: asyncio.Transport | None = self.transport  # type: ignore[assignment]  # aiosmtpd declares BaseTransport
        return transport

    # Command loop

    async def serve(self) -> None:
        session = self._session
        admitted = self._listener.connection_limiter.acquire(session.ip, exempt=session.client_policy.may_relay)
        connections = _open_connections(self._listener.name)
        connections.inc()
        try:
            if session.greet(admitted=admitted, draining=self._draining):
                await self._run_commands()
        except asyncio.CancelledError:
            if self._command_in_progress:
                session.end = SessionEnd.ABORTED  # the outcome of the message is unknown: send no reply
            else:
                session.close(replies.SHUTTING_DOWN, SessionEnd.ABORTED)  # RFC 5321 section 3.8
            raise
        finally:
            self._close_connection()
            self._release_memory()
            if admitted:
                self._listener.connection_limiter.release(session.ip)
            connections.dec()
            _ended_sessions(self._listener.name, (session.end or SessionEnd.INTERNAL_ERROR).value).inc()
            self._connections.discard(self)
            # Not logged: health checks, which send nothing, and refusals, which were logged before.
            silent = session.helo is None and not session.errors and session.end is SessionEnd.DISCONNECTED
            if session.end not in (SessionEnd.QUIT, SessionEnd.REJECTED) and not silent:
                logger.info(
                    "session ended", client=session.ip, helo=session.helo, end=session.end, errors=session.errors
                )

    async def _run_commands(self) -> None:
        session = self._session
        handled = 0
        while not session.end:
            if self._lost:  # replies cannot be sent; the client will retry
                session.end = SessionEnd.DISCONNECTED
                return
            line = self.framer.next_line()
            if line is None:
                if self._draining and self.loop.time() >= self._drain_at:
                    session.close(replies.SHUTTING_DOWN, SessionEnd.SHUTDOWN)
                elif not await self._wait_for_input():
                    session.end = session.end or SessionEnd.DISCONNECTED
                continue
            self._command_in_progress = True
            try:
                await session.handle(line)
            except Exception as error:  # a bug must not end the session
                await self.handle_exception(error)
            self._command_in_progress = False
            self._release_memory()
            self.reset_timeout()
            if self._draining:
                self._schedule_drain()
            handled += 1
            if handled % _COMMANDS_PER_TURN == 0:  # also bounds unsent replies
                await self._flush()
                await asyncio.sleep(0)

    async def handle_exception(self, error: Exception) -> str:
        # aiosmtpd would send the exception text in a 5xx reply.
        logger.error(
            "internal error, command gets 4xx", client=self._session.ip, verb=self._session.verb, exc_info=error
        )
        self._session.reply_local_error()
        return ""

    async def _wait_for_input(self) -> bool:
        """Send queued replies and wait for input. Return False when there will be none."""
        if self._has_unsent_output():
            await self._flush()
            if self._has_input():  # arrived while the replies were flushed
                return True
        elif self._session.output:
            self._coalescer.add(self._write_output)
        if self._eof or self._lost:
            return False
        if self._reading_is_paused and self._client_transport is not None:
            self._reading_is_paused = False
            self._client_transport.resume_reading()
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        return True

    def _has_input(self) -> bool:
        framer = self.framer
        return bool(self._session.end) or (framer.data_is_complete if framer.in_data else framer.has_line)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def push(self, status: Any) -> None:
        # As in aiosmtpd, but queued with the other replies.
        self._session.output.append((status if isinstance(status, bytes) else str(status).encode()) + b"\r\n")

    def _has_unsent_output(self) -> bool:
        """Whether earlier output is still in the write buffer."""
        return self._client_transport is not None and self._client_transport.get_write_buffer_size() > 0

    async def _flush(self) -> None:
        self._write_output()
        if self._has_unsent_output():
            try:
                await self.drain_writer()
            except ConnectionError:
                self._lost = True

    def _write_output(self) -> None:
        output = self._session.output
        if output and self._client_transport is not None and not self._lost and not self._client_transport.is_closing():
            self._client_transport.write(b"".join(output) if len(output) > 1 else output[0])
            output.clear()

    def _close_connection(self) -> None:
        """Send queued replies and close; abort after a time-out if the client does not read."""
        self._write_output()
        if self._client_transport is not None:
            self._client_transport.close()
            self._deadline = self.loop.time() + _LINGER_SECONDS
            self._arm_timer(self._deadline)
        self._wake()

    # Message data

    async def read_data(self) -> bool:
        """Send the 354 and wait for the final dot. Return False when the session ended before it."""
        framer = self.framer
        # The size limit (RFC 1870 section 3) excludes transparent dots: at most one for every three octets.
        framer.begin_data(self._listener.max_size * 4 // 3 + 1)
        self._command_in_progress = False
        self._data_started_at = self.loop.time()
        self._incoming_data = IncomingData(
            self._session.ip, self._data_started_at, self._abort_slow_data, exempt=self._session.client_policy.may_relay
        )
        self._listener.memory_budget.add(self._incoming_data)
        self._update_memory_budget()
        self._reset_data_timeout()
        while not framer.data_is_complete and not self._session.end:
            if not await self._wait_for_input():
                break
        self._command_in_progress = True
        if framer.data_is_complete and not self._session.end:
            return True
        self._session.end = self._session.end or SessionEnd.DISCONNECTED
        return False

    def _reset_data_timeout(self) -> None:
        """The time-out is per part of the data, as the client's (RFC 5321 section 4.5.3.2.5). After five times the
        time-out the client must also have sent at an average rate, so that one octet a minute does not hold a
        connection.
        """
        seconds = self._listener.data_seconds
        limit = 5 * seconds + self.framer.data_held_bytes / _LONG_DATA_MIN_BYTES_PER_SECOND
        remaining = self._data_started_at + limit - self.loop.time()
        self.reset_timeout(max(0.001, min(seconds, remaining)))

    def has_capacity(self, size_bytes: int) -> bool:
        """Whether the memory budget allows message data of `size_bytes`."""
        session = self._session
        return self._listener.memory_budget.has_capacity(
            session.ip, size_bytes, self.loop.time(), exempt=session.client_policy.may_relay
        )

    def _update_memory_budget(self) -> None:
        """Report the size of the held data to the memory budget; discard the data when it exceeds the budget."""
        incoming, budget, now = self._incoming_data, self._listener.memory_budget, self.loop.time()
        if incoming is None:
            return
        incoming.is_complete = self.framer.data_is_complete
        if not budget.resize(incoming, self.framer.data_held_bytes, now):
            self.framer.discard_data()
            self.data_over_budget = True
            budget.resize(incoming, 0, now)

    def _abort_slow_data(self) -> None:
        """Called by the memory budget when memory is short and this data arrives slowly."""
        logger.info(
            "slow message data aborted, session closed",
            client=self._session.ip,
            received_bytes=self.framer.data_held_bytes,
        )
        self.framer.discard_data()
        self._session.close(replies.TOO_SLOW, SessionEnd.SLOW)
        self._close_connection()

    def _release_memory(self) -> None:
        if self._incoming_data is not None:
            self._listener.memory_budget.remove(self._incoming_data)
            self._incoming_data = None
        self.data_over_budget = False
