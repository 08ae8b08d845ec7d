"""Decides what follows from a fact: the one place where the fate of a message is determined. Pure.

`decide(queue, fact, world, now)` yields records, and the caller folds each into the queue before it asks for the next,
so that a decision sees what it did itself (a message to a thousand mailboxes fills the window as it goes). It changes
nothing, reads no clock and throws no dice; the same queue and fact give the same records. A fact that is known already
or out of date yields nothing. Every recipient is at any time open in the queue, delivered, failed (and the sender
told, if there is one), or discarded; `router/accounting.py` counts it. Next: `delivery/worker.py` (through
`Dispatched`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import assert_never

from mail.address import Address
from mail.directory import Destination, IsAlias, IsMailbox, IsRelayed, IsRemote, IsUnknown
from mail.directory.expand import expand
from mail.envelope import Notify, Recipient
from mail.message import Content, DeliveryId, Inline, Message, QueueId, Spooled, delivery_id, derived_queue_id
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import (
    Accepted,
    Active,
    Attempted,
    AttemptRecorded,
    Bounced,
    Closed,
    Delivery,
    Dispatched,
    Event,
    Pending,
    Received,
    Record,
    Refused,
    Resumed,
    Routed,
    Settled,
    WaitCause,
    Waiting,
)
from mail.reply import Reply
from mail.route import Route, ToMailbox, Unresolved
from router.dsn import FailedRecipient, failure_dsn
from router.mail_queue import MailQueue
from router.next_hop import mx_domain, next_hop
from router.retry import is_expired, next_attempt_time, next_resolve_time
from router.routing_context import RoutingContext

CONTENT_LOST = Reply(554, "5.3.0", "The content of the message is lost")  # ours; never seen
# Recipients in one report, so that it stays small enough to ride in its record, whatever the next hops said.
RECIPIENTS_PER_DSN = 50
RECIPIENTS_PER_EVENT = (
    200  # recipients in one line of the history: a record has a size it may not pass (1 MiB in Kafka, by default)
)
OUTCOME_MISSING = Reply(451, "4.3.0", "The attempt was reported without a result")


@dataclass(frozen=True, slots=True)
class Due:
    """The time of a waiting delivery has come, and its site has room."""

    delivery_id: DeliveryId


Fact = Accepted | Attempted | Due


def decide(queue: MailQueue, fact: Fact, context: RoutingContext, now: datetime) -> Iterator[Record]:
    """What follows from `fact`. Apply each record to `queue` before taking the next."""
    match fact:
        case Accepted():
            return _on_accepted(queue, fact, context, now)
        case Attempted():
            return _on_attempted(queue, fact, context, now)
        case Due():
            return _on_due(queue, fact, context, now)
        case _:
            assert_never(fact)


def _on_accepted(queue: MailQueue, fact: Accepted, context: RoutingContext, now: datetime) -> Iterator[Record]:
    """A new message: expand it, group its recipients by next hop, send each group on its way or let it wait."""
    message, policy = fact.message, context.policy
    queue_id = message.queue_id
    if queue.open_deliveries(queue_id):
        return  # the same append, made twice
    yield Event(queue_id, now, Received(message))
    expansion = expand(message.envelope.recipients, context.snapshot, policy.alias_depth)
    failures = [FailedRecipient(refusal.recipient, refusal.reply) for refusal in expansion.refused]
    groups: dict[Route, list[Recipient]] = {}
    for final in expansion.final_recipients:
        hop = _fail_if_expired(next_hop(final.recipient.address, final.destination, context), message, context, now)
        if isinstance(hop, Reply):
            failures.append(FailedRecipient(final.recipient, hop))
        else:
            groups.setdefault(hop, []).append(final.recipient)
    number = 0
    for route, recipients in groups.items():
        # A mailbox keeps one copy of a delivery, however many of its owner's addresses the message names.
        group_size = len(recipients) if isinstance(route, ToMailbox) else policy.recipients_per_delivery
        for start in range(0, len(recipients), group_size):
            number += 1
            part = tuple(recipients[start : start + group_size])
            delivery = Delivery(delivery_id(queue_id, number), _with_recipients(message, part), route)
            yield from _enqueue(queue, delivery, fact.content, context, now)
    if failures:
        headers = _original_headers(fact.content, queue_id, context)
        yield from _refused_events(queue_id, failures, now)
        yield from _bounce(message, failures, headers, f"{queue_id}/accepted", context, now)
    if number == 0:
        yield Event(queue_id, now, Closed())


def _enqueue(
    queue: MailQueue, delivery: Delivery, content: Content, context: RoutingContext, now: datetime
) -> Iterator[Record]:
    """A new delivery: in hand if its site has room, else it waits."""
    message = delivery.message
    addresses = tuple(recipient.address for recipient in message.envelope.recipients)
    waiting = _reason_to_wait(queue, delivery, context, now)
    if waiting is None:
        yield Pending(delivery, Active(now), _spooled_only(content))
        yield Dispatched(delivery, 1, content)
    else:
        yield Pending(delivery, waiting, content)  # the loop spools what is inline before it commits
    yield Event(message.queue_id, now, Routed(delivery.id, delivery.route, addresses, waiting))


def _spooled_only(content: Content) -> Spooled | None:
    """The content of a line in hand: what is inline rides in Dispatched alone."""
    return None if isinstance(content, Inline) else content


def _original_headers(content: Content | None, queue_id: QueueId, context: RoutingContext) -> bytes:
    """The message's first bytes, for a report."""
    return content.data if isinstance(content, Inline) else context.headers.get(queue_id, b"")


