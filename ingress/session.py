"""One SMTP connection: bytes in, replies out, time-outs, and a client that may go at any time.

The only file that touches aiosmtpd. What is said is in `conversation`, where bytes end in `intake`. Promises: replies
in order, those to pipelined commands in one write; every wait for the client ends; no exception text reaches a peer;
a client that vanishes never undoes an append that has begun.

Of aiosmtpd's SMTP class this keeps the protocol's life: connection, session object, task, writer, and the TLS and
AUTH to come. It replaces its reading (line by line, LF ends a line), its parsing (lenient, in CPython's private
parser), its timer (one for all of DATA) and its cancelling of work when the client hangs up.
`tests/unit/ingress/test_traps.py`, and those it names, hold each reason. Next: `ingress/accept.py`, by way of
`ingress/conversation.py`.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import structlog
from aiosmtpd.smtp import SMTP

from ingress import replies
from ingress.conversation import Conversation
from ingress.door import Door
from ingress.ending import End
from ingress.esmtp import LONGEST_LINE
from ingress.intake import Intake
from ingress.outbox import Outbox
from ingress.policy import Terms, normal_ip
from ingress.pressure import Content
from mail.telemetry.ingress import SMTP_CONNECTIONS, SMTP_SESSIONS

log = structlog.get_logger()

_SURPLUS_MAX = 64 * 1024  # bytes a client may send ahead of us before we stop reading
_SLOWEST_RATE = 16 * 1024  # bytes a second, for content that takes long: 25 MiB in less than an hour
_TURN = 100  # pipelined commands obeyed before the other sessions have theirs
_GOODBYE_SECONDS = 0.5  # for a QUIT that is on its way when we drain
_LINGER_SECONDS = 5.0  # for a client that does not read our last words

# The labelled children, bound once: there are few doors, and few ways to end.
_connections_at = cache(SMTP_CONNECTIONS.labels)
_sessions_at = cache(SMTP_SESSIONS.labels)


class _NoHooks:
    """aiosmtpd's handler. There are no hooks; `__dir__` spares a look at every attribute at every connection."""

    def __dir__(self) -> list[str]:
        return []


_NO_HOOKS = _NoHooks()


