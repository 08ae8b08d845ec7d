"""The list of checks and stamps between the final dot and the append."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from ingress import replies
from ingress.checks import MX_STEPS, Facts, apply
from ingress.content import ContentStart
from mail.address import Address
from mail.envelope import Body, Envelope, Recipient
from mail.message import Client, Message, QueueId
from mail.reply import Reply
from tests.support.servers.ingress import RunningIngress

CONTENT = b"Subject:  odd   spacing\r\nX: y\r\n\r\nbody\r\n"
FACTS = Facts("mx.example.test", max_size=1000, max_hops=2, start=ContentStart.HEADER)


def message(content: bytes = CONTENT, *, utf8: bool = False) -> Message:
    recipient = Recipient(Address("bøb" if utf8 else "bob", "example.test"))
    return Message(
        queue_id=QueueId("01M85DXKVK0FGNCFAQP8N9B05F"),
        tenant="default",
        received=datetime(2026, 3, 1, tzinfo=UTC),
        envelope=Envelope(None, (recipient,), smtputf8=utf8),
        size_bytes=len(content),
        client=Client(ip="192.0.2.1", port=1, helo="x", protocol="ESMTP"),
    )


def add_seen(message: Message, content: bytearray, facts: Facts) -> bytes:
    return f"X-Seen: {message.size_bytes} bytes by {facts.hostname}\r\n".encode()


async def test_new_stamp_is_one_entry_of_a_policy() -> None:
    server = RunningIngress()
    (mx,) = server.ingress.listeners
    server.ingress.listeners = [replace(mx, policy=replace(mx.policy, steps=(*MX_STEPS, add_seen)))]
    await server.start()
    try:
        client = await server.connect()
        await client.start_data()
        client.send(CONTENT + b".\r\n")
        assert (await client.read_reply()).startswith("250")
    finally:
        await server.close()
    content = server.content()
    assert content.startswith(b"X-Seen: 39 bytes by mx.example.test\r\nReceived: from client.test (")
    assert content.endswith(b" +0000\r\n" + CONTENT)
    assert server.log.accepted[0].message.size_bytes == len(content)


def test_steps_run_in_their_order_and_stamps_stand_above_earlier_ones() -> None:
    seen: list[str] = []

    def stamp(name: str, result: bytes | Reply | None) -> object:
        def entry(message: Message, content: bytearray, facts: Facts) -> bytes | Reply | None:
            seen.append(name)
            assert (bytes(content), message.size_bytes) == (CONTENT, len(CONTENT))  # without the stamps
            return result

        return entry

    steps = (stamp("a", b"A: 1\r\n"), stamp("b", None), stamp("c", b"C: 1\r\n"))
    stamped = apply(steps, message(), bytearray(CONTENT), FACTS)  # type: ignore[arg-type]
    assert not isinstance(stamped, Reply)
    assert stamped[1] == b"C: 1\r\nA: 1\r\n" + CONTENT
    refusing = (*steps, stamp("d", replies.TOO_LARGE), stamp("e", None))
    assert apply(refusing, message(), bytearray(CONTENT), FACTS) == replies.TOO_LARGE  # type: ignore[arg-type]
    assert seen == ["a", "b", "c", "a", "b", "c", "d"]


def test_size_is_checked_before_the_hops() -> None:
    loop = b"Received: x\r\n" * 3 + b"\r\n"
    assert apply(MX_STEPS, message(loop), bytearray(loop), FACTS) == replies.TOO_MANY_HOPS
    large = loop + b"x" * 1000
    assert apply(MX_STEPS, message(large), bytearray(large), FACTS) == replies.TOO_LARGE


def test_utf8_in_a_stamp_declares_8bitmime() -> None:
    for utf8, body in ((False, Body.SEVEN_BIT), (True, Body.EIGHT_BIT)):
        stamped = apply(MX_STEPS, message(utf8=utf8), bytearray(CONTENT), FACTS)
        assert not isinstance(stamped, Reply)
        assert stamped[0].envelope.body is body
