"""Routing decisions as a pure function: `decide(queue, trigger, context, now)` yields the records that follow.

The caller applies each record to the queue before it takes the next, so a decision sees its own effects on the site
limits. Duplicate and outdated triggers yield nothing. Next: `delivery/worker.py` (through `Dispatched`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from msgspec.structs import replace

from mail.address import Address
from mail.directory import Destination, IsAlias, IsMailbox, IsRelayed, IsRemote, IsUnknown
from mail.directory.expand import expand
from mail.envelope import Notify, Recipient
from mail.message import (
    Content,
    DeliveryId,
    Inline,
    Message,
    QueueId,
    Spooled,
    delivery_id,
    delivery_number,
    derived_queue_id,
)
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import (
    Accepted,
    Active,
    Attempted,
    Bounced,
    Closed,
    Delivery,
    DeliveryAttempted,
    Discarded,
    DiscardReason,
    Dispatched,
    Event,
    FailedByRouter,
    MessageAccepted,
    QueueEntry,
    QueueTombstone,
    Record,
    Resumed,
    Routed,
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

CONTENT_LOST = Reply(554, "5.3.0", "Message content lost")  # a bug of eilpost; never observed
# Both keep a record below Kafka's limit (1 MiB by default), however long the replies are.
RECIPIENTS_PER_DSN = 50
RECIPIENTS_PER_EVENT = 200
# Recipients behind aliases that the DSNs about the first delivery list; those about the n-th list the n-th part of it.
MEMBERS_LISTED = RECIPIENTS_PER_DSN
MEMBERS_QUOTED_BYTES = 2 << 10  # of the header, in a DSN that lists only recipients behind aliases
OUTCOME_MISSING = Reply(451, "4.3.0", "Delivery attempt reported no result")


@dataclass(frozen=True, slots=True)
class Due:
    """A waiting delivery is due, and its site and shard are below their limits."""

    delivery_id: DeliveryId


Trigger = Accepted | Attempted | Due  # of a decision


def entry_of(queue: MailQueue, trigger: Trigger) -> QueueEntry | None:
    """The queue entry of the delivery that a trigger is about; None for a new message."""
    match trigger:
        case Accepted():
            return None
        case Attempted() | Due():
            return queue.entry(trigger.delivery_id)


def decide(queue: MailQueue, trigger: Trigger, context: RoutingContext, now: datetime) -> Iterator[Record]:
    """Yield the records that follow from `trigger`. Apply each to `queue` before taking the next."""
    match trigger:
        case Accepted():
            return _on_accepted(queue, trigger, context, now)
        case Attempted():
            return _on_attempted(queue, trigger, context, now)
        case Due():
            return _on_due(queue, trigger, context, now)
        case _:
            assert_never(trigger)


def _on_accepted(queue: MailQueue, trigger: Accepted, context: RoutingContext, now: datetime) -> Iterator[Record]:
    """A new message: expand aliases, group the recipients by next hop, dispatch each group or let it wait."""
    message, policy = trigger.message, context.policy
    queue_id = message.queue_id
    if queue.open_deliveries(queue_id):
        return  # duplicate append
    yield Event(queue_id, now, MessageAccepted(message))
    expansion = expand(message.envelope.recipients, context.snapshot, policy.alias_depth)
    failures: dict[Address | None, list[FailedRecipient]] = {}  # by the owner who gets the reports
    for refusal in expansion.refused:
        failures.setdefault(refusal.owner, []).append(FailedRecipient(refusal.recipient, refusal.reply))
    groups: dict[tuple[Route, Address | None], list[Recipient]] = {}
    for final in expansion.final_recipients:
        hop = _fail_if_expired(next_hop(final.recipient.address, final.destination, context), message, context, now)
        if isinstance(hop, Reply):
            failures.setdefault(final.owner, []).append(FailedRecipient(final.recipient, hop))
        else:
            groups.setdefault((hop, final.owner), []).append(final.recipient)
    number = 0
    # Recipients behind aliases first: a DSN about an early delivery may list more of them.
    for (route, owner), group in sorted(groups.items(), key=lambda item: not any(map(_is_member, item[1]))):
        recipients = sorted(group, key=lambda recipient: not _is_member(recipient))
        # A mailbox stores one copy per delivery, however many of its owner's addresses the message names.
        group_size = len(recipients) if isinstance(route, ToMailbox) else policy.recipients_per_delivery
        for start in range(0, len(recipients), group_size):
            number += 1
            part = tuple(recipients[start : start + group_size])
            delivery = Delivery(delivery_id(queue_id, number), with_recipients(from_owner(message, owner), part), route)
            yield from _enqueue(queue, delivery, trigger.content, context, now)
    for owner, failed in failures.items():
        headers = _original_headers(trigger.content, queue_id, context)
        yield from _failure_events(queue_id, failed, now)
        seed = f"{queue_id}/accepted" if owner is None else f"{queue_id}/accepted/{owner}"
        yield from _bounce(from_owner(message, owner), failed, headers, seed, context, now)
    if not queue.open_deliveries(queue_id):
        yield Event(queue_id, now, Closed())


def _enqueue(
    queue: MailQueue, delivery: Delivery, content: Content, context: RoutingContext, now: datetime
) -> Iterator[Record]:
    """A new delivery: active if its site and shard are below their limits, else waiting."""
    message = delivery.message
    addresses = tuple(recipient.address for recipient in message.envelope.recipients)
    waiting = _waiting_state(queue, delivery, context, now)
    if waiting is None:
        yield QueueEntry(delivery, Active(now), _spooled_only(content))
        yield Dispatched(delivery, 1, content)
    else:
        yield QueueEntry(delivery, waiting, content)  # the shard spools inline content before the commit
    yield Event(message.queue_id, now, Routed(delivery.id, delivery.route, addresses, waiting))


def _spooled_only(content: Content) -> Spooled | None:
    """The content of an active entry; inline content is stored in Dispatched only."""
    return None if isinstance(content, Inline) else content


def _original_headers(content: Content | None, queue_id: QueueId, context: RoutingContext) -> bytes:
    """The message's first bytes, for a DSN."""
    return content.data if isinstance(content, Inline) else context.headers.get(queue_id, b"")