def _reason_to_wait(queue: MailQueue, delivery: Delivery, context: RoutingContext, now: datetime) -> Waiting | None:
    """Why a delivery that could be tried now cannot, or None."""
    route = delivery.route
    if isinstance(route, Unresolved):
        due = next_resolve_time(delivery.message.received, now, delivery.id)
        return Waiting(due, WaitCause.UNRESOLVED, f"DNS for {route.domain} does not answer")
    if not queue.has_free_slot(route.site, delivery.message.size_bytes, context.policy.limits):
        return Waiting(now, WaitCause.THROTTLED, "The next hop has as many deliveries in hand as it may")
    return None


def _on_attempted(queue: MailQueue, fact: Attempted, context: RoutingContext, now: datetime) -> Iterator[Record]:
    """An attempt ended: close what is done, tell the sender what failed, try the rest again later."""
    line = queue.line(fact.delivery_id)
    if line is None or not isinstance(line.state, Active) or fact.number != line.attempts + 1:
        return  # reported twice, or after the delivery was settled
    delivery, policy = line.delivery, context.policy
    message = delivery.message
    content = fact.content or line.content
    failures: list[FailedRecipient] = []
    still_deferred: list[tuple[Recipient, Deferred]] = []
    outcomes = _outcome_per_recipient(message.envelope.recipients, fact.outcomes)
    for recipient, outcome in zip(message.envelope.recipients, outcomes, strict=True):
        match outcome:
            case Delivered():
                pass
            case Failed():
                failures.append(FailedRecipient(recipient, outcome.reply, outcome.remote))
            case Deferred():
                still_deferred.append((recipient, outcome))
            case _:
                assert_never(outcome)
    given_up: list[FailedRecipient] = []
    if content is None:
        given_up = [FailedRecipient(recipient, CONTENT_LOST) for recipient, _ in still_deferred]
    elif is_expired(message.received, policy.lifetime, now):
        given_up = [
            FailedRecipient(recipient, _expired_reply(context, _reply_with_remote(last)))
            for recipient, last in still_deferred
        ]
    due = None
    if still_deferred and not given_up:
        last = still_deferred[-1][1]
        due = next_attempt_time(policy.retry, policy.lifetime, fact.number, delivery.id, message.received, now)
        yield Pending(
            replace(delivery, message=_with_recipients(message, tuple(recipient for recipient, _ in still_deferred))),
            Waiting(due, WaitCause.DEFERRED, str(last.reply)),
            content,
            fact.number,
            last.reply,
            last.remote,
        )
    else:
        yield Settled(delivery.id)
    yield Event(
        message.queue_id,
        now,
        AttemptRecorded(delivery.id, fact.number, tuple(outcomes), fact.started, fact.duration, due),
    )
    if given_up:
        yield from _refused_events(message.queue_id, given_up, now)
    if failures or given_up:
        seed = f"{delivery.id}/{fact.number}"
        yield from _bounce(message, failures + given_up, fact.headers, seed, context, now)
    if due is None:
        yield from _close_if_done(queue, message.queue_id, now)


