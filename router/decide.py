"""Decides what follows from a fact: the one place where the fate of a message is determined. Pure.

`decide(queue, fact, world, now)` yields records, and the caller folds each into the queue before it asks for the next,
so that a decision sees what it did itself (a message to a thousand mailboxes fills the window as it goes). It changes
nothing, reads no clock and throws no dice; the same queue and fact give the same records. A fact that is known already
or out of date yields nothing. Every recipient is at any time open in the queue, delivered, failed (and the sender
told, if there is one), or discarded; `router/tally.py` counts it. Next: `delivery/worker.py` (through `Dispatched`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import assert_never

from mail.address import Address
from mail.directory import IsAlias, IsElsewhere, IsMailbox, IsRelayed, IsUnknown, Place
from mail.directory.expand import expand
from mail.envelope import Notify, Recipient
from mail.message import Content, DeliveryId, Inline, Message, QueueId, Spooled, delivery_id, derived_queue_id
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import (
    Accepted,
    Attempted,
    Bounced,
    Closed,
    Delivery,
    Dispatched,
    Event,
    InHand,
    Pending,
    Record,
    Refused,
    Resumed,
    Routed,
    Settled,
    Took,
    Tried,
    Waiting,
    Why,
)
from mail.reply import Reply
from mail.route import Route, ToMailbox, Unresolved
from router.dsn import Failure, failure_report
from router.mailqueue import MailQueue
from router.nexthop import next_hop, question
from router.retry import due_again, is_over, resolve_again
from router.world import World

CONTENT_LOST = Reply(554, "5.3.0", "The content of the message is lost")  # ours; never seen
# Recipients in one report, so that it stays small enough to ride in its record, whatever the next hops said.
REPORTED_MAX = 50
TOLD_MAX = (
    200  # recipients in one line of the history: a record has a size it may not pass (1 MiB in Kafka, by default)
)
NO_OUTCOME = Reply(451, "4.3.0", "The attempt was reported without a result")


@dataclass(frozen=True, slots=True)
class Due:
    """The time of a waiting delivery has come, and its site has room."""

    delivery_id: DeliveryId


Fact = Accepted | Attempted | Due


def decide(queue: MailQueue, fact: Fact, world: World, now: datetime) -> Iterator[Record]:
    """What follows from `fact`. Apply each record to `queue` before taking the next."""
    match fact:
        case Accepted():
            return _on_accepted(queue, fact, world, now)
        case Attempted():
            return _on_attempted(queue, fact, world, now)
        case Due():
            return _on_due(queue, fact, world, now)
        case _:
            assert_never(fact)


def _on_accepted(queue: MailQueue, fact: Accepted, world: World, now: datetime) -> Iterator[Record]:
    """A new message: expand it, group its recipients by next hop, send each group on its way or let it wait."""
    message, policy = fact.message, world.policy
    queue_id = message.queue_id
    if queue.open_deliveries(queue_id):
        return  # the same append, made twice
    yield Event(queue_id, now, Took(message))
    expansion = expand(message.envelope.recipients, world.snapshot, policy.alias_depth)
    failures = [Failure(refusal.recipient, refusal.reply) for refusal in expansion.refused]
    groups: dict[Route, list[Recipient]] = {}
    for final in expansion.finals:
        hop = _alive(next_hop(final.recipient.address, final.place, world), message, world, now)
        if isinstance(hop, Reply):
            failures.append(Failure(final.recipient, hop))
        else:
            groups.setdefault(hop, []).append(final.recipient)
    number = 0
    for route, recipients in groups.items():
        # A mailbox keeps one copy of a delivery, however many of its owner's addresses the message names.
        most = len(recipients) if isinstance(route, ToMailbox) else policy.recipients_per_delivery
        for start in range(0, len(recipients), most):
            number += 1
            part = tuple(recipients[start : start + most])
            delivery = Delivery(delivery_id(queue_id, number), _carrying(message, part), route)
            yield from _set_out(queue, delivery, fact.content, world, now)
    if failures:
        headers = _opening(fact.content, queue_id, world)
        yield from _refused(queue_id, failures, now)
        yield from _tell_sender(message, failures, headers, f"{queue_id}/accepted", world, now)
    if number == 0:
        yield Event(queue_id, now, Closed())


def _set_out(queue: MailQueue, delivery: Delivery, content: Content, world: World, now: datetime) -> Iterator[Record]:
    """A new delivery: in hand if its site has room, else it waits."""
    message = delivery.message
    addresses = tuple(recipient.address for recipient in message.envelope.recipients)
    waits = _must_wait(queue, delivery, world, now)
    if waits is None:
        yield Pending(delivery, InHand(now), _lean(content))
        yield Dispatched(delivery, 1, content)
    else:
        yield Pending(delivery, waits, content)  # the loop spools what is inline before it commits
    yield Event(message.queue_id, now, Routed(delivery.id, delivery.route, addresses, waits))


def _lean(content: Content) -> Spooled | None:
    """The content of a line in hand: what is inline rides in Dispatched alone."""
    return None if isinstance(content, Inline) else content


def _opening(content: Content | None, queue_id: QueueId, world: World) -> bytes:
    """The message's first bytes, for a report."""
    return content.data if isinstance(content, Inline) else world.headers.get(queue_id, b"")


