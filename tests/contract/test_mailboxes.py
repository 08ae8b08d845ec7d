"""Contract suite of the Mailboxes port, for every implementation."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mail.message import DeliveryId
from mailstore.mailboxes import MailboxFull, MailboxInUse, MessageTooLarge
from mailstore.maildir import Maildir
from mailstore.memory import MemoryMailboxes

OWNER = "alice@example.test"
CONTENT = b"Subject: hello\r\n\r\n.\r\n\x00\xff binary\r\nFrom here\r\n"

Mailboxes = MemoryMailboxes | Maildir


@pytest.fixture(params=["memory", "maildir"])
def mailboxes(request: pytest.FixtureRequest, tmp_path: Path) -> Mailboxes:
    return MemoryMailboxes() if request.param == "memory" else Maildir(tmp_path / "mail", "mx.example.test")


def an_id(number: int) -> DeliveryId:
    return DeliveryId(f"01JDXJ5Z8Q0000000000{number:06d}-0")


async def test_a_new_mailbox_is_empty(mailboxes: Mailboxes) -> None:
    assert list(await mailboxes.messages(OWNER)) == []
    assert await mailboxes.used_bytes(OWNER) == 0
    await mailboxes.expunge(OWNER, ["x"])
    await mailboxes.mark_seen(OWNER, ["x"])
    with pytest.raises(KeyError):
        await mailboxes.read(OWNER, "x")


async def test_content_is_read_byte_for_byte(mailboxes: Mailboxes) -> None:
    assert await mailboxes.append(OWNER, an_id(1), CONTENT) is True
    (stored,) = await mailboxes.messages(OWNER)
    assert stored.size_bytes == len(CONTENT)
    assert not stored.seen
    assert 1 <= len(stored.uid) <= 70
    assert all(0x21 <= octet <= 0x7E for octet in stored.uid.encode())
    assert await mailboxes.read(OWNER, stored.uid) == CONTENT
    parts = [await mailboxes.read(OWNER, stored.uid, start, 7) for start in range(0, len(CONTENT) + 7, 7)]
    assert b"".join(parts) == CONTENT
    assert await mailboxes.read(OWNER, stored.uid, len(CONTENT), 10) == b""
    assert await mailboxes.read(OWNER, stored.uid, 5) == CONTENT[5:]


@pytest.mark.parametrize("content", [b"", b"no line end", b"bare\nline\nfeeds\r\n", b"\r\n", b"x" * 300_000])
async def test_odd_content_keeps_its_size(mailboxes: Mailboxes, content: bytes) -> None:
    await mailboxes.append(OWNER, an_id(1), content)
    (stored,) = await mailboxes.messages(OWNER)
    assert await mailboxes.read(OWNER, stored.uid) == content
    assert stored.size_bytes == len(content)
    assert await mailboxes.used_bytes(OWNER) == len(content)


async def test_a_repeated_append_of_an_id_changes_nothing(mailboxes: Mailboxes) -> None:
    assert await mailboxes.append(OWNER, an_id(1), CONTENT) is True
    assert await mailboxes.append(OWNER, an_id(1), b"other") is False
    (stored,) = await mailboxes.messages(OWNER)
    assert await mailboxes.read(OWNER, stored.uid) == CONTENT
    await mailboxes.mark_seen(OWNER, [stored.uid])
    assert await mailboxes.append(OWNER, an_id(1), CONTENT) is False
    assert len(await mailboxes.messages(OWNER)) == 1
    await mailboxes.expunge(OWNER, [stored.uid])
    assert await mailboxes.append(OWNER, an_id(1), CONTENT) is False
    assert list(await mailboxes.messages(OWNER)) == []


async def test_one_id_in_two_mailboxes_is_two_messages(mailboxes: Mailboxes) -> None:
    assert await mailboxes.append(OWNER, an_id(1), CONTENT) is True
    assert await mailboxes.append("bob@example.test", an_id(1), CONTENT) is True


async def test_messages_are_listed_oldest_first_with_stable_uids(mailboxes: Mailboxes) -> None:
    for number in (3, 1, 2):
        await mailboxes.append(OWNER, an_id(number), b"%d\r\n" % number)
    first = await mailboxes.messages(OWNER)
    assert [await mailboxes.read(OWNER, stored.uid) for stored in first] == [b"3\r\n", b"1\r\n", b"2\r\n"]
    assert [stored.received for stored in first] == sorted(stored.received for stored in first)
    await mailboxes.mark_seen(OWNER, [first[1].uid])
    again = await mailboxes.messages(OWNER)
    assert [stored.uid for stored in again] == [stored.uid for stored in first]
    assert [stored.seen for stored in again] == [False, True, False]
    assert await mailboxes.read(OWNER, first[1].uid) == b"1\r\n"


async def test_expunge_removes_only_the_given_messages(mailboxes: Mailboxes) -> None:
    for number in range(4):
        await mailboxes.append(OWNER, an_id(number), b"%d\r\n" % number)
    stored = await mailboxes.messages(OWNER)
    await mailboxes.expunge(OWNER, [stored[0].uid, stored[2].uid, "never-was"])
    assert [left.uid for left in await mailboxes.messages(OWNER)] == [stored[1].uid, stored[3].uid]
    with pytest.raises(KeyError):
        await mailboxes.read(OWNER, stored[0].uid)
    await mailboxes.expunge(OWNER, [stored[0].uid])
    assert await mailboxes.used_bytes(OWNER) == 6


async def test_a_full_quota_refuses_messages_until_an_expunge(mailboxes: Mailboxes) -> None:
    assert await mailboxes.append(OWNER, an_id(1), b"x" * 60, 100) is True
    with pytest.raises(MailboxFull):
        await mailboxes.append(OWNER, an_id(2), b"x" * 41, 100)
    with pytest.raises(MessageTooLarge):
        await mailboxes.append(OWNER, an_id(3), b"x" * 101, 100)
    assert await mailboxes.append(OWNER, an_id(4), b"x" * 40, 100) is True
    # A repeated append is no new message, even in a full mailbox.
    assert await mailboxes.append(OWNER, an_id(1), b"x" * 60, 100) is False
    assert await mailboxes.append(OWNER, an_id(1), b"x" * 60, 10) is False
    stored = await mailboxes.messages(OWNER)
    assert len(stored) == 2
    await mailboxes.expunge(OWNER, [stored[0].uid])
    assert await mailboxes.append(OWNER, an_id(2), b"x" * 60, 100) is True  # the refused append was not recorded


async def test_concurrent_appends_of_one_id_make_one_message(mailboxes: Mailboxes) -> None:
    results = await asyncio.gather(*(mailboxes.append(OWNER, an_id(7), CONTENT) for _ in range(12)))
    assert sorted(results) == [False] * 11 + [True]
    assert len(await mailboxes.messages(OWNER)) == 1


async def test_concurrent_appends_to_one_mailbox_are_all_stored(mailboxes: Mailboxes) -> None:
    results = await asyncio.gather(*(mailboxes.append(OWNER, an_id(n), b"%d" % n) for n in range(40)))
    assert all(results)
    stored = await mailboxes.messages(OWNER)
    assert {await mailboxes.read(OWNER, message.uid) for message in stored} == {b"%d" % n for n in range(40)}


async def test_one_session_at_a_time_has_a_mailbox_open(mailboxes: Mailboxes) -> None:
    async with mailboxes.session_lock(OWNER):
        with pytest.raises(MailboxInUse):
            async with mailboxes.session_lock(OWNER):
                pass
        async with mailboxes.session_lock("bob@example.test"):
            pass
        assert await mailboxes.append(OWNER, an_id(1), CONTENT) is True  # mail is delivered during the session
        (stored,) = await mailboxes.messages(OWNER)
        await mailboxes.expunge(OWNER, [stored.uid])
    async with mailboxes.session_lock(OWNER):
        pass


async def test_a_failed_session_releases_the_mailbox(mailboxes: Mailboxes) -> None:
    with pytest.raises(ZeroDivisionError):
        async with mailboxes.session_lock(OWNER):
            raise ZeroDivisionError
    async with mailboxes.session_lock(OWNER):
        pass
