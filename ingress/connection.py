"""SMTP connection driver: reads octets, executes the actions of the session, runs time-outs.

It replaces aiosmtpd's line reader (LF ends a line) and its parser (lenient). Replies are sent in order, no exception
text reaches the client, and a disconnect never cancels an append.
"""

from __future__ import annotations

import asyncio
from functools import cache, lru_cache
from typing import assert_never, cast

import structlog

from ingress import esmtp, replies
from ingress import session as actions
from ingress.access_policy import QueryMx, normalize_ip
from ingress.aiosmtpd_compat import SmtpProtocol
from ingress.deadline import Deadline
from ingress.framer import Framer, Malformed
from ingress.limits import IncomingData
from ingress.listener import Listener
from ingress.services import Services
from ingress.session import SessionEnd
from ingress.write_coalescer import WriteCoalescer
from mail.log import Down
from mail.message import Client
from mail.reply import Reply
from mail.telemetry.ingress import MESSAGES_RECEIVED, SMTP_CONNECTIONS, SMTP_REPLIES, SMTP_SESSIONS

logger = structlog.get_logger()

_PIPELINED_MAX_BYTES = 64 * 1024  # octets a client may send ahead before reading is paused
_LONG_DATA_MIN_BYTES_PER_SECOND = 16 * 1024  # average rate required of long data: 25 MiB in less than an hour
_COMMANDS_PER_TURN = 100  # pipelined commands handled before other sessions run
_QUIT_GRACE_SECONDS = 0.5  # for a QUIT in transit when the drain begins
_LINGER_SECONDS = 5.0  # for a client that does not read the last reply

