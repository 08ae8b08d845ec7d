"""One attempt, from a dispatched record to the record of what became of it.

In charge of getting the content, of choosing the courier, of keeping the content of what is deferred, and of turning
every trouble of ours into a deferral. Never touches the log. It promises an `Attempted` with one outcome for each
recipient, or an exception only when it is cancelled. Next: `delivery/smtp.py`, `delivery/mailbox.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import assert_never

import structlog

from delivery.courier import Courier
from delivery.provider import provider_of
from delivery.transaction import header_block
from mail.message import Inline, Spooled
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import Attempted, Delivery, Dispatched
from mail.reply import Reply
from mail.route import Route, ToMailbox, ToMx, ToRelay, Unresolved
from mail.spool import Spool, SpoolDamaged, SpoolUnavailable
from mail.telemetry.delivery import (
    ATTEMPT_DURATION,
    ATTEMPTS,
    DELIVERED_BYTES,
    DELIVERED_MESSAGES,
    FAILURES,
    STATUSES,
)

log = structlog.get_logger()

OUR_FAULT = Reply(451, "4.3.0", "Internal error while carrying the message; see the log of the delivery worker")
TAKEN = Reply(250, "2.0.0", "Taken; what was said could not be recorded")
NO_SPOOL = Reply(451, "4.3.0", "The spool that holds the message does not answer")

# How much of the message a report may quote.
HEADERS_BYTES = 65536
SOON_SECONDS = 60.0
_SPOOL_BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Carriage:
    """What became of one carry; `content` is empty when it could not be had."""

    outcomes: tuple[Outcome, ...]
    started: datetime
    seconds: float
    content: bytes

    @property
    def answered(self) -> bool:
        """The next hop said something about a recipient, and soon: it is none that holds on to whoever calls."""
        return self.seconds <= SOON_SECONDS and any(outcome.remote is not None for outcome in self.outcomes)


class Attempts:
    """Makes attempts with the couriers it is given."""

    def __init__(self, *, smtp: Courier, mailbox: Courier, spool: Spool) -> None:
        self._smtp = smtp
        self._mailbox = mailbox
        self._spool = spool
        self._meters: dict[tuple[str, str], _Meter] = {}

    async def carry(self, dispatched: Dispatched) -> Carriage:
        """Carry once. Cancelled, it leaves nothing to report, unless the message is past its final dot."""
        started = datetime.now(UTC)
        clock = asyncio.get_running_loop().time
        began = clock()
        content = await self._content(dispatched)
        if isinstance(content, Reply):
            outcomes = _all_deferred(dispatched.delivery, content)
        else:
            outcomes = await self._carry(dispatched.delivery, content)
        duration = clock() - began
        self._report(dispatched, outcomes, duration)
        return Carriage(outcomes, started, duration, b"" if isinstance(content, Reply) else content)

    async def record(self, dispatched: Dispatched, carriage: Carriage, waits: Callable[[], None]) -> Attempted:
        """What to report; the content of what is deferred is in the spool when this returns. Never to be cancelled
        lightly: the mail may be delivered already. `waits` is called when the spool fails, and may take long.
        """
        outcomes = carriage.outcomes
        headers = b""
        kept: Spooled | None = None
        if not all(isinstance(outcome, Delivered) for outcome in outcomes):
            headers = header_block(carriage.content, HEADERS_BYTES)
            kept = await self._kept(dispatched, outcomes, waits)
        return Attempted(
            dispatched.delivery.id,
            dispatched.number,
            outcomes,
            carriage.started,
            timedelta(seconds=carriage.seconds),
            kept,
            headers,
        )

    async def report_bug(
        self, dispatched: Dispatched, carriage: Carriage | None, waits: Callable[[], None]
    ) -> Attempted:
        """What to report when what there is cannot be, by a bug of ours: who has the message has it, everybody else is
        deferred; all in our own words.
        """
        recipients = dispatched.delivery.message.envelope.recipients
        outcomes = _all_deferred(dispatched.delivery, OUR_FAULT)
        if carriage is not None and len(carriage.outcomes) == len(recipients):
            outcomes = tuple(
                Delivered(recipient.address, TAKEN) if isinstance(outcome, Delivered) else deferred
                for recipient, outcome, deferred in zip(recipients, carriage.outcomes, outcomes, strict=True)
            )
        started = datetime.now(UTC) if carriage is None else carriage.started
        kept = await self._kept(dispatched, outcomes, waits)
        return Attempted(dispatched.delivery.id, dispatched.number, outcomes, started, timedelta(0), kept)

    async def _kept(
        self, dispatched: Dispatched, outcomes: tuple[Outcome, ...], waits: Callable[[], None]
    ) -> Spooled | None:
        """Where the content lies, when it is needed once more."""
        if not any(isinstance(outcome, Deferred) for outcome in outcomes):
            return None
        match dispatched.content:
            case Spooled() as spooled:
                return spooled
            case Inline(data):
                return await self._keep(data, waits)

    async def _content(self, dispatched: Dispatched) -> bytes | Reply:
        match dispatched.content:
            case Inline(data):
                return data
            case Spooled() as spooled:
                try:
                    return await self._spool.read(spooled)
                except SpoolDamaged as error:
                    log.warning(
                        "spool damaged",
                        queue_id=dispatched.delivery.message.queue_id,
                        spool=spooled.name,
                        error=str(error),
                    )
                    return Reply(451, "4.3.0", f"Spooled content {spooled.name}: {error}")
                except SpoolUnavailable as error:
                    log.warning("spool unavailable", queue_id=dispatched.delivery.message.queue_id, error=str(error))
                    return NO_SPOOL
                except Exception:
                    log.exception("spool failed", queue_id=dispatched.delivery.message.queue_id)
                    return NO_SPOOL

    async def _carry(self, delivery: Delivery, content: bytes) -> tuple[Outcome, ...]:
        try:
            outcomes = await self._courier(delivery.route).carry(delivery, content)
        except Exception:
            log.exception("courier failed", queue_id=delivery.message.queue_id, delivery_id=delivery.id)
            return _all_deferred(delivery, OUR_FAULT)
        if len(outcomes) != len(delivery.message.envelope.recipients):
            log.error("courier lost a recipient", queue_id=delivery.message.queue_id, delivery_id=delivery.id)
            return _all_deferred(delivery, OUR_FAULT)
        return outcomes

    def _courier(self, route: Route) -> Courier:
        match route:
            case ToMailbox():
                return self._mailbox
            case ToRelay() | ToMx():
                return self._smtp
            case Unresolved():
                raise ValueError("an unresolved route is never dispatched")
            case _:
                assert_never(route)

    async def _keep(self, content: bytes, waits: Callable[[], None]) -> Spooled:
        """Until the spool takes it: a deferral may not be reported before its content is safe."""
        tries = 0
        while True:
            try:
                return await self._spool.keep(content)
            except SpoolUnavailable as error:
                if tries == 0:  # many may wait
                    log.warning("spool unavailable", error=str(error))
            except Exception:
                log.exception("spool failed")
            if tries == 0:
                waits()
            await asyncio.sleep(_SPOOL_BACKOFF_SECONDS[min(tries, len(_SPOOL_BACKOFF_SECONDS) - 1)])
            tries += 1

    def _report(self, dispatched: Dispatched, outcomes: tuple[Outcome, ...], duration: float) -> None:
        """Metrics, and one line."""
        route = dispatched.delivery.route
        transport = (
            "mailbox" if isinstance(route, ToMailbox) else route.speaks.value if isinstance(route, ToRelay) else "smtp"
        )
        pair = transport, provider_of(route)
        meter = self._meters.get(pair)
        if meter is None:
            meter = self._meters[pair] = _Meter(*pair)
        delivered = meter.count(outcomes, dispatched.delivery.message.size_bytes)
        meter.duration.observe(duration)
        worst = _worst(outcomes)
        log.info(
            "attempted",
            queue_id=dispatched.delivery.message.queue_id,
            delivery_id=dispatched.delivery.id,
            number=dispatched.number,
            delivered=delivered,
            of=len(outcomes),
            result=_RESULTS[type(worst)],
            site=route.site,
            remote=worst.remote,
            reply=str(worst.reply),
            seconds=round(duration, 3),
        )


class _Meter:
    """The labelled children of one transport and provider, bound once."""

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
                known = self._failures.get(outcome.reply.status.rpartition(".")[0])
                (known or self._failures["4.0" if isinstance(outcome, Deferred) else "5.0"]).inc()
        if delivered:
            self._messages.inc()
            self._bytes.inc(size_bytes)
        return delivered


_RESULTS: dict[type[Delivered] | type[Deferred] | type[Failed], str] = {
    Delivered: "delivered",
    Deferred: "deferred",
    Failed: "failed",
}


def _worst(outcomes: tuple[Outcome, ...]) -> Outcome:
    """The one worth a line: failed before deferred before delivered."""
    for kind in (Failed, Deferred):
        for outcome in outcomes:
            if isinstance(outcome, kind):
                return outcome
    return outcomes[0]


def _all_deferred(delivery: Delivery, reply: Reply) -> tuple[Outcome, ...]:
    return tuple(Deferred(recipient.address, reply) for recipient in delivery.message.envelope.recipients)
