"""JSON form of messages, routes, states, outcomes and event details, as frame headers contain them.

The functions are pure, one pair `encode_x` and `decode_x` per value. Addresses were parsed when they were accepted and
are not parsed again. Malformed input raises KeyError, IndexError, TypeError, ValueError, AttributeError or
OverflowError.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, assert_never

from mail.address import Address
from mail.envelope import Body, Envelope, Notify, Recipient, Ret
from mail.message import Client, DeliveryId, Message, QueueId, Spooled
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import (
    Active,
    AttemptRecorded,
    Bounced,
    Closed,
    Delivery,
    Discarded,
    EventDetail,
    FailedByRouter,
    Received,
    Resumed,
    Routed,
    WaitCause,
    Waiting,
)
from mail.reply import Reply
from mail.route import RelayProtocol, Route, ToMailbox, ToMx, ToRelay, Unresolved

Wire = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_BODIES = {body.value: body for body in Body}
_WAIT_REASONS = {why.value: why for why in WaitCause}


def encode_instant(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def encode_duration(duration: timedelta) -> int:
    return duration // _MICROSECOND


def encode_address(address: Address) -> list[str]:
    return [address.local, address.domain]


def encode_recipient(recipient: Recipient) -> Wire:
    wire: Wire = {"a": [recipient.address.local, recipient.address.domain]}
    if recipient.original != recipient.address:
        wire["o"] = encode_address(recipient.original)
    if recipient.notify is not None:
        wire["n"] = sorted(notify.value for notify in recipient.notify)
    if recipient.orcpt is not None:
        wire["p"] = recipient.orcpt
    return wire


def encode_message(message: Message) -> Wire:
    envelope = message.envelope
    wire: Wire = {
        "q": message.queue_id,
        "t": message.tenant,
        "r": (message.received - _EPOCH) // _MICROSECOND,
        "s": message.size_bytes,
        "to": [encode_recipient(recipient) for recipient in envelope.recipients],
    }
    if envelope.reverse_path is not None:
        wire["f"] = encode_address(envelope.reverse_path)
    if envelope.body is not Body.SEVEN_BIT:
        wire["b"] = envelope.body.value
    if envelope.smtputf8:
        wire["u"] = 1
    if envelope.ret is not None:
        wire["ret"] = envelope.ret.value
    if envelope.envid is not None:
        wire["envid"] = envelope.envid
    client = message.client
    if client is not None:
        wire["c"] = [client.ip, client.port, client.helo, client.protocol, client.user]
    return wire


def encode_spooled(spooled: Spooled) -> list[str | int]:
    return [spooled.name, spooled.size_bytes, spooled.digest]


def encode_route(route: Route) -> list[Any]:
    match route:
        case ToMailbox():
            return ["mailbox", route.owner]
        case ToRelay():
            return ["relay", route.host, route.port, route.protocol.value]
        case ToMx():
            return ["mx", route.domain, route.hosts]
        case Unresolved():
            return ["unresolved", route.domain]
        case _:
            assert_never(route)


def encode_delivery(delivery: Delivery) -> Wire:
    return {"i": delivery.id, "m": encode_message(delivery.message), "r": encode_route(delivery.route)}


def encode_state(state: Active | Waiting) -> list[Any]:
    match state:
        case Active():
            return ["hand", encode_instant(state.since)]
        case Waiting():
            return [state.cause.value, encode_instant(state.due), state.reason]
        case _:
            assert_never(state)


def encode_reply(reply: Reply) -> list[Any]:
    return [reply.code, reply.enhanced, reply.text]


def encode_outcome(outcome: Outcome) -> list[Any]:
    match outcome:
        case Delivered():
            kind = "delivered"
        case Deferred():
            kind = "deferred"
        case Failed():
            kind = "failed"
        case _:
            assert_never(outcome)
    return [kind, encode_address(outcome.recipient), encode_reply(outcome.reply), outcome.remote]


def encode_event_detail(detail: EventDetail) -> list[Any]:
    match detail:
        case Received():
            return ["took", encode_message(detail.message)]
        case Routed():
            return [
                "routed",
                detail.delivery_id,
                encode_route(detail.route),
                [encode_address(recipient) for recipient in detail.recipients],
                None if detail.waiting is None else encode_state(detail.waiting),
            ]
        case Resumed():
            return ["resumed", detail.delivery_id, detail.number, encode_route(detail.route)]
        case AttemptRecorded():
            return [
                "tried",
                detail.delivery_id,
                detail.number,
                [encode_outcome(outcome) for outcome in detail.outcomes],
                encode_instant(detail.started),
                encode_duration(detail.duration),
                None if detail.next_due is None else encode_instant(detail.next_due),
            ]
        case FailedByRouter():
            return ["refused", [encode_outcome(outcome) for outcome in detail.outcomes]]
        case Bounced():
            return ["bounced", [encode_address(recipient) for recipient in detail.recipients], detail.dsn]
        case Discarded():
            return ["bounced", [encode_address(recipient) for recipient in detail.recipients], None]
        case Closed():
            return ["closed"]
        case _:
            assert_never(detail)


# --- decoding


def decode_instant(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def decode_recipient(wire: Wire) -> Recipient:
    local, domain = wire["a"]
    address = Address(local, domain)
    if len(wire) == 1:
        return Recipient(address, address)
    original = wire.get("o")
    notify = wire.get("n")
    return Recipient(
        address,
        address if original is None else Address(*original),
        None if notify is None else frozenset(Notify(word) for word in notify),
        wire.get("p"),
    )


def decode_message(wire: Wire) -> Message:
    get = wire.get
    sender = get("f")
    body = get("b")
    ret = get("ret")
    envelope = Envelope(
        None if sender is None else Address(*sender),
        tuple([decode_recipient(recipient) for recipient in wire["to"]]),
        Body.SEVEN_BIT if body is None else _BODIES[body],
        "u" in wire,
        None if ret is None else Ret(ret),
        get("envid"),
    )
    client = get("c")
    return Message(
        QueueId(wire["q"]),
        wire["t"],
        _EPOCH + timedelta(microseconds=wire["r"]),
        envelope,
        wire["s"],
        None if client is None else Client(*client),
    )


def decode_route(wire: list[Any]) -> Route:
    match wire:
        case ["mailbox", owner]:
            return ToMailbox(owner)
        case ["relay", host, port, protocol]:
            return ToRelay(host, port, RelayProtocol(protocol))
        case ["mx", domain, hosts]:
            return ToMx(domain, tuple([(preference, name) for preference, name in hosts]))
        case ["unresolved", domain]:
            return Unresolved(domain)
        case _:
            raise ValueError(f"route {wire!r}")


def decode_delivery(wire: Wire) -> Delivery:
    return Delivery(DeliveryId(wire["i"]), decode_message(wire["m"]), decode_route(wire["r"]))


def decode_state(wire: list[Any]) -> Active | Waiting:
    if wire[0] == "hand":
        return Active(decode_instant(wire[1]))
    return decode_waiting(wire)


def decode_waiting(wire: list[Any]) -> Waiting:
    why, due, reason = wire
    return Waiting(decode_instant(due), _WAIT_REASONS[why], reason)


_OUTCOMES: dict[str, type[Delivered] | type[Deferred] | type[Failed]] = {
    "delivered": Delivered,
    "deferred": Deferred,
    "failed": Failed,
}


def decode_outcome(wire: list[Any]) -> Outcome:
    kind, recipient, reply, remote = wire
    return _OUTCOMES[kind](Address(*recipient), Reply(*reply), remote)


def decode_event_detail(wire: list[Any]) -> EventDetail:
    match wire:
        case ["took", message]:
            return Received(decode_message(message))
        case ["routed", delivery, route, recipients, waits]:
            addresses = tuple([Address(*recipient) for recipient in recipients])
            return Routed(delivery, decode_route(route), addresses, None if waits is None else decode_waiting(waits))
        case ["resumed", delivery, number, route]:
            return Resumed(delivery, number, decode_route(route))
        case ["tried", delivery, number, outcomes, started, duration, next_due]:
            return AttemptRecorded(
                delivery,
                number,
                tuple([decode_outcome(outcome) for outcome in outcomes]),
                decode_instant(started),
                timedelta(microseconds=duration),
                None if next_due is None else decode_instant(next_due),
            )
        case ["refused", outcomes]:
            return FailedByRouter(tuple([decode_outcome(outcome) for outcome in outcomes]))
        case ["bounced", recipients, dsn]:
            addresses = tuple([Address(*recipient) for recipient in recipients])
            return Discarded(addresses) if dsn is None else Bounced(addresses, dsn)
        case ["closed"]:
            return Closed()
        case _:
            raise ValueError(f"event {wire[0]!r}")
