"""Tests of the mailbox courier: its trace headers, and the outcome of mail store errors."""

from __future__ import annotations

import asyncio

import pytest

from delivery.mailbox_courier import MailboxCourier
from mail.address import Address
from mail.directory import Snapshot, User
from mail.envelope import Envelope, Recipient
from mail.message import DeliveryId
from mail.outcome import Deferred, Delivered, Failed
from mailstore.mailboxes import MailboxFull, MailboxUnavailable, MessageTooLarge
from tests.support.builders.delivery import CONTENT, address, delivery, envelope, mailbox
from tests.support.servers.static_directory import StaticDirectory


class FakeMailboxes:
    """A `Mailboxes` with `append` only."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self._trouble = trouble
        self.stored: dict[tuple[str, DeliveryId], bytes] = {}
        self.quota: int | None = None

    async def append(self, owner: str, delivery_id: DeliveryId, content: bytes, quota_bytes: int | None = None) -> bool:
        self.quota = quota_bytes
        if self._trouble is not None:
            raise self._trouble
        new = (owner, delivery_id) not in self.stored
        self.stored.setdefault((owner, delivery_id), content)
        return new


def mailbox_courier(box: FakeMailboxes) -> MailboxCourier:
    alice = User(address("alice@example.test"), quota_bytes=1000)
    directory = StaticDirectory(Snapshot(users={"alice@example.test": alice}), {})
    return MailboxCourier(mailboxes=box, directory=directory)  # type: ignore[arg-type]


async def test_mailbox_gets_trace_headers_and_unchanged_message() -> None:
    box = FakeMailboxes()
    own_delivery = delivery(mailbox(), "alice+a@example.test", "Alice@example.test")
    outcomes = await mailbox_courier(box).deliver(own_delivery, CONTENT)
    assert [type(outcome) for outcome in outcomes] == [Delivered, Delivered]
    ((owner, _), content), *others = box.stored.items()
    assert not others
    assert owner == "alice@example.test"
    assert box.quota == 1000
    assert content == (
        b"Return-Path: <sender@example.test>\r\n"
        b"Delivered-To: alice+a@example.test\r\nDelivered-To: Alice@example.test\r\n" + CONTENT
    )
    again = await mailbox_courier(box).deliver(own_delivery, CONTENT)
    assert all(isinstance(outcome, Delivered) and "Duplicate" in outcome.reply.text for outcome in again)
    assert len(box.stored) == 1


async def test_trace_headers_have_a_labels_where_possible() -> None:
    box = FakeMailboxes()
    recipients = tuple(Recipient(Address(local, "bücher.test")) for local in ("alice", "älice"))
    own_envelope = Envelope(Address("sender", "bücher.test"), recipients, smtputf8=True)
    await mailbox_courier(box).deliver(delivery(mailbox(), own_envelope=own_envelope), CONTENT)
    ((_, content),) = box.stored.items()
    assert (
        content
        == (
            "Return-Path: <sender@xn--bcher-kva.test>\r\n"
            "Delivered-To: alice@xn--bcher-kva.test\r\nDelivered-To: älice@bücher.test\r\n"
        ).encode()
        + CONTENT
    )


async def test_return_path_of_the_message_is_removed() -> None:
    box = FakeMailboxes()
    foreign = b"Return-Path: <other@example.test>\r\n" + CONTENT
    await mailbox_courier(box).deliver(delivery(mailbox(), "alice@example.test"), foreign)
    (stored,) = box.stored.values()
    assert stored.startswith(b"Return-Path: <sender@example.test>\r\n")
    assert stored.endswith(CONTENT)
    assert stored.count(b"Return-Path:") == 1


async def test_null_reverse_path_is_written_as_empty_return_path() -> None:
    box = FakeMailboxes()
    await mailbox_courier(box).deliver(
        delivery(mailbox(), own_envelope=envelope("alice@example.test", sender=None)), CONTENT
    )
    assert next(iter(box.stored.values())).startswith(b"Return-Path: <>\r\n")


async def test_outcome_of_each_mailbox_error() -> None:
    for trouble, code in ((MailboxFull("x"), "452 4.2.2"), (MailboxUnavailable("x"), "451 4.3.0")):
        (outcome,) = await mailbox_courier(FakeMailboxes(trouble)).deliver(
            delivery(mailbox(), "alice@example.test"), CONTENT
        )
        assert isinstance(outcome, Deferred)
        assert str(outcome.reply).startswith(code)
    (outcome,) = await mailbox_courier(FakeMailboxes(MessageTooLarge("x"))).deliver(
        delivery(mailbox(), "alice@example.test"), CONTENT
    )
    assert isinstance(outcome, Failed)
    assert str(outcome.reply).startswith("552 5.2.3")
    (outcome,) = await mailbox_courier(FakeMailboxes()).deliver(
        delivery(mailbox("bob@example.test"), "bob@example.test"), CONTENT
    )
    assert isinstance(outcome, Failed)
    assert outcome.reply.enhanced == "5.1.1"


async def test_mailbox_time_out_defers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(FakeMailboxes):
        async def append(self, *_: object) -> bool:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr("delivery.mailbox_courier.APPEND_TIMEOUT_SECONDS", 0.05)
    async with asyncio.timeout(5):
        (outcome,) = await mailbox_courier(Silent()).deliver(delivery(mailbox(), "alice@example.test"), CONTENT)
    assert isinstance(outcome, Deferred)
    assert outcome.reply.enhanced == "4.3.0"
