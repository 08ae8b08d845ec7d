"""One delivery attempt, from a `Dispatched` record to its `Attempted` record.

Reads the content, selects the courier and spools the content of deferred recipients. Internal errors become deferrals,
so the result has one outcome per recipient; only cancellation raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import assert_never

import structlog

from delivery.courier import Courier, Progress, same_outcome
from delivery.provider import provider_of
from delivery.transaction import HEADER_BYTES_MAX
from mail.backoff import backoff
from mail.header_section import header_section
from mail.message import Inline, Spooled
from mail.outcome import Deferred, Delivered, ExchangerReply, Failed, Outcome
from mail.record import Attempted, Delivery, Dispatched
from mail.reply import Reply
from mail.route import Route, ToMailbox, ToMx, ToRelay, Unresolved
from mail.spool import Spool, SpoolDamaged, SpoolUnavailable
from mail.telemetry.delivery import ATTEMPT_DURATION, ATTEMPTS, DELIVERED_BYTES, DELIVERED_MESSAGES, FAILURES, STATUSES

logger = structlog.get_logger()

INTERNAL_ERROR = Reply(451, "4.3.0", "Internal error during delivery")
DELIVERED_REPLY_LOST = Reply(250, "2.0.0", "Delivered; the server's reply could not be recorded")
# RFC 3463 X.3.0. A DSN may quote them to the sender, so they do not name the content.
SPOOL_UNAVAILABLE = Reply(451, "4.3.0", "The spool with the message content is not available")
SPOOL_DAMAGED = Reply(451, "4.3.0", "The message content is missing or damaged")

_SPOOL_BACKOFF_SECONDS, _SPOOL_BACKOFF_SECONDS_MAX = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The result of one attempt; `content` is empty if it could not be read."""

    outcomes: tuple[Outcome, ...]
    started: datetime
    seconds: float
    content: bytes
    asked: tuple[ExchangerReply, ...] = ()


