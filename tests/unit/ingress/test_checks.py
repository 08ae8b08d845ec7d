"""The list of checks and stamps between the final dot and the append."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ingress import replies
from ingress.checks import MX_STEPS, Step
from ingress.content import ContentStart, content_start
from ingress.draft import Draft, Facts, Prepend, Remove
from mail.address import Address
from mail.envelope import Body, Envelope, Recipient
from mail.message import Client, Message, QueueId
from mail.reply import Reply
from tests.support.servers.ingress import RunningIngress

CONTENT = b"Subject:  odd   spacing\r\nX: y\r\n\r\nbody\r\n"
FACTS = Facts("mx.example.test", max_size=1000, max_hops=2)


def draft(content: bytes = CONTENT, *, utf8: bool = False) -> Draft:
    recipient = Recipient(Address("bøb" if utf8 else "bob", "example.test"))
    message = Message(
        queue_id=QueueId("01M85DXKVK0FGNCFAQP8N9B05F"),
        tenant="default",
        received=datetime(2026, 3, 1, tzinfo=UTC),
        envelope=Envelope(None, (recipient,), smtputf8=utf8),
        size_bytes=len(content),
        client=Client(ip="192.0.2.1", port=1, helo="x", protocol="ESMTP"),
    )
    return Draft(message, bytearray(content), content_start(content), FACTS)


def run(steps: tuple[Step, ...], of: Draft) -> Reply | None:
    for step in steps:
        result = step.run(of)
        if isinstance(result, Reply):
            return result
        if result is not None:
            of.apply(result)
    return None


@asynccontextmanager
async def running_with(*steps: Step) -> AsyncIterator[RunningIngress]:
    """An Ingress with these steps after those of `mx`."""
    server = RunningIngress()
    (mx,) = server.ingress.listeners
    server.ingress.listeners = [replace(mx, policy=replace(mx.policy, steps=(*MX_STEPS, *steps)))]
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def send(server: RunningIngress, content: bytes) -> str:
    client = await server.connect()
    await client.start_data()
    client.send(content + b".\r\n")
    return await client.read_reply()


def add_date(_draft: Draft) -> Prepend:
    return Prepend(b"Date: Sun, 1 Mar 2026 00:00:00 +0000\r\n")


def sign(of: Draft) -> Prepend:
    """As a DKIM signer: over fields of the header section, and over the body."""
    fields = b" ".join(line.partition(b":")[0] for line in of.header.splitlines() if line[:1] not in b" \t")
    return Prepend(b"X-Signature: %s; %r\r\n" % (fields, bytes(of.body)))


def is_ours(value: bytes) -> bool:
    return value.split(b";")[0].strip() == b"mx.example.test"


async def test_new_stamp_is_one_entry_of_a_policy_and_sees_earlier_stamps() -> None:
    async with running_with(Step(add_date), Step(sign)) as server:
        for content, fields in (
            (CONTENT, b"Date Received Subject X"),
            (b"body\r\n", b"Date Received"),
            (b"From bob\r\nSubject: x\r\n\r\nbody\r\n", b"Date Received X-Mailbox-Line Subject"),
        ):
            assert (await send(server, content)).startswith("250")
            number = len(server.log.accepted) - 1
            stored = server.content(number)
            assert stored.startswith(b"X-Signature: %s; b'body\\r\\n'\r\nDate: Sun" % fields)
            assert stored.endswith(b"\r\n\r\nbody\r\n")
            assert server.log.accepted[number].message.size_bytes == len(stored)


async def test_named_fields_are_removed_and_the_rest_stays_as_received() -> None:
    forged = b"authentication-results :\r\n\tmx.example.test;\r\n spf=pass\r\n"
    foreign = b"Authentication-Results: mx.remote.test; spf=pass\r\n"
    rest = b"Subject:  odd   spacing\r\n" + foreign
    body = b"\r\nBcc: in the body\r\n"
    steps = (
        Step(lambda _draft: Remove(b"authentication-results", is_ours)),
        Step(lambda _draft: Remove(b"bcc")),
        Step(add_date),
        Step(sign),
    )
    async with running_with(*steps) as server:
        content = forged + b"Bcc: hidden@example.test\r\n" + rest + forged + body
        assert (await send(server, content)).startswith("250")
        stored = server.content()
    assert b"Bcc" not in stored.partition(b";")[0]  # the signer did not see it
    assert stored.endswith(b" +0000\r\n" + rest + body)


async def test_step_in_a_thread_lets_other_sessions_run() -> None:
    other_session_ran = threading.Event()
    threads: list[int] = []

    def slow(_draft: Draft) -> Prepend | Reply:
        threads.append(threading.get_ident())
        return Prepend(b"X-Slow: yes\r\n") if other_session_ran.wait(10.0) else replies.LOCAL_ERROR

    def after(of: Draft) -> Prepend:
        threads.append(threading.get_ident())
        return Prepend(b"X-Above: %s" % of.header[: len(b"X-Slow: yes\r\n")])

    async with running_with(Step(slow, in_thread=True), Step(after)) as server:
        first = await server.connect()
        await first.start_data()
        first.send(CONTENT + b".\r\n")
        second = await server.connect()
        await second.read_reply()
        assert (await second.command("NOOP")).startswith("250")
        other_session_ran.set()
        assert (await first.read_reply()).startswith("250")
        assert server.content().startswith(b"X-Above: X-Slow: yes\r\nX-Slow: yes\r\nReceived: ")
    assert threads[0] != threads[1] == threading.get_ident()


async def test_step_that_raises_in_a_thread_gets_451() -> None:
    def broken(_draft: Draft) -> None:
        raise ZeroDivisionError

    async with running_with(Step(broken, in_thread=True)) as server:
        assert (await send(server, CONTENT)).startswith("451 4.3.0")
        assert server.log.accepted == []


def test_steps_run_in_their_order_up_to_the_first_refusal() -> None:
    seen: list[str] = []

    def step(name: str, result: Prepend | Reply | None) -> Step:
        def entry(of: Draft) -> Prepend | Reply | None:
            seen.append(name)
            assert of.message.size_bytes == len(CONTENT)  # as received
            return result

        return Step(entry)

    steps = (step("a", Prepend(b"A: 1\r\n")), step("b", None), step("c", Prepend(b"C: 1\r\n")))
    stamped = draft()
    assert run(steps, stamped) is None
    assert stamped.finish()[1] == b"C: 1\r\nA: 1\r\n" + CONTENT
    assert run((*steps, step("d", replies.TOO_LARGE), step("e", None)), draft()) == replies.TOO_LARGE
    assert seen == ["a", "b", "c", "a", "b", "c", "d"]


def test_size_is_checked_before_the_hops() -> None:
    loop = b"Received: x\r\n" * 3 + b"\r\n"
    assert run(MX_STEPS, draft(loop)) == replies.TOO_MANY_HOPS
    assert run(MX_STEPS, draft(loop + b"x" * 1000)) == replies.TOO_LARGE


def test_utf8_in_a_stamp_declares_8bitmime() -> None:
    for steps, body in (
        (MX_STEPS, Body.SEVEN_BIT),
        ((*MX_STEPS, Step(lambda _draft: Prepend("X-Name: bøb\r\n".encode()))), Body.EIGHT_BIT),
    ):
        stamped = draft(utf8=True)
        assert run(steps, stamped) is None
        assert stamped.finish()[0].envelope.body is body


@pytest.mark.parametrize(
    "content",
    [CONTENT, b"\r\nbody\r\n", b"Bcc: x\r\n", b"Bcc: x\r\n\r\n", b"no header\r\n\r\nbody\r\n", b" folds\r\n", b""],
)
def test_header_and_body_are_those_of_the_finished_content(content: bytes) -> None:
    changes: tuple[Callable[[], Prepend | Remove], ...] = (
        lambda: Prepend(b"Bcc: y\r\n\tfolded\r\nA: 1\r\n"),
        lambda: Remove(b"bcc"),
        lambda: Prepend(b"B: 1\r\n"),
        lambda: Remove(b"a"),
    )
    for count in range(len(changes) + 1):
        changed = draft(content)
        for change in changes[:count]:
            changed.apply(change())
        header, body = changed.header, bytes(changed.body)
        has_empty_line = header + b"\r\n" + body == changed.finish()[1]
        assert has_empty_line or (header == changed.finish()[1] and not body)
        assert (b"Bcc" in header) == (count == 1 or (count == 0 and content.startswith(b"Bcc")))


@pytest.mark.parametrize("fields", [b"", b"A: 1", b"A: 1\n", b" A: 1\r\n", b"A: 1\r\n\r\n", b"\r\nA: 1\r\n"])
def test_what_is_no_sequence_of_header_fields_cannot_be_prepended(fields: bytes) -> None:
    with pytest.raises(ValueError, match="is not a sequence of header fields"):
        Prepend(fields)


def test_steps_copy_no_body() -> None:
    large = CONTENT + b"x" * 4_000_000
    of = Draft(draft().message, bytearray(large), ContentStart.HEADER, FACTS)
    tracemalloc.start()
    try:
        run(
            (
                *MX_STEPS,
                Step(add_date),
                Step(lambda _draft: Remove(b"x")),
                Step(lambda of: sign(of) if not of.body else None),
            ),
            of,
        )
        assert tracemalloc.get_traced_memory()[1] < len(large) / 2
        assert of.finish()[0].size_bytes > len(large)
    finally:
        tracemalloc.stop()


def test_nul_is_passed_on() -> None:
    """As Postfix without `message_strip_characters`: a removed octet would break a signature."""
    stamped = draft(CONTENT + b"a\x00b\r\n")
    assert run(MX_STEPS, stamped) is None
    assert stamped.finish()[1].endswith(b"\r\na\x00b\r\n")