def _on_due(queue: MailQueue, fact: Due, context: RoutingContext, now: datetime) -> Iterator[Record]:
    """A waiting delivery's time has come: find its next hop anew and send it on its way."""
    line = queue.line(fact.delivery_id)
    if line is None or not isinstance(line.state, Waiting) or line.state.cause is WaitCause.HELD:
        return  # whether it is due the queue has judged: judged twice, a clock set back in between would lose the turn
    message, content = line.delivery.message, line.content
    queue_id = message.queue_id
    hop = _fail_if_expired(reroute(line.delivery, context), message, context, now)
    if content is None:
        hop = CONTENT_LOST
    if isinstance(hop, Reply) or content is None:
        reply = hop if isinstance(hop, Reply) else CONTENT_LOST
        failures = [FailedRecipient(recipient, reply) for recipient in message.envelope.recipients]
        headers = _original_headers(content, queue_id, context)
        yield Settled(line.delivery.id)
        yield from _refused_events(queue_id, failures, now)
        yield from _bounce(message, failures, headers, f"{line.delivery.id}/{line.attempts}/due", context, now)
        yield from _close_if_done(queue, queue_id, now)
        return
    delivery = line.delivery if hop == line.delivery.route else replace(line.delivery, route=hop)
    waiting = _reason_to_wait(queue, delivery, context, now)
    if waiting is not None:
        yield replace(line, delivery=delivery, state=waiting)
        return
    yield replace(line, delivery=delivery, state=Active(now), content=_spooled_only(content))
    yield Dispatched(delivery, line.attempts + 1, content)
    yield Event(queue_id, now, Resumed(delivery.id, line.attempts + 1, hop))


def reroute(delivery: Delivery, context: RoutingContext) -> Route | Reply:
    """The next hop of an open delivery as of now: MX records change, and so do the directory and the relay that is
    configured. A domain that has moved in or out since takes its waiting mail along.

    All recipients of a delivery stay together: when they would part now, or one of them has become an alias or nobody,
    the old route is tried once more.
    """
    hops: set[Route | Reply] = set()
    for recipient in delivery.message.envelope.recipients:
        destination = _current_destination(recipient.address, delivery.route, context)
        if destination is None:
            return delivery.route
        hops.add(next_hop(recipient.address, destination, context))
    return hops.pop() if len(hops) == 1 else delivery.route


def _current_destination(address: Address, route: Route, context: RoutingContext) -> Destination | None:
    """Where a recipient that was final belongs now; None: nowhere that a delivery could be turned to."""
    result = context.snapshot.lookup(address)
    match result:
        case IsMailbox() | IsRelayed() | IsRemote():
            return result
        case IsAlias() | IsUnknown():
            # Also who has an alias beside his mailbox: he keeps it.
            return IsMailbox(route.owner) if isinstance(route, ToMailbox) else None
        case _:
            assert_never(result)


def reroute_mx_domains(delivery: Delivery, context: RoutingContext) -> set[str]:
    """The domains that `route_again` would have to know the MX of."""
    domains: set[str] = set()
    for address in {recipient.address for recipient in delivery.message.envelope.recipients}:
        destination = _current_destination(address, delivery.route, context)
        if destination is not None and (domain := mx_domain(address, destination, context)) is not None:
            domains.add(domain)
    return domains


def content_to_quote(
    queue: MailQueue, fact: Fact, context: RoutingContext, now: datetime
) -> tuple[QueueId, Spooled] | None:
    """The spooled content whose headers the decision on `fact` would quote in a report, if any."""
    match fact:
        case Accepted():
            if not isinstance(fact.content, Spooled):
                return None
            expansion = expand(fact.message.envelope.recipients, context.snapshot, context.policy.alias_depth)
            hops = (
                _fail_if_expired(next_hop(f.recipient.address, f.destination, context), fact.message, context, now)
                for f in expansion.final_recipients
            )
            if expansion.refused or any(isinstance(hop, Reply) for hop in hops):
                return fact.message.queue_id, fact.content
        case Due():
            line = queue.line(fact.delivery_id)
            if line is not None and isinstance(line.content, Spooled):
                message = line.delivery.message
                if isinstance(_fail_if_expired(reroute(line.delivery, context), message, context, now), Reply):
                    return message.queue_id, line.content
        case Attempted():
            pass  # it brings them along
        case _:
            assert_never(fact)
    return None