class AttemptRunner:
    """Makes attempts with the given couriers."""

    def __init__(self, *, smtp: Courier, mailbox: Courier, spool: Spool) -> None:
        self._smtp = smtp
        self._mailbox = mailbox
        self._spool = spool
        self._metrics: dict[tuple[str, str], _AttemptMetrics] = {}

    async def deliver(self, dispatched: Dispatched, progress: Progress) -> AttemptResult:
        """Deliver once. Cancellation: see `Courier.deliver`."""
        started = datetime.now(UTC)
        clock = asyncio.get_running_loop().time
        start = clock()
        content = await self._read_content(dispatched)
        if isinstance(content, Reply):
            outcomes = same_outcome(dispatched.delivery.message.envelope, content)
        else:
            outcomes = await self._deliver_by_courier(dispatched.delivery, content, progress)
        duration = clock() - start
        self._observe(dispatched, outcomes, duration)
        content = b"" if isinstance(content, Reply) else content
        return AttemptResult(outcomes, started, duration, content, progress.asked)

    async def make_report(
        self, dispatched: Dispatched, result: AttemptResult, on_spool_wait: Callable[[], None]
    ) -> Attempted:
        """The record to report; the content of deferred recipients is in the spool when this returns. Avoid cancelling
        it: the mail may be delivered already. `on_spool_wait` is called when the spool fails and the wait may be long.
        """
        outcomes = result.outcomes
        headers = b""
        spooled: Spooled | None = None
        if not all(isinstance(outcome, Delivered) for outcome in outcomes):
            headers = header_section(result.content, HEADER_BYTES_MAX)
            spooled = await self._content_for_retry(dispatched, outcomes, on_spool_wait)
        delivery_id, duration = dispatched.delivery.id, timedelta(seconds=result.seconds)
        number, asked = dispatched.number, result.asked
        return Attempted(delivery_id, number, outcomes, result.started, duration, spooled, headers, asked)

    async def make_internal_error_report(
        self, dispatched: Dispatched, result: AttemptResult | None, on_spool_wait: Callable[[], None]
    ) -> Attempted:
        """The record to report when `make_report` raises: delivered recipients stay delivered, all others are deferred,
        with local replies.
        """
        outcomes = same_outcome(dispatched.delivery.message.envelope, INTERNAL_ERROR)
        if result is not None and len(result.outcomes) == len(outcomes):
            outcomes = tuple(
                Delivered(deferred.recipient, DELIVERED_REPLY_LOST) if isinstance(outcome, Delivered) else deferred
                for outcome, deferred in zip(result.outcomes, outcomes, strict=True)
            )
        started = datetime.now(UTC) if result is None else result.started
        spooled = await self._content_for_retry(dispatched, outcomes, on_spool_wait)
        return Attempted(dispatched.delivery.id, dispatched.number, outcomes, started, timedelta(0), spooled)

    async def _content_for_retry(
        self, dispatched: Dispatched, outcomes: tuple[Outcome, ...], on_spool_wait: Callable[[], None]
    ) -> Spooled | None:
        """The spooled content if a recipient was deferred, else None."""
        if not any(isinstance(outcome, Deferred) for outcome in outcomes):
            return None
        match dispatched.content:
            case Spooled() as spooled:
                return spooled
            case Inline(data):
                return await self._put_in_spool(data, dispatched.delivery, on_spool_wait)

    async def _read_content(self, dispatched: Dispatched) -> bytes | Reply:
        match dispatched.content:
            case Inline(data):
                return data
            case Spooled() as spooled:
                ids = _ids_of(dispatched.delivery)
                try:
                    return await self._spool.read(spooled)
                except SpoolDamaged as error:
                    logger.error(  # noqa: TRY400
                        "spooled content damaged, delivery deferred", **ids, spool=spooled.name, error=str(error)
                    )
                    return SPOOL_DAMAGED
                except SpoolUnavailable as error:
                    logger.warning("spool unavailable, delivery deferred", **ids, spool=spooled.name, error=str(error))
                except Exception:  # a bug in a spool: as if it were unavailable
                    logger.exception("spool failed, delivery deferred", **ids, spool=spooled.name)
                return SPOOL_UNAVAILABLE

    async def _deliver_by_courier(self, delivery: Delivery, content: bytes, progress: Progress) -> tuple[Outcome, ...]:
        envelope = delivery.message.envelope
        try:
            outcomes = await self._courier_for(delivery.route).deliver(delivery, content, progress)
        except Exception:  # a bug in a courier defers the delivery
            logger.exception("courier failed, delivery deferred", **_ids_of(delivery))
            return same_outcome(envelope, INTERNAL_ERROR)
        if len(outcomes) != len(envelope.recipients):
            logger.error("wrong number of outcomes, delivery deferred", **_ids_of(delivery))
            return same_outcome(envelope, INTERNAL_ERROR)
        return outcomes

    def _courier_for(self, route: Route) -> Courier:
        match route:
            case ToMailbox():
                return self._mailbox
            case ToRelay() | ToMx():
                return self._smtp
            case Unresolved():
                raise ValueError("an unresolved route is never dispatched")
            case _:
                assert_never(route)

    async def _put_in_spool(self, content: bytes, delivery: Delivery, on_wait: Callable[[], None]) -> Spooled:
        """Retry until the spool accepts the content: a deferral must not be reported before its content is durable."""
        pauses = backoff(_SPOOL_BACKOFF_SECONDS, _SPOOL_BACKOFF_SECONDS_MAX)
        is_first = True
        while True:
            try:
                return await self._spool.put(content)
            except SpoolUnavailable as error:
                if is_first:  # many deliveries may wait
                    logger.warning(
                        "spool unavailable, report of a deferral waits", **_ids_of(delivery), error=str(error)
                    )
            except Exception:  # a bug in a spool: as if it were unavailable
                logger.exception("spool failed, report of a deferral waits", **_ids_of(delivery))
            if is_first:
                on_wait()
            is_first = False
            await asyncio.sleep(next(pauses))

    def _observe(self, dispatched: Dispatched, outcomes: tuple[Outcome, ...], duration: float) -> None:
        """Update the metrics and log one line."""
        route = dispatched.delivery.route
        transport = "mailbox" if isinstance(route, ToMailbox) else "smtp"
        if isinstance(route, ToRelay):
            transport = route.protocol.value
        labels = transport, provider_of(route)
        metrics = self._metrics.get(labels)
        if metrics is None:
            metrics = self._metrics[labels] = _AttemptMetrics(*labels)
        delivered = metrics.count(outcomes, dispatched.delivery.message.size_bytes)
        metrics.duration.observe(duration)
        worst = _worst(outcomes)
        logger.info(
            "attempted",
            queue_id=dispatched.delivery.message.queue_id,
            delivery_id=dispatched.delivery.id,
            attempt=dispatched.number,
            delivered=delivered,
            recipients=len(outcomes),
            result=_RESULTS[type(worst)],
            site=route.site,
            remote=worst.remote,
            reply=str(worst.reply),
            seconds=round(duration, 3),
        )


class _AttemptMetrics:
    """Metric children of one transport and provider."""

    def __init__(self, transport: str, provider: str) -> None:
        self.duration = ATTEMPT_DURATION.labels(transport)
        self._messages = DELIVERED_MESSAGES.labels(transport)
        self._bytes = DELIVERED_BYTES.labels(transport)
        self._results = {kind: ATTEMPTS.labels(transport, provider, name) for kind, name in _RESULTS.items()}
        self._failures = {status: FAILURES.labels(transport, provider, status) for status in STATUSES}

    def count(self, outcomes: tuple[Outcome, ...], size_bytes: int) -> int:
        delivered = 0
        for outcome in outcomes:
            self._results[type(outcome)].inc()
            if isinstance(outcome, Delivered):
                delivered += 1
            else:
                # RFC 3463 section 3.1: X.0 is "other or undefined".
                undefined = self._failures["4.0" if isinstance(outcome, Deferred) else "5.0"]
                self._failures.get(outcome.reply.status.rpartition(".")[0], undefined).inc()
        if delivered:
            self._messages.inc()
            self._bytes.inc(size_bytes)
        return delivered


def _ids_of(delivery: Delivery) -> dict[str, str]:
    return {"queue_id": delivery.message.queue_id, "delivery_id": delivery.id}


_RESULTS: dict[type[Delivered] | type[Deferred] | type[Failed], str] = {
    Delivered: "delivered",
    Deferred: "deferred",
    Failed: "failed",
}


def _worst(outcomes: tuple[Outcome, ...]) -> Outcome:
    """The outcome to log: failed before deferred before delivered."""
    for kind in (Failed, Deferred):
        for outcome in outcomes:
            if isinstance(outcome, kind):
                return outcome
    return outcomes[0]
