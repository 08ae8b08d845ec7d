"""Values as JSON can carry them, and back: messages, routes, states, outcomes, happenings. Pure.

Short keys, one pair of functions a value: `x_wire` gives what goes into a frame's header, `to_x` what came out of one.
Addresses are taken as they were stored; they were parsed when they came in. What is not as it should be raises
KeyError, IndexError, TypeError, ValueError, AttributeError or OverflowError: the frame's reader says which frame.
Next: `mail/log/codec.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, assert_never

from mail.address import Address
from mail.envelope import Body, Envelope, Notify, Recipient, Ret
from mail.message import Client, DeliveryId, Message, QueueId, Spooled
from mail.outcome import Deferred, Delivered, Failed, Outcome
from mail.record import (
    Bounced,
    Closed,
    Delivery,
    Happening,
    InHand,
    Refused,
    Resumed,
    Routed,
    Took,
    Tried,
    Waiting,
    Why,
)
from mail.reply import Reply
from mail.route import Route, Speaks, ToMailbox, ToMx, ToRelay, Unresolved

Wire = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_BODIES = {body.value: body for body in Body}
_WHYS = {why.value: why for why in Why}


def instant_wire(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def duration_wire(duration: timedelta) -> int:
    return duration // _MICROSECOND


def address_wire(address: Address) -> list[str]:
    return [address.local, address.domain]


def recipient_wire(recipient: Recipient) -> Wire:
    wire: Wire = {"a": [recipient.address.local, recipient.address.domain]}
    if recipient.original != recipient.address:
        wire["o"] = address_wire(recipient.original)
    if recipient.notify is not None:
        wire["n"] = sorted(notify.value for notify in recipient.notify)
    if recipient.orcpt is not None:
        wire["p"] = recipient.orcpt
    return wire


def message_wire(message: Message) -> Wire:
    envelope = message.envelope
    wire: Wire = {
        "q": message.queue_id,
        "t": message.tenant,
        "r": (message.received - _EPOCH) // _MICROSECOND,
        "s": message.size_bytes,
        "to": [recipient_wire(recipient) for recipient in envelope.recipients],
    }
    if envelope.reverse_path is not None:
        wire["f"] = address_wire(envelope.reverse_path)
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


def spooled_wire(spooled: Spooled) -> list[str | int]:
    return [spooled.name, spooled.size_bytes, spooled.digest]


def route_wire(route: Route) -> list[Any]:
    match route:
        case ToMailbox():
            return ["mailbox", route.owner]
        case ToRelay():
            return ["relay", route.host, route.port, route.speaks.value]
        case ToMx():
            return ["mx", route.domain, route.hosts]
        case Unresolved():
            return ["unresolved", route.domain]
        case _:
            assert_never(route)


def delivery_wire(delivery: Delivery) -> Wire:
    return {"i": delivery.id, "m": message_wire(delivery.message), "r": route_wire(delivery.route)}


def state_wire(state: InHand | Waiting) -> list[Any]:
    match state:
        case InHand():
            return ["hand", instant_wire(state.since)]
        case Waiting():
            return [state.why.value, instant_wire(state.due), state.reason]
        case _:
            assert_never(state)


def reply_wire(reply: Reply) -> list[Any]:
    return [reply.code, reply.enhanced, reply.text]


def outcome_wire(outcome: Outcome) -> list[Any]:
    match outcome:
        case Delivered():
            kind = "delivered"
        case Deferred():
            kind = "deferred"
        case Failed():
            kind = "failed"
        case _:
            assert_never(outcome)
    return [kind, address_wire(outcome.recipient), reply_wire(outcome.reply), outcome.remote]


def happening_wire(what: Happening) -> list[Any]:
    match what:
        case Took():
            return ["took", message_wire(what.message)]
        case Routed():
            return [
                "routed",
                what.delivery_id,
                route_wire(what.route),
                [address_wire(recipient) for recipient in what.recipients],
                None if what.waits is None else state_wire(what.waits),
            ]
        case Resumed():
            return ["resumed", what.delivery_id, what.number, route_wire(what.route)]
        case Tried():
            return [
                "tried",
                what.delivery_id,
                what.number,
                [outcome_wire(outcome) for outcome in what.outcomes],
                instant_wire(what.started),
                duration_wire(what.duration),
                None if what.next_due is None else instant_wire(what.next_due),
            ]
        case Refused():
            return ["refused", [outcome_wire(outcome) for outcome in what.outcomes]]
        case Bounced():
            return ["bounced", [address_wire(recipient) for recipient in what.recipients], what.dsn]
        case Closed():
            return ["closed"]
        case _:
            assert_never(what)


# --- and back


def to_instant(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def to_recipient(wire: Wire) -> Recipient:
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


def to_message(wire: Wire) -> Message:
    get = wire.get
    sender = get("f")
    body = get("b")
    ret = get("ret")
    envelope = Envelope(
        None if sender is None else Address(*sender),
        tuple([to_recipient(recipient) for recipient in wire["to"]]),
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


def to_route(wire: list[Any]) -> Route:
    match wire:
        case ["mailbox", owner]:
            return ToMailbox(owner)
        case ["relay", host, port, speaks]:
            return ToRelay(host, port, Speaks(speaks))
        case ["mx", domain, hosts]:
            return ToMx(domain, tuple([(preference, name) for preference, name in hosts]))
        case ["unresolved", domain]:
            return Unresolved(domain)
        case _:
            raise ValueError(f"route {wire!r}")


def to_delivery(wire: Wire) -> Delivery:
    return Delivery(DeliveryId(wire["i"]), to_message(wire["m"]), to_route(wire["r"]))


def to_state(wire: list[Any]) -> InHand | Waiting:
    if wire[0] == "hand":
        return InHand(to_instant(wire[1]))
    return to_waiting(wire)


def to_waiting(wire: list[Any]) -> Waiting:
    why, due, reason = wire
    return Waiting(to_instant(due), _WHYS[why], reason)


_OUTCOMES: dict[str, type[Delivered] | type[Deferred] | type[Failed]] = {
    "delivered": Delivered,
    "deferred": Deferred,
    "failed": Failed,
}


def to_outcome(wire: list[Any]) -> Outcome:
    kind, recipient, reply, remote = wire
    return _OUTCOMES[kind](Address(*recipient), Reply(*reply), remote)


def to_happening(wire: list[Any]) -> Happening:
    match wire:
        case ["took", message]:
            return Took(to_message(message))
        case ["routed", delivery, route, recipients, waits]:
            addresses = tuple([Address(*recipient) for recipient in recipients])
            return Routed(delivery, to_route(route), addresses, None if waits is None else to_waiting(waits))
        case ["resumed", delivery, number, route]:
            return Resumed(delivery, number, to_route(route))
        case ["tried", delivery, number, outcomes, started, duration, next_due]:
            return Tried(
                delivery,
                number,
                tuple([to_outcome(outcome) for outcome in outcomes]),
                to_instant(started),
                timedelta(microseconds=duration),
                None if next_due is None else to_instant(next_due),
            )
        case ["refused", outcomes]:
            return Refused(tuple([to_outcome(outcome) for outcome in outcomes]))
        case ["bounced", recipients, dsn]:
            return Bounced(tuple([Address(*recipient) for recipient in recipients]), dsn)
        case ["closed"]:
            return Closed()
        case _:
            raise ValueError(f"event {wire[0]!r}")