def _must_wait(queue: MailQueue, delivery: Delivery, world: World, now: datetime) -> Waiting | None:
    """Why a delivery that could be tried now cannot, or None."""
    route = delivery.route
    if isinstance(route, Unresolved):
        due = resolve_again(delivery.message.received, now, delivery.id)
        return Waiting(due, Why.RESOLVING, f"DNS for {route.domain} does not answer")
    if not queue.has_room(route.site, delivery.message.size_bytes, world.policy.limits):
        return Waiting(now, Why.WINDOW, "The next hop has as many deliveries in hand as it may")
    return None


def _on_attempted(queue: MailQueue, fact: Attempted, world: World, now: datetime) -> Iterator[Record]:
    """An attempt ended: close what is done, tell the sender what failed, try the rest again later."""
    line = queue.line(fact.delivery_id)
    if line is None or not isinstance(line.state, InHand) or fact.number != line.attempts + 1:
        return  # reported twice, or after the delivery was settled
    delivery, policy = line.delivery, world.policy
    message = delivery.message
    content = fact.content or line.content
    failures: list[Failure] = []
    open_still: list[tuple[Recipient, Deferred]] = []
    outcomes = _by_recipient(message.envelope.recipients, fact.outcomes)
    for recipient, outcome in zip(message.envelope.recipients, outcomes, strict=True):
        match outcome:
            case Delivered():
                pass
            case Failed():
                failures.append(Failure(recipient, outcome.reply, outcome.remote))
            case Deferred():
                open_still.append((recipient, outcome))
            case _:
                assert_never(outcome)
    given_up: list[Failure] = []
    if content is None:
        given_up = [Failure(recipient, CONTENT_LOST) for recipient, _ in open_still]
    elif is_over(message.received, policy.lifetime, now):
        given_up = [Failure(recipient, _expired(world, _said(last))) for recipient, last in open_still]
    due = None
    if open_still and not given_up:
        last = open_still[-1][1]
        due = due_again(policy.retry, policy.lifetime, fact.number, delivery.id, message.received, now)
        yield Pending(
            replace(delivery, message=_carrying(message, tuple(recipient for recipient, _ in open_still))),
            Waiting(due, Why.RETRY, str(last.reply)),
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
        Tried(delivery.id, fact.number, tuple(outcomes), fact.started, fact.duration, due),
    )
    if given_up:
        yield from _refused(message.queue_id, given_up, now)
    if failures or given_up:
        seed = f"{delivery.id}/{fact.number}"
        yield from _tell_sender(message, failures + given_up, fact.headers, seed, world, now)
    if due is None:
        yield from _close(queue, message.queue_id, now)