def _waiting_state(queue: MailQueue, delivery: Delivery, context: RoutingContext, now: datetime) -> Waiting | None:
    """Why a due delivery cannot be dispatched now, or None."""
    route = delivery.route
    if isinstance(route, Unresolved):
        due = next_resolve_time(delivery.message.received, now, delivery.id)
        return Waiting(due, WaitCause.UNRESOLVED, context.answers.failure(route.domain))
    if not queue.is_below_limits(route.site, delivery.message.size_bytes, context.policy.limits):
        return Waiting(
            now, WaitCause.THROTTLED, "Its site or the shard has reached a limit of active deliveries or bytes"
        )
    return None


def _on_attempted(queue: MailQueue, trigger: Attempted, context: RoutingContext, now: datetime) -> Iterator[Record]:
    """An attempt ended: settle delivered recipients, bounce failed ones, schedule a retry for deferred ones."""
    entry = queue.entry(trigger.delivery_id)
    if entry is None or not isinstance(entry.state, Active) or trigger.number != entry.attempts + 1:
        return  # duplicate report, or the delivery is settled already
    delivery, policy = entry.delivery, context.policy
    message = delivery.message
    content = trigger.content or entry.content
    failures: list[FailedRecipient] = []
    still_deferred: list[tuple[Recipient, Deferred]] = []
    outcomes = _outcome_per_recipient(message.envelope.recipients, trigger.outcomes)
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
    failed_by_router: list[FailedRecipient] = []
    if content is None:
        failed_by_router = [FailedRecipient(recipient, CONTENT_LOST) for recipient, _ in still_deferred]
    elif is_expired(message.received, policy.lifetime, now):
        failed_by_router = [
            FailedRecipient(recipient, _expired_reply(context, _reply_with_remote(last)))
            for recipient, last in still_deferred
        ]
    due = None
    if still_deferred and not failed_by_router:
        last = still_deferred[-1][1]
        due = next_attempt_time(policy.retry, policy.lifetime, trigger.number, delivery.id, message.received, now)
        yield QueueEntry(
            replace(delivery, message=with_recipients(message, tuple(recipient for recipient, _ in still_deferred))),
            Waiting(due, WaitCause.DEFERRED, str(last.reply)),
            content,
            trigger.number,
            last.reply,
            last.remote,
        )
    else:
        yield QueueTombstone(delivery.id)
    yield Event(
        message.queue_id,
        now,
        DeliveryAttempted(
            delivery.id, trigger.number, tuple(outcomes), trigger.started, trigger.duration, due, trigger.asked
        ),
    )
    if failed_by_router:
        yield from _failure_events(message.queue_id, failed_by_router, now)
    failures += failed_by_router
    number = delivery_number(delivery.id)
    yield from _bounce(message, failures, trigger.headers, f"{delivery.id}/{trigger.number}", context, now, number)
    if not queue.open_deliveries(message.queue_id):
        yield Event(message.queue_id, now, Closed())