# Labelled children, cached: the set of label values is small.
_open_connections = cache(SMTP_CONNECTIONS.labels)
_ended_sessions = cache(SMTP_SESSIONS.labels)
_refused_messages = cache(MESSAGES_RECEIVED.labels)
_sent_replies = cache(lambda verb, code: SMTP_REPLIES.labels(verb, str(code // 100)))

_encoded = lru_cache(maxsize=512)(Reply.to_bytes)


class Connection(SmtpProtocol):
    """One SMTP connection, which `ingress/admission.py` has admitted."""

    def __init__(
        self,
        listener: Listener,
        services: Services,
        connections: set[Connection],
        coalescer: WriteCoalescer,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(listener.policy.hostname, loop)
        self._listener = listener
        self._policy = listener.policy
        self._services = services
        self._connections = connections
        self._coalescer = coalescer
        self.framer = Framer(esmtp.LONGEST_LINE)
        self.output: list[bytes] = []  # replies that are not written yet
        self._end: SessionEnd | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = Deadline(loop, self._on_timeout)
        self._eof = False  # the client sends nothing more; it may still read
        self._lost = False
        self._reading_is_paused = False  # not `_paused`: asyncio uses that name for writing
        self._command_in_progress = False  # timer and drain wait for it
        self._draining = False
        self._drain_at = 0.0  # when the grace time for QUIT ends
        self._incoming_data: IncomingData | None = None  # entry in the memory budget

    # Transport events and timers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._stream = cast(asyncio.Transport, transport)  # that of uvloop is no subclass
        peer = transport.get_extra_info("peername")  # None: the client has already disconnected
        self._ip: str = normalize_ip(peer[0]) if peer else ""
        self._port: int = peer[1] if peer else 0
        self._client_policy = self._policy.client_policy(self._ip)
        self._exempt = self._client_policy.may_relay  # from the limits per client
        self._begin_session(tls=transport.get_extra_info("sslcontext") is not None)
        self._connections.add(self)
        super().connection_made(transport)

    def _begin_session(self, *, tls: bool) -> None:
        self._session = self._listener.session(self._policy, self._client_policy, tls=tls)

    def data_received(self, data: bytes) -> None:
        framer = self.framer
        framer.feed(data)
        if framer.in_data and not self._command_in_progress:
            self._on_data()
            if framer.data_is_complete:
                self._wake()
        elif self._waiter is not None and framer.has_line:
            self._wake()
        if not self._reading_is_paused and framer.pipelined_bytes > _PIPELINED_MAX_BYTES:
            self._reading_is_paused = True
            self._stream.pause_reading()

    def eof_received(self) -> bool:
        # aiosmtpd would cancel the current command; input before the half-close is still handled.
        self._eof = True
        self._wake()
        # True keeps the connection open for replies; TLS of asyncio has no half-closed connections.
        return self._stream.get_extra_info("sslcontext") is None

    def connection_lost(self, error: Exception | None) -> None:
        # aiosmtpd would cancel the current command, even an append. The task sees `_lost` and ends.
        self._lost = True
        self._deadline.cancel()
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None
        self._wake()

    def reset_timeout(self) -> None:
        self._deadline.set(self._limit_seconds(self._policy.command_seconds))

    @property
    def _is_under_stress(self) -> bool:
        return not self._exempt and self._services.connection_limiter.is_under_stress

    def _limit_seconds(self, seconds: float) -> float:
        return min(seconds, self._policy.stress_seconds) if self._is_under_stress else seconds

    def shorten_timeout(self) -> None:
        """Called when the stress begins: the current wait has the time limit of later ones."""
        if self._is_under_stress and not self._end:
            self._deadline.shorten(self._policy.stress_seconds)

    def _on_timeout(self) -> None:
        if self._end:
            self.abort()
        elif self._command_in_progress:
            self._deadline.set(1.0)  # the server is busy, the client is not idle
        else:
            self._reply_and_end(replies.TIMED_OUT, SessionEnd.TIMEOUT)
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
        self._stream.abort()

    # Command loop

    async def serve(self) -> None:
        services = self._services
        _open_connections(self._listener.name).inc()
        try:
            await self._execute(self._session.greet(self._refuse_connection()))
            await self._run_commands()
        except asyncio.CancelledError:
            if self._command_in_progress:
                self._end = SessionEnd.ABORTED  # the outcome of the message is unknown: send no reply
            else:
                self._reply_and_end(replies.SHUTTING_DOWN, SessionEnd.ABORTED)  # RFC 5321 section 3.8
            raise
        finally:
            self._close_connection()
            self._release_memory()
            services.release(self._ip, exempt=self._exempt)
            _open_connections(self._listener.name).dec()
            _ended_sessions(self._listener.name, (self._end or SessionEnd.INTERNAL_ERROR).value).inc()
            self._connections.discard(self)
            session = self._session
            # Not logged: health checks, which send nothing, and refusals, which were logged before.
            silent = session.helo is None and not session.errors and self._end is SessionEnd.DISCONNECTED
            if self._end not in (SessionEnd.QUIT, SessionEnd.REJECTED) and not silent:
                logger.info("session ended", client=self._ip, helo=session.helo, end=self._end, errors=session.errors)

    def _refuse_connection(self) -> Reply | None:
        if self._draining:
            return replies.SHUTTING_DOWN
        return replies.SERVICE_NOT_AVAILABLE if isinstance(self._services.log.condition(), Down) else None

    async def _run_commands(self) -> None:
        handled = 0
        while (line := await self._next_line()) is not None:
            self._command_in_progress = True
            try:
                await self._execute(
                    self._session.receive(
                        line,
                        self._services.directory.snapshot,
                        is_ahead=self.framer.pipelined_bytes > 0,
                        under_stress=self._is_under_stress,
                    )
                )
            except Exception:  # a bug must not end the session; aiosmtpd would send its text in a 5xx reply
                logger.exception("internal error, command gets 4xx", client=self._ip, verb=self._session.verb)
                await self._execute(self._session.recover(in_data=self.framer.in_data))
            self._command_in_progress = False
            self._release_memory()
            self.reset_timeout()
            if self._draining:
                self._schedule_drain()
            handled += 1
            if handled % _COMMANDS_PER_TURN == 0:  # also bounds unsent replies
                await self._flush()
                await asyncio.sleep(0)

    # Actions of the session

    async def _execute(self, steps: actions.Actions) -> None:
        """Execute actions in their order, until the last one or the end of the session; send each result back."""
        result: object = None
        while not self._end:
            # An action always follows a result. `send` would raise StopIteration after the last one, which costs more.
            action = next(steps, None) if result is None else steps.send(result)
            result = None
            match action:
                case None:
                    return
                case Reply():
                    self._reply(action)
                case actions.CheckCapacity():
                    result = self._services.check_capacity(action, self._ip, self.loop.time(), exempt=self._exempt)
                case actions.OpenTenant():
                    result = await self._services.open_tenant(action.tenant)
                case actions.ReadContent():
                    result = await self._read_content(action.bytes_max)
                case actions.ReadLine():
                    result = await self._read_line(action.bytes_max)
                case actions.StartTls():
                    await self._start_tls()
                case actions.Accept():
                    result = await self._services.acceptance.receive(
                        action,
                        self.framer.take_data(),
                        client=Client(self._ip, self._port, action.helo, action.protocol),
                        policy=self._policy,
                        snapshot=self._services.directory.snapshot,
                    )
                case QueryMx():
                    result = await self._services.check_domain(action.domain)
                case actions.Refused():
                    self._refuse(action)
                case actions.Close():
                    self._end = action.end
                case _:
                    assert_never(action)

    def _reply(self, reply: Reply) -> None:
        self.output.append(_encoded(reply))
        _sent_replies(self._session.verb, reply.code).inc()

    def _reply_and_end(self, reply: Reply, end: SessionEnd) -> None:
        self._reply(reply)
        self._end = end

    def _refuse(self, action: actions.Refused) -> None:
        verb, reply = self._session.verb, action.reply
        logger.info("command refused", client=self._ip, verb=verb, reply=str(reply), **action.fields)
        if action.counted:
            _refused_messages("tempfail" if reply.is_temporary else "rejected").inc()
        self._reply(reply)

    async def _next_line(self) -> bytes | Malformed | None:
        """Wait for a line. None: the session has ended."""
        while not self._end:
            if self._lost:  # replies cannot be sent; the client will retry
                self._end = SessionEnd.DISCONNECTED
            elif (line := self.framer.next_line()) is not None:
                return line
            elif self._draining and self.loop.time() >= self._drain_at:
                self._reply_and_end(replies.SHUTTING_DOWN, SessionEnd.SHUTDOWN)
            elif not await self._wait_for_input():
                self._end = self._end or SessionEnd.DISCONNECTED
        return None

    async def _read_line(self, bytes_max: int) -> bytes | Malformed | None:
        self.framer.line_max = bytes_max
        self._command_in_progress = False
        self.reset_timeout()
        line = await self._next_line()
        self._command_in_progress = True
        self.framer.line_max = esmtp.LONGEST_LINE
        return line

    async def _start_tls(self) -> None:
        """TLS handshake. What the client sent ahead in clear is discarded, and a new session begins (RFC 3207 section
        4.2).
        """
        assert self._listener.tls is not None
        await self._flush()
        self.framer.clear()  # no octet is read in clear after this line
        try:
            self._stream = await self.start_tls(self._listener.tls)
        except OSError as error:  # ssl.SSLError is one
            logger.info("TLS handshake failed, session closed", client=self._ip, error=str(error) or "connection lost")
            self._end = SessionEnd.DISCONNECTED
            return
        self._reading_is_paused = False  # the new transport reads
        self._begin_session(tls=True)

    async def _wait_for_input(self) -> bool:
        """Send queued replies and wait for input. Return False when there will be none."""
        if self._stream.get_write_buffer_size():  # earlier output
            await self._flush()
            framer = self.framer
            if self._end or (framer.data_is_complete if framer.in_data else framer.has_line):
                return True  # it arrived while the replies were flushed
        elif self.output:
            self._coalescer.add(self._write_output)
        if self._eof or self._lost:
            return False
        if self._reading_is_paused:
            self._reading_is_paused = False
            self._stream.resume_reading()
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        return True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _flush(self) -> None:
        self._write_output()
        if self._stream.get_write_buffer_size():
            try:
                await self.drain_writer()
            except ConnectionError:
                self._lost = True

    def _write_output(self) -> None:
        output = self.output
        if output and not self._stream.is_closing():
            self._stream.write(b"".join(output) if len(output) > 1 else output[0])
            output.clear()

    def _close_connection(self) -> None:
        """Send queued replies and close; abort after a time-out if the client does not read."""
        self._write_output()
        if not self._lost:
            self._stream.close()
            self._deadline.set(_LINGER_SECONDS)
        self._wake()

    # Message data

    async def _read_content(self, bytes_max: int) -> Reply | None:
        """Send the 354 and wait for the final dot. Return the refusal when the data was discarded."""
        framer = self.framer
        # The size limit (RFC 1870 section 3) excludes transparent dots: at most one for every three octets.
        framer.begin_data(bytes_max * 4 // 3 + 1)
        self._command_in_progress = False
        incoming = IncomingData(self._ip, self.loop.time(), self._abort_slow_data, exempt=self._exempt)
        self._incoming_data = incoming
        self._services.memory_budget.add(incoming)
        self._on_data()
        while not framer.data_is_complete and not self._end:
            if not await self._wait_for_input():
                break
        self._command_in_progress = True
        if not framer.data_is_complete:
            self._end = self._end or SessionEnd.DISCONNECTED
        if self._end or not framer.data_is_discarded:
            return None
        framer.skip_data()
        return replies.INSUFFICIENT_STORAGE if incoming.is_over_budget else replies.TOO_LARGE

    def _on_data(self) -> None:
        """Report the held data to the memory budget, discard it when it exceeds the budget, and restart the time-out.

        The time-out restarts with each part of the data, as RFC 5321 section 4.5.3.2.5 has it for clients. After five
        times the time-out the data must have arrived at `_LONG_DATA_MIN_BYTES_PER_SECOND` on average.
        """
        incoming, budget, now = self._incoming_data, self._services.memory_budget, self.loop.time()
        if incoming is None:
            return
        incoming.is_complete = self.framer.data_is_complete
        if not budget.resize(incoming, self.framer.data_held_bytes, now):
            self.framer.discard_data()
            incoming.is_over_budget = True
            budget.resize(incoming, 0, now)
        seconds = self._limit_seconds(self._policy.data_seconds)
        limit = 5 * seconds + self.framer.data_held_bytes / _LONG_DATA_MIN_BYTES_PER_SECOND
        self._deadline.set(max(0.001, min(seconds, incoming.started_at + limit - now)))

    def _abort_slow_data(self) -> None:
        """Called by the memory budget when memory is short and this data arrives slowly."""
        received_bytes = self.framer.data_held_bytes
        logger.info("slow message data aborted, session closed", client=self._ip, received_bytes=received_bytes)
        self.framer.discard_data()
        self._reply_and_end(replies.TOO_SLOW, SessionEnd.SLOW)
        self._close_connection()

    def _release_memory(self) -> None:
        if self._incoming_data is not None:
            self._services.memory_budget.remove(self._incoming_data)
            self._incoming_data = None