def _fail_if_expired(hop: Route | Reply, message: Message, context: RoutingContext, now: datetime) -> Route | Reply:
    """A hop that is not known by the end of the message's lifetime never will be."""
    if isinstance(hop, Unresolved) and is_expired(message.received, context.policy.lifetime, now):
        return _expired_reply(context, f"DNS for {hop.domain} does not answer")
    return hop


def _bounce(
    message: Message,
    failures: Sequence[FailedRecipient],
    headers: bytes,
    seed: str,
    context: RoutingContext,
    now: datetime,
) -> Iterator[Record]:
    """The report or reports about `failures`, unless there is no sender, or none who wants it."""
    if message.envelope.reverse_path is None:
        # RFC 5321 section 4.5.5: nobody is told about a notification; it is discarded.
        for part in _batched(failures, RECIPIENTS_PER_EVENT):
            yield Event(message.queue_id, now, Bounced(tuple(failure.recipient.address for failure in part), None))
        return
    # RFC 3461 section 4.1: without NOTIFY the sender is told of failures; NEVER and a list without FAILURE say no.
    wanted = [f for f in failures if f.recipient.notify is None or Notify.FAILURE in f.recipient.notify]
    if not wanted:
        return
    for number, part in enumerate(_batched(wanted, RECIPIENTS_PER_DSN)):
        dsn_id = derived_queue_id(now, f"{seed}/{number * RECIPIENTS_PER_DSN}")
        yield failure_dsn(message, part, headers, context.policy.hostname, dsn_id, now)
        yield Event(message.queue_id, now, Bounced(tuple(failure.recipient.address for failure in part), dsn_id))


def _close_if_done(queue: MailQueue, queue_id: QueueId, now: datetime) -> Iterator[Record]:
    """The last line of the history, when nothing of the message is open any more (what was settled is folded in)."""
    if not queue.open_deliveries(queue_id):
        yield Event(queue_id, now, Closed())


def _expired_reply(context: RoutingContext, last: str) -> Reply:
    days = context.policy.lifetime.total_seconds() / 86400
    return Reply(554, "5.4.7", f"Delivery time of {days:g} days is over; last: {last}")  # RFC 3463 X.4.7


def _reply_with_remote(last: Deferred) -> str:
    """The reply with who gave it: in a report, giving up is our word, and only this is the next hop's."""
    return str(last.reply) if last.remote is None else f"{last.remote} said {last.reply}"


def _refused_events(queue_id: QueueId, failures: Sequence[FailedRecipient], now: datetime) -> Iterator[Event]:
    """The history of what the router itself failed."""
    for part in _batched(failures, RECIPIENTS_PER_EVENT):
        outcomes = tuple(Failed(failure.recipient.address, failure.reply, failure.remote) for failure in part)
        yield Event(queue_id, now, Refused(outcomes))


def _batched(failures: Sequence[FailedRecipient], size: int) -> Iterator[Sequence[FailedRecipient]]:
    for start in range(0, len(failures), size):
        yield failures[start : start + size]


def _with_recipients(message: Message, recipients: tuple[Recipient, ...]) -> Message:
    """The message with only these recipients."""
    if recipients == message.envelope.recipients:
        return message
    return replace(message, envelope=replace(message.envelope, recipients=recipients))


def _outcome_per_recipient(recipients: Sequence[Recipient], outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The outcome of each recipient. Those come in order; a report that does not fit is read by address, and a
    recipient without an outcome is deferred: unknown means temporary.
    """
    if len(recipients) == len(outcomes) and all(
        recipient.address == outcome.recipient for recipient, outcome in zip(recipients, outcomes, strict=True)
    ):
        return outcomes
    by_address = {outcome.recipient: outcome for outcome in outcomes}
    return [
        by_address.get(recipient.address) or Deferred(recipient.address, OUTCOME_MISSING) for recipient in recipients
    ]