def _on_due(queue: MailQueue, trigger: Due, context: RoutingContext, now: datetime) -> Iterator[Record]:
    """A waiting delivery is due: route it again and dispatch it."""
    entry = queue.entry(trigger.delivery_id)
    if entry is None or not isinstance(entry.state, Waiting) or entry.state.cause is WaitCause.HELD:
        return  # the due time is not compared again: if the clock was set back, the delivery would lose its turn
    if entry.state.cause is WaitCause.CORRUPT:
        yield QueueTombstone(entry.delivery.id)  # nothing was lost with it (`router/quarantine.py`)
        return
    message, content = entry.delivery.message, entry.content
    queue_id = message.queue_id
    hop = CONTENT_LOST if content is None else reroute(entry.delivery, context)
    hop = _fail_if_expired(hop, message, context, now)
    if isinstance(hop, Reply):
        failures = [FailedRecipient(recipient, hop) for recipient in message.envelope.recipients]
        headers = _original_headers(content, queue_id, context)
        yield QueueTombstone(entry.delivery.id)
        yield from _failure_events(queue_id, failures, now)
        seed = f"{entry.delivery.id}/{entry.attempts}/due"
        yield from _bounce(message, failures, headers, seed, context, now, delivery_number(entry.delivery.id))
        if not queue.open_deliveries(queue_id):
            yield Event(queue_id, now, Closed())
        return
    assert content is not None
    delivery = entry.delivery if hop == entry.delivery.route else replace(entry.delivery, route=hop)
    waiting = _waiting_state(queue, delivery, context, now)
    if waiting is not None:
        yield replace(entry, delivery=delivery, state=waiting)
        return
    yield replace(entry, delivery=delivery, state=Active(now), content=_spooled_only(content))
    yield Dispatched(delivery, entry.attempts + 1, content)
    yield Event(queue_id, now, Resumed(delivery.id, entry.attempts + 1, hop))


def reroute(delivery: Delivery, context: RoutingContext) -> Route | Reply:
    """The current next hop of an open delivery, by the current MX records, directory and relay setting.

    The recipients of a delivery stay together: if their next hops differ now, or one has become an alias or unknown,
    the old route is used again.
    """
    hops: set[Route | Reply] = set()
    for recipient in delivery.message.envelope.recipients:
        destination = _current_destination(recipient.address, delivery.route, context)
        if destination is None:
            return delivery.route
        hops.add(next_hop(recipient.address, destination, context))
    return hops.pop() if len(hops) == 1 else delivery.route


