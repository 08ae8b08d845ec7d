"""`eilpost load`: start the sink, send, wait until all recipients are settled, return the result.

Recipients that are open after the settle time without progress are lost. SIGTERM ends the sending early; SIGINT, or a
second SIGTERM, ends the load with the result so far.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from eilpost.load.client import Client, ConnectionLost
from eilpost.load.ledger import Ledger
from eilpost.load.progress import Display, RateMeter
from eilpost.load.recorder import LoadRecorder
from eilpost.load.report import LoadResult, LoadSummary
from eilpost.load.sink import Sink
from eilpost.load.source import Source, error_text
from eilpost.load.supply import Supply
from eilpost.load.target import Target, TargetRefused
from eilpost.load.workload import Workload
from mail import endpoint
from mail.service import ServiceError, listen_failure
from mail.tasks import background, cancel_tasks, is_set_within

MAX_RECIPIENTS_IN_ALL = 5_000_000  # about 40 bytes each

_FIRST_REPLY_SECONDS = 10.0
_LAST_REPLIES_SECONDS = 3.0  # after an interruption, for replies to final dots
_LINGER_SECONDS = 1.0  # after the last arrival, for duplicates
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Options:
    targets: tuple[tuple[str, int], ...]
    sink: tuple[str, int]
    rate: float  # messages per second; 0: no limit
    duration_seconds: float | None
    messages: int | None
    sessions: int
    per_connection: int
    settle_seconds: float
    allow_public: bool


async def load(options: Options, workload: Workload, show: Callable[[str], None]) -> LoadResult:
    """Raises ServiceError when the sink cannot listen, no target responds, or a target is refused."""
    recorder = LoadRecorder(workload, Ledger(workload.run, workload.recipients))
    targets = [Target(host, port, allow_public=options.allow_public) for host, port in options.targets]
    host, port = options.sink
    sink = Sink(recorder, (host,), port)
    try:
        await sink.start()
    except OSError as error:
        raise ServiceError(f"--sink {endpoint.format(host, port)}: cannot listen: {listen_failure(error)}") from error
    try:
        await _require_target(targets, workload.domain)
        return await _Load(options, recorder, targets, sink).run(show)
    finally:
        await sink.stop()


async def _require_target(targets: list[Target], name: str) -> None:
    """Return when one target sends its greeting; the addresses of all targets are checked first."""
    problems: dict[Target, str] = {}
    for target in targets:
        try:
            await target.address()
        except TargetRefused as error:
            raise ServiceError(f"--target {target}: {error}") from error
        except OSError as error:
            problems[target] = str(error)
    for target in targets:
        if target not in problems:
            problem = await _check_target(target, name)
            if not problem:
                return
            problems[target] = problem
    raise ServiceError(f"no target responds: {'; '.join(f'{target}: {text}' for target, text in problems.items())}")


async def _check_target(target: Target, name: str) -> str:
    """The reason why the target cannot be used; empty when it sends a greeting or 4xx (busy)."""
    client: Client | None = None
    try:
        async with asyncio.timeout(_FIRST_REPLY_SECONDS):
            address = await target.address()
            _, client = await asyncio.get_running_loop().create_connection(Client, address, target.port)
            reply = await client.greet(name)
        return str(reply.to_reply()) if reply.code >= 500 else ""
    except (OSError, ConnectionLost) as error:
        return error_text(error)
    finally:
        if client is not None:
            client.write(b"QUIT\r\n")
            client.transport.close()


class _Load:
    def __init__(self, options: Options, recorder: LoadRecorder, targets: list[Target], sink: Sink) -> None:
        self._options = options
        self._recorder = recorder
        self._targets = targets
        self._sink = sink
        messages_max = MAX_RECIPIENTS_IN_ALL // recorder.workload.recipients
        self._limit = messages_max if options.messages is None else min(messages_max, options.messages)
        self._supply = Supply(recorder.messages(self._limit), per_second=options.rate or None)
        self._source = Source(
            targets,
            self._supply,
            recorder,
            sessions=options.sessions,
            per_connection=options.per_connection,
            name=recorder.workload.domain,
        )
        self._stop = asyncio.Event()
        self._stop_sending = asyncio.Event()
        self._started_at = time.monotonic()
        self._sent_at = 0.0
        self._display = Display(RateMeter(recorder.ledger, self._started_at))

    async def run(self, show: Callable[[str], None]) -> LoadResult:
        sink_address = endpoint.format(self._options.sink[0], self._sink.port)
        show(
            f"load {self._recorder.ledger.run}: sending to {', '.join(map(str, self._targets))}, sink on {sink_address}"
        )
        sending = asyncio.create_task(self._source.run())
        try:
            async with background(self._display.run()):
                with _handle_signals(self._stop, self._stop_sending):
                    await self._send(sending)
                    await self._settle()
        finally:
            await cancel_tasks(sending)
        now = time.monotonic()
        return LoadResult(
            self._recorder.workload,
            self._recorder.ledger,
            LoadSummary(
                targets=tuple(map(str, self._targets)),
                sink=sink_address,
                sessions=self._options.sessions,
                rate=self._options.rate,
                sending_seconds=(self._sent_at or now) - self._started_at,
                seconds=now - self._started_at,
                connections=self._source.connections,
                unsent=self._supply.unsent,
                interrupted=self._stop.is_set(),
            ),
        )

    async def _send(self, sending: asyncio.Task[None]) -> None:
        """Send until every message has a final result, nothing changed for the settle time, or a signal arrives."""
        duration = self._options.duration_seconds
        idle_timer = _IdleTimer(self._recorder.ledger)
        while not sending.done() and not self._stop.is_set():
            now = time.monotonic()
            if self._supply.is_sending_new:
                if self._stop_sending.is_set() or (duration is not None and now - self._started_at >= duration):
                    self._supply.stop_new()
                idle_timer.reset()
            else:
                self._sent_at = self._sent_at or now
                self._display.phase, self._display.sent_share = "settling", 1.0
                if idle_timer.seconds() > self._options.settle_seconds:
                    break
            self._display.sent_share = self._done_share(now)
            await asyncio.wait([sending], timeout=_POLL_SECONDS)
        self._sent_at = self._sent_at or time.monotonic()
        self._supply.stop()
        if sending.done():
            await sending  # raises its error
        else:
            await asyncio.wait([sending], timeout=_LAST_REPLIES_SECONDS)

    async def _settle(self) -> None:
        self._display.phase, self._display.sent_share = "settling", 1.0
        idle_timer = _IdleTimer(self._recorder.ledger)
        ledger = self._recorder.ledger
        while not self._stop.is_set():
            limit_seconds = self._options.settle_seconds if ledger.in_flight > 0 else _LINGER_SECONDS
            if idle_timer.seconds() > limit_seconds:
                return
            await is_set_within(self._stop, _POLL_SECONDS)

    def _done_share(self, now: float) -> float:
        shares = [self._recorder.ledger.counts.issued / self._limit]
        if self._options.duration_seconds:
            shares.append((now - self._started_at) / self._options.duration_seconds)
        return min(1.0, max(shares))


class _IdleTimer:
    """Time since the last change of the ledger's counters."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._last_state = (0, 0, 0, 0)
        self._since = time.monotonic()

    def reset(self) -> None:
        self._since = time.monotonic()

    def seconds(self) -> float:
        counts = self._ledger.counts
        state = (counts.arrivals, counts.accepted, counts.deferrals, counts.refused)
        if state != self._last_state:
            self._last_state = state
            self.reset()
        return time.monotonic() - self._since


@contextmanager
def _handle_signals(stop: asyncio.Event, stop_sending: asyncio.Event) -> Iterator[None]:
    """SIGTERM sets `stop_sending`, SIGINT and a second SIGTERM set `stop`; the next signal has its default action."""
    loop = asyncio.get_running_loop()

    def remove() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    def on_signal(number: int) -> None:
        if number == signal.SIGTERM and not stop_sending.is_set():
            stop_sending.set()
            return
        stop.set()
        remove()

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread
            loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        remove()
