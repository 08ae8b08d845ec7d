"""The POP3 role over sockets: Python's poplib, session locks, start and shutdown."""

from __future__ import annotations

import asyncio
import poplib
from pathlib import Path

import pytest

from mail.message import DeliveryId
from mail.service import ServiceError
from mail.settings import NodeSettings
from mail.settings_roles import MailstoreSettings
from mailstore.maildir import Maildir
from mailstore.memory import MemoryMailboxes
from mailstore.pop3.server import Pop3Server
from tests.support.clients.pop3 import (
    FIRST,
    LOG_IN,
    OWNER,
    SECOND,
    connect,
    exchange,
    log_in,
    make_directory,
    metric,
    running_pop3,
    with_poplib,
)
from tests.support.servers.ports import wait_until


@pytest.mark.parametrize(("name", "octets"), [("1795640000.x.host,W=100", 300_000), ("1795640000.x.host,W=9", 700)])
async def test_message_larger_than_its_name_claims_is_sent_completely(tmp_path: Path, name: str, octets: int) -> None:
    mailboxes = Maildir(tmp_path, "mx.example.test")
    await mailboxes.append(OWNER, DeliveryId("A-0"), FIRST)
    body = b"line of text\r\n" * (octets // 14)
    (tmp_path / "example.test" / "alice" / "cur" / f"{name}:2,").write_bytes(b"Subject: f\r\n\r\n" + body)
    async with running_pop3(mailboxes) as role:
        lines = await with_poplib(role, lambda client: [*_logged_in(client).retr(1)[1], *client.retr(2)[1]])
    assert lines.count(b"line of text") == octets // 14


def _logged_in(client: poplib.POP3) -> poplib.POP3:
    client.user(OWNER)
    client.pass_("secret  word")
    return client


@pytest.mark.parametrize("kind", ["memory", "maildir"])
async def test_poplib_retrieves_identical_content_and_deletes_at_quit(kind: str, tmp_path: Path) -> None:
    mailboxes = MemoryMailboxes() if kind == "memory" else Maildir(tmp_path, "mx.example.test")
    large = b"Subject: large\r\n\r\n" + b"".join(b".%d\r\n" % n for n in range(40_000))
    for number, content in enumerate((FIRST, SECOND, large)):
        await mailboxes.append(OWNER, DeliveryId(f"M{number}-0"), content)

    def first_session(client: poplib.POP3) -> None:
        client.user(OWNER)
        client.pass_("secret  word")
        assert client.stat() == (3, len(FIRST) + len(SECOND) + len(large))
        for number, content in enumerate((FIRST, SECOND, large), 1):
            _answer, lines, _octets = client.retr(number)
            assert b"".join(line + b"\r\n" for line in lines) == content
            assert client.list(number) == b"+OK %d %d" % (number, len(content))
        assert client.top(2, 2)[1] == [b"Subject: two", b"X: y", b"", b"line 0", b"line 1"]
        assert client.uidl()[1] == [b"1 M0-0", b"2 M1-0", b"3 M2-0"]
        assert "PIPELINING" in client.capa()
        client.dele(1)
        client.quit()

    async with running_pop3(mailboxes) as role:
        before = metric("eilpost_pop3_sessions_total", end="quit")
        messages, octets = (metric(f"eilpost_pop3_retrieved_{unit}_total") for unit in ("messages", "bytes"))
        await with_poplib(role, first_session)
        assert metric("eilpost_pop3_retrieved_messages_total") - messages == 3  # TOP does not count
        total = len(FIRST) + len(SECOND) + len(large)
        assert metric("eilpost_pop3_retrieved_bytes_total") - octets >= total
        left = await mailboxes.messages(OWNER)
        assert [stored.uid for stored in left] == ["M1-0", "M2-0"]
        assert [stored.seen for stored in left] == [True, True]
        await wait_until(lambda: metric("eilpost_pop3_sessions_total", end="quit") == before + 1)
        await wait_until(lambda: metric("eilpost_pop3_connections") == 0)


async def test_pipelined_commands_get_replies_in_order(mailboxes: MemoryMailboxes) -> None:
    async with running_pop3(mailboxes) as role:
        answers = await exchange(
            role, b"CAPA\n" + LOG_IN + b"STAT\r\nDELE 1\r\nSTAT\r\nRSET\r\nNOOP\r\nQUIT\r\nSTAT\r\n"
        )
        size = len(FIRST) + len(SECOND)
        assert answers.endswith(
            b"+OK 2 %d\r\n+OK message 1 marked for deletion\r\n+OK 1 %d\r\n+OK 2 messages\r\n+OK\r\n+OK bye\r\n"
            % (size, len(SECOND))
        )
        assert len(await mailboxes.messages(OWNER)) == 2


async def test_session_locks_the_mailbox_and_sees_a_snapshot(mailboxes: MemoryMailboxes) -> None:
    async with running_pop3(mailboxes) as role:
        reader, writer = await log_in(role)
        assert b"-ERR [IN-USE]" in await exchange(role, LOG_IN + b"QUIT\r\n")
        assert b"+OK 0 messages" in await exchange(role, b"USER bob@example.test\r\nPASS bobs\r\nQUIT\r\n")
        await mailboxes.append(OWNER, DeliveryId("C-0"), b"new\r\n")
        await mailboxes.expunge(OWNER, ["A-0"])
        writer.write(b"STAT\r\nRETR 1\r\nRETR 3\r\nRETR 2\r\n")
        assert (await reader.readline()) == b"+OK 2 %d\r\n" % (len(FIRST) + len(SECOND))
        assert (await reader.readline()).startswith(b"-ERR [SYS/PERM]")  # removed by another program
        assert (await reader.readline()).startswith(b"-ERR no such")
        assert (await reader.readline()).startswith(b"+OK")
        writer.write(b"QUIT\r\n")
        await reader.read()
        writer.close()
        await wait_until(lambda: not mailboxes.locked)
        assert b"+OK 2 messages" in await exchange(role, LOG_IN + b"QUIT\r\n")


@pytest.mark.parametrize("end", [b"QUIT\r\n", b""])
async def test_two_servers_of_one_maildir_share_the_session_lock(tmp_path: Path, end: bytes) -> None:
    """RFC 1939 section 4: the lock is shared by all processes, also for a mailbox without messages."""
    async with (
        running_pop3(Maildir(tmp_path, "mx.one.test")) as first,
        running_pop3(Maildir(tmp_path, "mx.two.test")) as second,
    ):
        _reader, writer = await log_in(first)
        for role in (first, second):
            assert b"-ERR [IN-USE]" in await exchange(role, LOG_IN + b"QUIT\r\n")
        writer.write(end)
        writer.close()
        await wait_until(lambda: metric("eilpost_pop3_connections") == 0)
        assert b"+OK 0 messages" in await exchange(second, LOG_IN + b"QUIT\r\n")


async def test_port_in_use_names_the_setting(mailboxes: MemoryMailboxes) -> None:
    async with running_pop3(mailboxes) as role:
        settings = MailstoreSettings(pop3_listen=f"127.0.0.1:{role.port}")
        second = Pop3Server(settings=settings, node=NodeSettings(), mailboxes=mailboxes, directory=make_directory())
        with pytest.raises(ServiceError, match=rf"^mailstore\.pop3_listen: cannot listen on 127.0.0.1:{role.port}: "):
            await second.run(lambda: None, asyncio.Event())


@pytest.mark.parametrize("bad", ["nonsense", "127.0.0.1", "127.0.0.1:99999"])
async def test_invalid_address_names_the_setting(mailboxes: MemoryMailboxes, bad: str) -> None:
    role = Pop3Server(
        settings=MailstoreSettings(pop3_listen=bad),
        node=NodeSettings(),
        mailboxes=mailboxes,
        directory=make_directory(),
    )
    with pytest.raises(ServiceError, match=r"mailstore\.pop3_listen"):
        await role.run(lambda: None, asyncio.Event())


async def test_empty_address_disables_pop3(mailboxes: MemoryMailboxes) -> None:
    role = Pop3Server(
        settings=MailstoreSettings(pop3_listen=""), node=NodeSettings(), mailboxes=mailboxes, directory=make_directory()
    )
    stop = asyncio.Event()
    await asyncio.wait_for(role.run(stop.set, stop), 5)


async def test_shutdown_ends_idle_sessions_and_finishes_a_transfer(mailboxes: MemoryMailboxes) -> None:
    await mailboxes.append(OWNER, DeliveryId("C-0"), b"line\r\n" * 2_000_000)
    settings = MailstoreSettings(pop3_listen="127.0.0.1:0")
    role = Pop3Server(settings=settings, node=NodeSettings(), mailboxes=mailboxes, directory=make_directory())
    ready, stop = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(role.run(ready.set, stop))
    await ready.wait()
    idle_reader, idle_writer = await connect(role)
    await idle_reader.readline()
    reader, writer = await log_in(role)
    writer.write(b"RETR 3\r\nSTAT\r\n")
    await reader.readline()
    stop.set()
    assert await asyncio.wait_for(idle_reader.read(), 5) == b""
    rest = await asyncio.wait_for(reader.read(), 20)
    assert len(rest) == 12_000_000 + 3
    assert rest.endswith(b"line\r\n.\r\n")  # no reply to STAT
    await asyncio.wait_for(running, 10)
    with pytest.raises(OSError, match="onnect"):
        await connect(role)
    idle_writer.close()
    writer.close()