def _current_destination(address: Address, route: Route, context: RoutingContext) -> Destination | None:
    """The current destination of a final recipient; None if the delivery cannot be rerouted to it."""
    result = context.snapshot.lookup(address)
    match result:
        case IsMailbox() | IsRelayed() | IsRemote():
            return result
        case IsAlias() | IsUnknown():
            # A user may have both a mailbox and an alias; the delivery stays with the mailbox.
            return IsMailbox(route.owner) if isinstance(route, ToMailbox) else None
        case _:
            assert_never(result)


def reroute_mx_domains(delivery: Delivery, context: RoutingContext) -> set[str]:
    """The domains whose MX records `reroute` needs."""
    domains: set[str] = set()
    for address in {recipient.address for recipient in delivery.message.envelope.recipients}:
        destination = _current_destination(address, delivery.route, context)
        if destination is not None and (domain := mx_domain(address, destination, context)) is not None:
            domains.add(domain)
    return domains


def content_to_quote(
    queue: MailQueue, trigger: Trigger, context: RoutingContext, now: datetime
) -> tuple[QueueId, Spooled] | None:
    """The spooled content whose headers a DSN would quote if `trigger` leads to one, or None."""
    match trigger:
        case Accepted():
            if not isinstance(trigger.content, Spooled):
                return None
            expansion = expand(trigger.message.envelope.recipients, context.snapshot, context.policy.alias_depth)
            hops = (
                _fail_if_expired(
                    next_hop(final.recipient.address, final.destination, context), trigger.message, context, now
                )
                for final in expansion.final_recipients
            )
            if expansion.refused or any(isinstance(hop, Reply) for hop in hops):
                return trigger.message.queue_id, trigger.content
        case Due():
            entry = queue.entry(trigger.delivery_id)
            if entry is not None and isinstance(entry.content, Spooled):
                message = entry.delivery.message
                if isinstance(_fail_if_expired(reroute(entry.delivery, context), message, context, now), Reply):
                    return message.queue_id, entry.content
        case Attempted():
            pass  # the record includes the headers
        case _:
            assert_never(trigger)
    return None


def _fail_if_expired(hop: Route | Reply, message: Message, context: RoutingContext, now: datetime) -> Route | Reply:
    """Fail an unresolved next hop at the end of the message's lifetime."""
    if isinstance(hop, Unresolved) and is_expired(message.received, context.policy.lifetime, now):
        return _expired_reply(context, context.answers.failure(hop.domain))
    return hop


def from_owner(message: Message, owner: Address | None) -> Message:
    """The message as the owner of a list sends it to the members (RFC 5321 section 3.9.2); reports keep their null
    reverse-path.
    """
    if owner is None or message.envelope.reverse_path is None:
        return message
    return replace(message, envelope=replace(message.envelope, reverse_path=owner, ret=None, envid=None))