def _on_due(queue: MailQueue, fact: Due, world: World, now: datetime) -> Iterator[Record]:
    """A waiting delivery's time has come: find its next hop anew and send it on its way."""
    line = queue.line(fact.delivery_id)
    if line is None or not isinstance(line.state, Waiting) or line.state.why is Why.HOLD:
        return  # whether it is due the queue has judged: judged twice, a clock set back in between would lose the turn
    message, content = line.delivery.message, line.content
    queue_id = message.queue_id
    hop = _alive(route_again(line.delivery, world), message, world, now)
    if content is None:
        hop = CONTENT_LOST
    if isinstance(hop, Reply) or content is None:
        reply = hop if isinstance(hop, Reply) else CONTENT_LOST
        failures = [Failure(recipient, reply) for recipient in message.envelope.recipients]
        headers = _opening(content, queue_id, world)
        yield Settled(line.delivery.id)
        yield from _refused(queue_id, failures, now)
        yield from _tell_sender(message, failures, headers, f"{line.delivery.id}/{line.attempts}/due", world, now)
        yield from _close(queue, queue_id, now)
        return
    delivery = line.delivery if hop == line.delivery.route else replace(line.delivery, route=hop)
    waits = _must_wait(queue, delivery, world, now)
    if waits is not None:
        yield replace(line, delivery=delivery, state=waits)
        return
    yield replace(line, delivery=delivery, state=InHand(now), content=_lean(content))
    yield Dispatched(delivery, line.attempts + 1, content)
    yield Event(queue_id, now, Resumed(delivery.id, line.attempts + 1, hop))


def route_again(delivery: Delivery, world: World) -> Route | Reply:
    """The next hop of an open delivery as of now: MX records change, and so do the directory and the relay that is
    configured. A domain that has moved in or out since takes its waiting mail along.

    All recipients of a delivery stay together: when they would part now, or one of them has become an alias or nobody,
    the old route is tried once more.
    """
    hops: set[Route | Reply] = set()
    for recipient in delivery.message.envelope.recipients:
        place = _place_now(recipient.address, delivery.route, world)
        if place is None:
            return delivery.route
        hops.add(next_hop(recipient.address, place, world))
    return hops.pop() if len(hops) == 1 else delivery.route


def _place_now(address: Address, route: Route, world: World) -> Place | None:
    """Where a recipient that was final belongs now; None: nowhere that a delivery could be turned to."""
    found = world.snapshot.find(address)
    match found:
        case IsMailbox() | IsRelayed() | IsElsewhere():
            return found
        case IsAlias() | IsUnknown():
            # Also who has an alias beside his mailbox: he keeps it.
            return IsMailbox(route.owner) if isinstance(route, ToMailbox) else None
        case _:
            assert_never(found)


def questions_again(delivery: Delivery, world: World) -> set[str]:
    """The domains that `route_again` would have to know the MX of."""
    asked: set[str] = set()
    for address in {recipient.address for recipient in delivery.message.envelope.recipients}:
        place = _place_now(address, delivery.route, world)
        if place is not None and (domain := question(address, place, world)) is not None:
            asked.add(domain)
    return asked


def quotes(queue: MailQueue, fact: Fact, world: World, now: datetime) -> tuple[QueueId, Spooled] | None:
    """The spooled content whose headers the decision on `fact` would quote in a report, if any."""
    match fact:
        case Accepted():
            if not isinstance(fact.content, Spooled):
                return None
            expansion = expand(fact.message.envelope.recipients, world.snapshot, world.policy.alias_depth)
            hops = (
                _alive(next_hop(f.recipient.address, f.place, world), fact.message, world, now)
                for f in expansion.finals
            )
            if expansion.refused or any(isinstance(hop, Reply) for hop in hops):
                return fact.message.queue_id, fact.content
        case Due():
            line = queue.line(fact.delivery_id)
            if line is not None and isinstance(line.content, Spooled):
                message = line.delivery.message
                if isinstance(_alive(route_again(line.delivery, world), message, world, now), Reply):
                    return message.queue_id, line.content
        case Attempted():
            pass  # it brings them along
        case _:
            assert_never(fact)
    return None


