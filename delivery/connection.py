"""One outbound connection: an asyncio protocol around a `ClientSession`.

The deadline is a number that the pool's sweep checks, so that a message needs no timer. Content is written in slices
under flow control, and each slice that is sent renews the deadline (RFC 5321 section 4.5.3.2.5).
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from delivery.client_session import ClientSession, Phase
from delivery.exchangers import Exchanger
from delivery.handshake import HandshakeFailure
from delivery.peer import PeerKey
from delivery.timeouts import Timeouts
from delivery.transaction import TransactionResult
from mail.envelope import Envelope
from mail.route import Route
from mail.telemetry.delivery import CONNECTIONS

SLICE_BYTES = 65536
_SLOWEST_BYTES_PER_SECOND = 16384
LAST_BYTES_MAX = 65536  # read after a failed write


class Connection(asyncio.Protocol):
    """Created by the pool through `loop.create_connection`. `transactions` counts finished ones."""

    def __init__(
        self,
        key: PeerKey,
        session: ClientSession,
        timeouts: Timeouts,
        on_closed: Callable[[Connection], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.key = key
        self.session = session
        self.transactions = 0
        self.ip = ""  # of the server; set by the pool, as the next two
        self.route: Route
        self.exchanger: Exchanger
        self.better_hosts: tuple[str, ...] = ()  # of its route, by preference
        self.opened_at = 0.0
        self.acquired_at = 0.0
        self.idle_since = 0.0
        self.deadline = float("inf")
        self._transaction_deadline = float("inf")
        self._timeouts = timeouts
        self._on_closed = on_closed
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._unsent: deque[memoryview] = deque()
        self._paused = False
        self._waits_until_written = False
        self._waiter: asyncio.Future[None] | None = None

    # Called by the pool

    @property
    def host(self) -> str:
        return self.exchanger.host

    async def handshake(self) -> HandshakeFailure | None:
        """Wait for the greeting and EHLO. None when the server is ready for a transaction."""
        if self.session.phase in (Phase.GREETING, Phase.EHLO, Phase.HELO):
            self._renew_deadline()
            await self._wait()
        return self.session.failure

    async def transact(self, envelope: Envelope, content: bytes) -> TransactionResult:
        """One transaction. Cancellation before the final dot aborts the connection; after it, the method still waits
        for the reply, until it is cancelled again.
        """
        session = self.session
        session.start_transaction(envelope, content)
        if session.result is None:
            seconds = self._timeouts.transaction_seconds + len(content) / _SLOWEST_BYTES_PER_SECOND
            self._transaction_deadline = self._loop.time() + seconds
            self._flush()
            cancelled = False
            while session.result is None:
                try:
                    await self._wait()
                except asyncio.CancelledError:
                    # If the reply arrived at the same time, it takes precedence.
                    if session.result is None and (cancelled or not session.dot_sent):
                        self.abort("cancelled")
                        raise
                    cancelled = True
                    task = asyncio.current_task()
                    if task is not None:
                        task.uncancel()
        self._transaction_deadline = float("inf")
        self.transactions += 1
        return session.result

    @property
    def usable(self) -> bool:
        """Ready for a transaction, as far as is known locally."""
        return (
            self.session.phase is Phase.READY
            and not self._unsent
            and self._transport is not None
            and not self._transport.is_closing()
        )

    def quit(self) -> None:
        """Send QUIT; the sweep aborts the connection if the server does not reply."""
        if self.usable:
            self.session.quit()
            self._flush()
        else:
            self.abort("closed")

    def abort(self, reason: str, enhanced: str = "4.4.2") -> None:
        """Close the connection at once."""
        self.session.abort(reason, enhanced)
        self._unsent.clear()
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def check_deadline(self, now: float) -> None:
        """Called by the sweep: abort the connection after its deadline."""
        if now >= self.deadline:
            self.session.time_out("timed out")
        elif now >= self._transaction_deadline:
            self.session.time_out("timed out: the whole transaction takes too long")
        else:
            return
        self.abort("timed out")

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._renew_deadline()
        CONNECTIONS.inc()

    def data_received(self, data: bytes) -> None:
        # Only a complete reply renews the deadline: a server may send it byte by byte.
        if self.session.receive(data):
            self._flush()

    def eof_received(self) -> bool:
        self.session.abort("connection closed")
        self._flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and (last := self._read_last()):
            self.session.receive_last(last)
        reason = "connection lost" if exc is None else f"connection lost ({type(exc).__name__})"
        self.session.abort(reason)
        self._unsent.clear()
        self.deadline = float("inf")
        CONNECTIONS.dec()
        self._wake()
        self._on_closed(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._waits_until_written:
            self._waits_until_written = False
            assert self._transport is not None
            self._transport.set_write_buffer_limits()
        self._write_unsent()
        self._renew_deadline()

    # Internal

    def _read_last(self) -> bytes:
        """What the server sent and the event loop did not read, because a write failed first: the kernel keeps it, also
        after a reset.
        """
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        if sock is None:
            return b""
        with suppress(OSError, ValueError):
            return os.read(sock.fileno(), LAST_BYTES_MAX)  # does not block: the socket belongs to the event loop
        return b""

    def _check_written(self) -> None:
        """Tell the session when no octet of its output is left in this process: only then may the server have the final
        dot.
        """
        transport = self._transport
        if self._unsent or self._paused or transport is None or transport.is_closing():
            return
        if self.session.phase is Phase.CONTENT and transport.get_write_buffer_size():
            self._waits_until_written = True
            transport.set_write_buffer_limits(high=0)  # calls `pause_writing`, and `resume_writing` when it is empty
        else:
            self.session.on_output_written()
            if self.session.dot_sent:
                self._transaction_deadline = self._loop.time() + self._timeouts.transaction_seconds

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _flush(self) -> None:
        """After a change of the session: write its output, set the deadline, wake the waiter."""
        session = self.session
        out = session.to_send()
        if out:
            self._write(out)
        phase = session.phase
        if phase is Phase.CLOSED:
            self.deadline = self._loop.time() + self._timeouts.quit_seconds
            if self._transport is not None:
                self._transport.close()
            self._wake()
        elif phase is Phase.READY:
            self.deadline = float("inf")  # the pool closes idle connections
            self._wake()
        else:
            self._renew_deadline()

    def _renew_deadline(self) -> None:
        if self.session.phase in (Phase.READY, Phase.CLOSED):
            return
        sending = self._unsent or self._paused
        seconds = self._timeouts.block_seconds if sending else self.session.timeout_seconds(self._timeouts)
        self.deadline = self._loop.time() + seconds

    def _write(self, parts: list[bytes]) -> None:
        transport = self._transport
        assert transport is not None
        if not self._unsent and not self._paused and sum(map(len, parts)) <= SLICE_BYTES:
            if len(parts) == 1:
                transport.write(parts[0])
            else:
                transport.writelines(parts)
            self._check_written()
            return
        for part in parts:
            view = memoryview(part)
            self._unsent.extend(view[start : start + SLICE_BYTES] for start in range(0, len(view), SLICE_BYTES))
        self._write_unsent()

    def _write_unsent(self) -> None:
        transport = self._transport
        unsent = self._unsent
        while unsent and not self._paused and transport is not None and not transport.is_closing():
            transport.write(unsent.popleft())
        self._check_written()