def _bounce(
    message: Message,
    failures: Sequence[FailedRecipient],
    headers: bytes,
    seed: str,
    context: RoutingContext,
    now: datetime,
    number: int = 1,
) -> Iterator[Record]:
    """The DSNs about `failures` of the `number`-th delivery; none for a null reverse-path or if NOTIFY forbids it.

    The sender may be forged, and an alias without owner may have thousands of members: of those the last DSN lists
    `MEMBERS_LISTED // number` and counts the rest. So a message leads to DSNs about members from its first deliveries
    only, without a count that deliveries pass on: another one may be settled by a success or by the owner of a list.
    """
    if message.envelope.reverse_path is None:
        # RFC 5321 section 4.5.5: no DSN about a DSN; the recipients are discarded.
        yield from _discard(message.queue_id, failures, DiscardReason.NULL_REVERSE_PATH, now)
        return
    reported = [failure for failure in failures if _is_reported(failure)]
    members = [failure for failure in reported if _is_member(failure.recipient)]
    written = [failure for failure in reported if not _is_member(failure.recipient)]  # by the sender, in RCPT
    listed_max = MEMBERS_LISTED // number
    listed, unlisted = [*written, *members[:listed_max]], members[listed_max:]
    if not listed:
        yield from _discard(message.queue_id, unlisted, DiscardReason.MEMBER_LIMIT, now)
        return
    if not written:
        headers = headers[:MEMBERS_QUOTED_BYTES]
    for start in range(0, len(listed), RECIPIENTS_PER_DSN):
        part, dsn_id = listed[start : start + RECIPIENTS_PER_DSN], derived_queue_id(now, f"{seed}/{start}")
        counted = unlisted if start + RECIPIENTS_PER_DSN >= len(listed) else []
        counts = Counter(failure.recipient.original for failure in counted)
        quoted = headers if start == 0 else b""
        yield failure_dsn(message, part, quoted, context.policy.hostname, dsn_id, now, counts)
        for batch in _batched([*part, *counted], RECIPIENTS_PER_EVENT):
            yield Event(message.queue_id, now, Bounced(tuple(failure.recipient.address for failure in batch), dsn_id))


def _discard(
    queue_id: QueueId, failures: Sequence[FailedRecipient], reason: DiscardReason, now: datetime
) -> Iterator[Event]:
    for part in _batched(failures, RECIPIENTS_PER_EVENT):
        yield Event(queue_id, now, Discarded(tuple(failure.recipient.address for failure in part), reason))


def _is_reported(failure: FailedRecipient) -> bool:
    """RFC 3461 section 4.1: without NOTIFY a failure is reported; with NEVER, or a list without FAILURE, it is not."""
    notify = failure.recipient.notify
    return notify is None or Notify.FAILURE in notify


def _is_member(recipient: Recipient) -> bool:
    """Whether the recipient is behind an alias without owner, so that the sender did not write its address."""
    return recipient.replaced is not None


def _expired_reply(context: RoutingContext, last: str) -> Reply:
    days = context.policy.lifetime.total_seconds() / 86400
    return Reply(554, "5.4.7", f"Not delivered within {days:g} days; last reply: {last}")  # RFC 3463 X.4.7


def _reply_with_remote(last: Deferred) -> str:
    """The last reply with the host that sent it; in the DSN the expiry itself has no remote."""
    return str(last.reply) if last.remote is None else f"{last.remote} replied {last.reply}"


def _failure_events(queue_id: QueueId, failures: Sequence[FailedRecipient], now: datetime) -> Iterator[Event]:
    """Events for recipients that the router failed."""
    for part in _batched(failures, RECIPIENTS_PER_EVENT):
        outcomes = tuple(Failed(failure.recipient.address, failure.reply, failure.remote) for failure in part)
        yield Event(queue_id, now, FailedByRouter(outcomes))


def _batched(failures: Sequence[FailedRecipient], size: int) -> Iterator[Sequence[FailedRecipient]]:
    for start in range(0, len(failures), size):
        yield failures[start : start + size]


def with_recipients(message: Message, recipients: tuple[Recipient, ...]) -> Message:
    """The message with only these recipients."""
    if recipients == message.envelope.recipients:
        return message
    return replace(message, envelope=replace(message.envelope, recipients=recipients))


def _outcome_per_recipient(recipients: Sequence[Recipient], outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The outcome of each recipient, in order. Outcomes that do not match the recipients are assigned by address; a
    recipient without an outcome is deferred, because unknown means temporary.
    """
    if len(recipients) == len(outcomes) and all(
        recipient.address == outcome.recipient for recipient, outcome in zip(recipients, outcomes, strict=True)
    ):
        return outcomes
    by_address = {outcome.recipient: outcome for outcome in outcomes}
    return [
        by_address.get(recipient.address) or Deferred(recipient.address, OUTCOME_MISSING) for recipient in recipients
    ]