def _alive(hop: Route | Reply, message: Message, world: World, now: datetime) -> Route | Reply:
    """A hop that is not known by the end of the message's lifetime never will be."""
    if isinstance(hop, Unresolved) and is_over(message.received, world.policy.lifetime, now):
        return _expired(world, f"DNS for {hop.domain} does not answer")
    return hop


def _tell_sender(
    message: Message, failures: Sequence[Failure], headers: bytes, seed: str, world: World, now: datetime
) -> Iterator[Record]:
    """The report or reports about `failures`, unless there is no sender, or none who wants it."""
    if message.envelope.reverse_path is None:
        # RFC 5321 section 4.5.5: nobody is told about a notification; it is discarded.
        for part in _parts(failures, TOLD_MAX):
            yield Event(message.queue_id, now, Bounced(tuple(failure.recipient.address for failure in part), None))
        return
    # RFC 3461 section 4.1: without NOTIFY the sender is told of failures; NEVER and a list without FAILURE say no.
    wanted = [f for f in failures if f.recipient.notify is None or Notify.FAILURE in f.recipient.notify]
    if not wanted:
        return
    for number, part in enumerate(_parts(wanted, REPORTED_MAX)):
        dsn_id = derived_queue_id(now, f"{seed}/{number * REPORTED_MAX}")
        yield failure_report(message, part, headers, world.policy.hostname, dsn_id, now)
        yield Event(message.queue_id, now, Bounced(tuple(failure.recipient.address for failure in part), dsn_id))


def _close(queue: MailQueue, queue_id: QueueId, now: datetime) -> Iterator[Record]:
    """The last line of the history, when nothing of the message is open any more (what was settled is folded in)."""
    if not queue.open_deliveries(queue_id):
        yield Event(queue_id, now, Closed())


def _expired(world: World, last: str) -> Reply:
    days = world.policy.lifetime.total_seconds() / 86400
    return Reply(554, "5.4.7", f"Delivery time of {days:g} days is over; last: {last}")  # RFC 3463 X.4.7


def _said(last: Deferred) -> str:
    """The reply with who gave it: in a report, giving up is our word, and only this is the next hop's."""
    return str(last.reply) if last.remote is None else f"{last.remote} said {last.reply}"


def _refused(queue_id: QueueId, failures: Sequence[Failure], now: datetime) -> Iterator[Event]:
    """The history of what the router itself failed."""
    for part in _parts(failures, TOLD_MAX):
        outcomes = tuple(Failed(failure.recipient.address, failure.reply, failure.remote) for failure in part)
        yield Event(queue_id, now, Refused(outcomes))


def _parts(failures: Sequence[Failure], most: int) -> Iterator[Sequence[Failure]]:
    for start in range(0, len(failures), most):
        yield failures[start : start + most]


def _carrying(message: Message, recipients: tuple[Recipient, ...]) -> Message:
    """The message with only these recipients."""
    if recipients == message.envelope.recipients:
        return message
    return replace(message, envelope=replace(message.envelope, recipients=recipients))


def _by_recipient(recipients: Sequence[Recipient], outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The outcome of each recipient. Those come in order; a report that does not fit is read by address, and a
    recipient without an outcome is deferred: unknown means temporary.
    """
    if len(recipients) == len(outcomes) and all(
        recipient.address == outcome.recipient for recipient, outcome in zip(recipients, outcomes, strict=True)
    ):
        return outcomes
    known = {outcome.recipient: outcome for outcome in outcomes}
    return [known.get(recipient.address) or Deferred(recipient.address, NO_OUTCOME) for recipient in recipients]