class SmtpSession(SMTP):
    """A connection, from greeting to goodbye."""

    def __init__(self, door: Door, sessions: set[SmtpSession], outbox: Outbox, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            _NO_HOOKS,
            data_size_limit=None,
            enable_SMTPUTF8=True,
            hostname=door.hostname,  # else getfqdn(), a blocking look-up per connection
            ident="eilpost",
            timeout=door.command_seconds,
            loop=loop,
        )
        self._door = door
        self._sessions = sessions
        self._outbox = outbox
        self.intake = Intake(LONGEST_LINE)
        self._talk = Conversation(door, self, "", 0, Terms(may_relay=False, sender_must_resolve=True))
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._timer_due = 0.0
        self._eof = False  # the client says no more; it may still listen
        self._lost = False
        self._reading_is_paused = False  # not `_paused`: that is asyncio's, and speaks of writing
        self._busy = False  # a command is being obeyed: the timer and the drain let it finish
        self._draining = False
        self._goodbye_at = 0.0  # when a draining session has had its moment to say QUIT
        self._content: Content | None = None  # what the meter knows of ours
        self._content_began = 0.0
        self.content_found_no_room = False

    def __dir__(self) -> list[str]:
        return []  # what aiosmtpd inspects with dir() and getmembers(), 360 us a connection

    # Bytes come in, time passes, the client goes.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self._talk.ip, self._talk.port = normal_ip(peer[0]), peer[1]
            self._talk.terms = self._door.terms(self._talk.ip)
        self._sessions.add(self)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        intake = self.intake
        intake.feed(data)
        if intake.in_content and not self._busy:
            self._account()
            self._expect_content()
            if intake.content_is_complete:
                self._wake()
        elif self._waiter is not None and intake.line_is_due:
            self._wake()
        if not self._reading_is_paused and intake.surplus > _SURPLUS_MAX and self._pipe is not None:
            self._reading_is_paused = True
            self._pipe.pause_reading()

    def eof_received(self) -> bool:
        # Not aiosmtpd's, which cancels the command under way. What was sent before the half-close still counts.
        self._eof = True
        self._wake()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        # Not aiosmtpd's, which cancels the command under way, an append among them. The task sees `_lost` and ends.
        self._lost = True
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None
        self._wake()

    def _reset_timeout(self, duration: float | None = None) -> None:
        # One timer per session that looks at a deadline when it fires; moving the deadline costs nothing.
        self._deadline = self.loop.time() + (duration or self._timeout_duration)
        if self._timeout_handle is None or self._timer_due > self._deadline:
            self._arm(self._deadline)

    def _arm(self, due: float) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        self._timer_due = due
        self._timeout_handle = self.loop.call_at(due, self._timeout_cb)

    def _timeout_cb(self) -> None:
        now = self.loop.time()
        if self._deadline - now > 0.001:
            self._arm(self._deadline)
        elif self._talk.end:
            self.cut()
        elif self._busy:
            self._arm(now + 1.0)  # the wait is ours, not the client's
        else:
            self._talk.finish(replies.TIMED_OUT, End.TIMEOUT)
            self._hang_up()

    def drain(self) -> None:
        """Say 421 at the next moment at which no message is under way (RFC 5321 section 3.8)."""
        self._draining = True
        self._leave_a_moment()

    def _leave_a_moment(self) -> None:
        """Who just had its 250 is about to say QUIT. A 421 in place of the 221 makes some clients (Python's smtplib)
        take the whole for failed, and send it again.
        """
        self._goodbye_at = self.loop.time() + _GOODBYE_SECONDS
        self.loop.call_at(self._goodbye_at + 0.001, self._goodbye)

    def _goodbye(self) -> None:
        if not self.intake.in_content:
            self._wake()

    def cut(self) -> None:
        """Let go of the client at once."""
        if self._pipe is not None:
            self._pipe.abort()

    @property
    def task(self) -> asyncio.Task[None] | None:
        return self._handler_coroutine

    @property
    def _pipe(self) -> asyncio.Transport | None:
        transport: asyncio.Transport | None = self.transport  # type: ignore[assignment]  # aiosmtpd says BaseTransport
        return transport

    # The loop: one line, one command, one reply.

    async def _handle_client(self) -> None:
        talk = self._talk
        entered = self._door.crowd.enter(talk.ip, exempt=talk.terms.may_relay)
        connections = _connections_at(self._door.name)
        connections.inc()
        try:
            if talk.greet(entered=entered, draining=self._draining):
                await self._converse()
        except asyncio.CancelledError:
            if self._busy:
                talk.end = End.CUT  # whether the message under way is taken is not known: say nothing of it
            else:
                talk.finish(replies.SHUTTING_DOWN, End.CUT)  # RFC 5321 section 3.8
            raise
        finally:
            self._hang_up()
            self._release()
            if entered:
                self._door.crowd.leave(talk.ip)
            connections.dec()
            _sessions_at(self._door.name, (talk.end or End.ERROR).value).inc()
            self._sessions.discard(self)
            # Health checks connect and go without a word; refusals have their line already.
            silent = talk.helo is None and not talk.errors and talk.end is End.LOST
            if talk.end not in (End.QUIT, End.REFUSED) and not silent:
                log.info("session ended", client=talk.ip, helo=talk.helo, end=talk.end, errors=talk.errors)

    async def _converse(self) -> None:
        talk = self._talk
        obeyed = 0
        while not talk.end:
            if self._lost:  # nobody hears the answers; what was not answered will be sent again
                talk.end = End.LOST
                return
            line = self.intake.next_line()
            if line is None:
                if self._draining and self.loop.time() >= self._goodbye_at:
                    talk.finish(replies.SHUTTING_DOWN, End.DRAINED)
                elif not await self._more():
                    talk.end = talk.end or End.LOST
                continue
            self._busy = True
            try:
                await talk.obey(line)
            except Exception as error:  # a bug of ours must not become the client's
                await self.handle_exception(error)
            self._busy = False
            self._release()
            self._reset_timeout()
            if self._draining:
                self._leave_a_moment()
            obeyed += 1
            if obeyed % _TURN == 0:  # nor are the replies hoarded for a client that does not read them
                await self._flush()
                await asyncio.sleep(0)

    async def handle_exception(self, error: Exception) -> str:
        # aiosmtpd would tell the client the error's text, permanently.
        log.error("session error", client=self._talk.ip, verb=self._talk.verb, exc_info=error)
        self._talk.fail()
        return ""

    async def _more(self) -> bool:
        """Send what was said and wait for something new. False: there will be nothing."""
        if self._is_behind():
            await self._flush()
            if self._has_news():  # it came while we waited for the client to read
                return True
        elif self._talk.out:
            self._outbox.add(self._write)
        if self._eof or self._lost:
            return False
        if self._reading_is_paused and self._pipe is not None:
            self._reading_is_paused = False
            self._pipe.resume_reading()
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        return True

    def _has_news(self) -> bool:
        intake = self.intake
        return bool(self._talk.end) or (intake.content_is_complete if intake.in_content else intake.line_is_due)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def push(self, status: Any) -> None:
        # As aiosmtpd's, but into the batch.
        self._talk.out.append((status if isinstance(status, bytes) else str(status).encode()) + b"\r\n")

    def _is_behind(self) -> bool:
        """Whether the client has yet to read what was written before."""
        return self._pipe is not None and self._pipe.get_write_buffer_size() > 0

    async def _flush(self) -> None:
        self._write()
        if self._is_behind():
            try:
                await self._writer.drain()
            except ConnectionError:
                self._lost = True

    def _write(self) -> None:
        out = self._talk.out
        if out and self._pipe is not None and not self._lost and not self._pipe.is_closing():
            self._pipe.write(b"".join(out) if len(out) > 1 else out[0])
            out.clear()

    def _hang_up(self) -> None:
        """Send what was said and close, but do not wait for ever for a client that does not read."""
        self._write()
        if self._pipe is not None:
            self._pipe.close()
            self._deadline = self.loop.time() + _LINGER_SECONDS
            self._arm(self._deadline)
        self._wake()

    # Content.

    async def read_content(self) -> bool:
        """Send the 354 and wait for the final dot. False: the client went away without it, or was sent away."""
        intake = self.intake
        # The limit is on the message (RFC 1870 section 3), not on its transparent dots: at most one in three octets.
        intake.begin_content(self._door.max_size * 4 // 3 + 1)
        self._busy = False
        self._content_began = self.loop.time()
        self._content = Content(self._talk.ip, self._content_began, self._too_slow, exempt=self._talk.terms.may_relay)
        self._door.meter.begin(self._content)
        self._account()
        self._expect_content()
        while not intake.content_is_complete and not self._talk.end:
            if not await self._more():
                break
        self._busy = True
        if intake.content_is_complete and not self._talk.end:
            return True
        self._talk.end = self._talk.end or End.LOST
        return False

    def _expect_content(self) -> None:
        """Time for the next part, not for the whole (RFC 5321 section 4.5.3.2.5). But a byte a minute does not hold a
        connection for ever: after five times the time-out the sender must have kept a rate.
        """
        seconds = self._door.data_seconds
        patience = 5 * seconds + self.intake.content_held / _SLOWEST_RATE
        left = self._content_began + patience - self.loop.time()
        self._reset_timeout(max(0.001, min(seconds, left)))

    def has_room(self, octets: int) -> bool:
        """Whether there is memory for content of that size."""
        talk = self._talk
        return self._door.meter.has_room(talk.ip, octets, self.loop.time(), exempt=talk.terms.may_relay)

    def _account(self) -> None:
        """Keep the meter in step with what this session holds; beyond the cap, hold nothing."""
        content, meter, now = self._content, self._door.meter, self.loop.time()
        if content is None:
            return
        content.is_whole = self.intake.content_is_complete
        if not meter.hold(content, self.intake.content_held, now):
            self.intake.drop_content()
            self.content_found_no_room = True
            meter.hold(content, 0, now)

    def _too_slow(self) -> None:
        """Others need the memory, and our client takes its time."""
        log.info("content cut", client=self._talk.ip, octets=self.intake.content_held)
        self.intake.drop_content()
        self._talk.finish(replies.TOO_SLOW, End.SLOW)
        self._hang_up()

    def _release(self) -> None:
        """The content is ours in the log, or gone."""
        if self._content is not None:
            self._door.meter.end(self._content)
            self._content = None
        self.content_found_no_room = False
