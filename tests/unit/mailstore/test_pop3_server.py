"""The POP3 role over real sockets: Python's own client, and clients that mean no good."""

from __future__ import annotations

import asyncio
import poplib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mail.address import Address
from mail.directory import Domain, Snapshot, User
from mail.directory.static import StaticDirectory
from mail.message import DeliveryId
from mail.service import ServiceError
from mail.settings import MailstoreSettings, NodeSettings
from mail.telemetry import REGISTRY
from mailstore.mailboxes import MailboxUnavailable
from mailstore.maildir import Maildir
from mailstore.memory import MemoryMailboxes
from mailstore.pop3 import server as pop3_server
from mailstore.pop3.server import Pop3

T = TypeVar("T")
OWNER = "alice@example.test"
FIRST = b"Subject: one\r\n\r\n.dot first\r\nplain\r\n..two\r\n.\r\nend\r\n"
SECOND = b"Subject: two\r\nX: y\r\n\r\n" + b"".join(b"line %d\r\n" % n for n in range(40))
LOG_IN = b"USER alice@example.test\r\nPASS secret  word\r\n"


def a_directory() -> StaticDirectory:
    users = {key: User(Address.parse(key)) for key in (OWNER, "bob@example.test")}
    snapshot = Snapshot(domains={"example.test": Domain("example.test", "default")}, users=users)
    return StaticDirectory(snapshot, {OWNER: "secret  word", "bob@example.test": "bobs"})


@asynccontextmanager
async def serving(
    mailboxes: MemoryMailboxes | Maildir, max_connections: int = 50, idle: str = "10m", **more: Any
) -> AsyncIterator[Pop3]:
    settings = MailstoreSettings(pop3="127.0.0.1:0", max_connections=max_connections, idle=idle)  # type: ignore[arg-type]
    arguments: dict[str, Any] = {"failure_delay": timedelta(0), "directory": a_directory(), **more}
    role = Pop3(settings=settings, node=NodeSettings(), mailboxes=mailboxes, **arguments)
    ready, stop = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(role.run(ready.set, stop))
    await asyncio.wait_for(ready.wait(), 10)
    try:
        yield role
    finally:
        stop.set()
        await asyncio.wait_for(running, 10)


@pytest.fixture
async def mailboxes() -> MemoryMailboxes:
    boxes = MemoryMailboxes()
    await boxes.keep(OWNER, DeliveryId("A-0"), FIRST)
    await boxes.keep(OWNER, DeliveryId("B-0"), SECOND)
    return boxes


async def with_poplib(role: Pop3, job: Callable[[poplib.POP3], T]) -> T:
    def run() -> T:
        client = poplib.POP3("127.0.0.1", role.port, timeout=10)
        try:
            return job(client)
        finally:
            client.close()

    return await asyncio.to_thread(run)


async def dial(role: Pop3) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", role.port)


async def all_answers(role: Pop3, said: bytes) -> bytes:
    """Say it all at once and read until the server closes."""
    reader, writer = await dial(role)
    writer.write(said)
    answers = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answers


async def log_in(role: Pop3) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await dial(role)
    writer.write(LOG_IN)
    for _ in range(3):
        assert (await reader.readline()).startswith(b"+OK")
    return reader, writer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize(("name", "octets"), [("1795640000.x.host,W=100", 300_000), ("1795640000.x.host,W=9", 700)])
async def test_a_message_whose_name_understates_its_size_is_sent_whole(tmp_path: Path, name: str, octets: int) -> None:
    boxes = Maildir(tmp_path, "mx.example.test")
    await boxes.keep(OWNER, DeliveryId("A-0"), FIRST)
    body = b"line of text\r\n" * (octets // 14)
    (tmp_path / "example.test" / "alice" / "cur" / f"{name}:2,").write_bytes(b"Subject: f\r\n\r\n" + body)
    async with serving(boxes) as role:
        lines = await with_poplib(role, lambda client: [*_logged_in(client).retr(1)[1], *client.retr(2)[1]])
    assert lines.count(b"line of text") == octets // 14


def _logged_in(client: poplib.POP3) -> poplib.POP3:
    client.user(OWNER)
    client.pass_("secret  word")
    return client


@pytest.mark.parametrize("kind", ["memory", "maildir"])
async def test_poplib_fetches_byte_for_byte_and_deletes_at_quit(kind: str, tmp_path: Path) -> None:
    boxes = MemoryMailboxes() if kind == "memory" else Maildir(tmp_path, "mx.example.test")
    large = b"Subject: large\r\n\r\n" + b"".join(b".%d\r\n" % n for n in range(40_000))
    for number, content in enumerate((FIRST, SECOND, large)):
        await boxes.keep(OWNER, DeliveryId(f"M{number}-0"), content)

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

    async with serving(boxes) as role:
        before = metric("eilpost_pop3_sessions_total", end="quit")
        await with_poplib(role, first_session)
        left = await boxes.messages(OWNER)
        assert [kept.uid for kept in left] == ["M1-0", "M2-0"]
        assert [kept.seen for kept in left] == [True, True]
        await until(lambda: metric("eilpost_pop3_sessions_total", end="quit") == before + 1)
        await until(lambda: metric("eilpost_pop3_connections") == 0)


async def test_a_pipelined_session_is_answered_in_order(mailboxes: MemoryMailboxes) -> None:
    async with serving(mailboxes) as role:
        answers = await all_answers(
            role, b"CAPA\n" + LOG_IN + b"STAT\r\nDELE 1\r\nSTAT\r\nRSET\r\nNOOP\r\nQUIT\r\nSTAT\r\n"
        )
        size = len(FIRST) + len(SECOND)
        assert answers.endswith(
            b"+OK 2 %d\r\n+OK message 1 will be removed at QUIT\r\n+OK 1 %d\r\n+OK 2 messages\r\n+OK\r\n+OK bye\r\n"
            % (size, len(SECOND))
        )
        assert len(await mailboxes.messages(OWNER)) == 2


@pytest.mark.parametrize("goodbye", ["close", "abort", "half"])
async def test_a_dropped_connection_deletes_nothing(mailboxes: MemoryMailboxes, goodbye: str) -> None:
    async with serving(mailboxes) as role:
        reader, writer = await log_in(role)
        writer.write(b"DELE 1\r\nDELE 2\r\nRETR 1\r\n")
        await reader.readline()
        match goodbye:
            case "close":
                writer.close()
            case "abort":
                writer.transport.abort()
            case "half":
                writer.write_eof()
        await until(lambda: not mailboxes.reserved)
        assert len(await mailboxes.messages(OWNER)) == 2
        writer.close()


async def test_who_says_quit_and_hangs_up_has_quit(mailboxes: MemoryMailboxes) -> None:
    async with serving(mailboxes) as role:
        _reader, writer = await log_in(role)
        writer.write(b"DELE 1\r\nQUIT\r\n")
        writer.close()
        await until(lambda: not mailboxes.reserved)
        assert [kept.uid for kept in await mailboxes.messages(OWNER)] == ["B-0"]


async def test_the_mailbox_is_locked_and_the_session_sees_a_snapshot(mailboxes: MemoryMailboxes) -> None:
    async with serving(mailboxes) as role:
        reader, writer = await log_in(role)
        assert b"-ERR [IN-USE]" in await all_answers(role, LOG_IN + b"QUIT\r\n")
        assert b"+OK 0 messages" in await all_answers(role, b"USER bob@example.test\r\nPASS bobs\r\nQUIT\r\n")
        await mailboxes.keep(OWNER, DeliveryId("C-0"), b"new\r\n")
        await mailboxes.expunge(OWNER, ["A-0"])
        writer.write(b"STAT\r\nRETR 1\r\nRETR 3\r\nRETR 2\r\n")
        assert (await reader.readline()) == b"+OK 2 %d\r\n" % (len(FIRST) + len(SECOND))
        assert (await reader.readline()).startswith(b"-ERR [SYS/PERM]")  # another program removed it
        assert (await reader.readline()).startswith(b"-ERR no such")
        assert (await reader.readline()).startswith(b"+OK")
        writer.write(b"QUIT\r\n")
        await reader.read()
        writer.close()
        await until(lambda: not mailboxes.reserved)
        assert b"+OK 2 messages" in await all_answers(role, LOG_IN + b"QUIT\r\n")


@pytest.mark.parametrize("end", [b"QUIT\r\n", b""])
async def test_two_servers_of_one_maildir_share_the_lock(tmp_path: Path, end: bytes) -> None:
    """RFC 1939 section 4: whatever process serves the mailbox. A user without mail has one too."""
    async with serving(Maildir(tmp_path, "mx.one.test")) as one, serving(Maildir(tmp_path, "mx.two.test")) as two:
        _reader, writer = await log_in(one)
        for role in (one, two):
            assert b"-ERR [IN-USE]" in await all_answers(role, LOG_IN + b"QUIT\r\n")
        writer.write(end)
        writer.close()
        await until(lambda: not one._connections)
        assert b"+OK 0 messages" in await all_answers(two, LOG_IN + b"QUIT\r\n")


async def test_wrong_users_and_wrong_passwords_look_alike_and_three_are_enough(mailboxes: MemoryMailboxes) -> None:
    async with serving(mailboxes) as role:
        before = metric("eilpost_auth_total", service="pop3", result="wrong")
        wrong = await all_answers(role, b"USER alice@example.test\r\nPASS no\r\n" * 4)
        unknown = await all_answers(role, b"USER nobody@example.test\r\nPASS no\r\n" * 4)
        assert wrong == unknown
        assert wrong.count(b"-ERR [AUTH]") == 3
        assert metric("eilpost_auth_total", service="pop3", result="wrong") == before + 6


async def test_a_wrong_password_costs_time(mailboxes: MemoryMailboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float, result: Any = None) -> Any:
        slept.append(seconds)
        return await real(0, result)

    async with serving(mailboxes, failure_delay=timedelta(seconds=2)) as role:
        monkeypatch.setattr(pop3_server.asyncio, "sleep", sleep)
        await all_answers(role, b"USER alice@example.test\r\nPASS no\r\n" * 3)
        monkeypatch.undo()
    assert slept == [2.0] * 3


async def test_a_directory_or_a_store_that_is_down_is_a_temporary_error(mailboxes: MemoryMailboxes) -> None:
    directory = a_directory()
    async with serving(mailboxes, directory=directory) as role:
        directory.is_down = True
        assert b"-ERR [SYS/TEMP]" in await all_answers(role, LOG_IN + b"QUIT\r\n")
        directory.is_down = False
        role.mailboxes = BrokenMailboxes(mailboxes, breaks="messages")
        assert b"-ERR [SYS/TEMP]" in await all_answers(role, LOG_IN + b"QUIT\r\n")
        assert not mailboxes.reserved
        role.mailboxes = BrokenMailboxes(mailboxes, breaks="expunge")
        assert (await all_answers(role, LOG_IN + b"DELE 1\r\nQUIT\r\n")).endswith(
            b"-ERR [SYS/TEMP] some messages were not removed\r\n"
        )
        role.mailboxes = BrokenMailboxes(mailboxes, breaks="mark_seen")
        answers = await all_answers(role, LOG_IN + b"RETR 1\r\nDELE 2\r\nQUIT\r\n")
        assert answers.endswith(b"+OK bye\r\n")  # what it asked for has been done
        assert [kept.uid for kept in await mailboxes.messages(OWNER)] == ["A-0"]
        role.mailboxes = BrokenMailboxes(mailboxes, breaks="read")
        answers = await all_answers(role, LOG_IN + b"RETR 1\r\nNOOP\r\nQUIT\r\n")
        assert answers.endswith(b"-ERR [SYS/TEMP] the message cannot be read now\r\n+OK\r\n+OK bye\r\n")


class BrokenMailboxes(MemoryMailboxes):
    """A store in which one call fails, from its `good`-th time on."""

    def __init__(self, whole: MemoryMailboxes, breaks: str, good: int = 0) -> None:
        self._mailboxes, self.reserved = whole._mailboxes, whole.reserved
        self._good = good
        real = getattr(self, breaks)

        async def broken(*arguments: Any) -> Any:
            self._good -= 1
            if self._good < 0:
                raise MailboxUnavailable("the disk is gone")
            return await real(*arguments)

        setattr(self, breaks, broken)


async def test_a_message_that_breaks_off_is_never_ended_with_a_dot(mailboxes: MemoryMailboxes) -> None:
    await mailboxes.keep(OWNER, DeliveryId("C-0"), b"line\r\n" * 100_000)
    async with serving(mailboxes) as role:
        role.mailboxes = BrokenMailboxes(mailboxes, breaks="read", good=2)
        reader, writer = await log_in(role)
        writer.write(b"RETR 3\r\n")
        received = b""
        try:
            while data := await asyncio.wait_for(reader.read(65536), 10):
                received += data
        except ConnectionResetError:
            pass
        assert not received.endswith(b"\r\n.\r\n")
        assert len(received) < 600_000
        writer.close()


async def test_over_clear_text_from_elsewhere_no_password_reaches_the_directory(
    mailboxes: MemoryMailboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pop3_server, "_is_loopback", lambda _ip: False)
    async with serving(mailboxes) as role:
        answers = await all_answers(role, LOG_IN + b"AUTH PLAIN AGEAYg==\r\nQUIT\r\n")
        assert answers.count(b"-ERR [AUTH]") == 3


@pytest.mark.parametrize(
    ("ip", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("192.0.2.1", False),
     ("::ffff:192.0.2.1", False), ("fe80::1%lo", False), ("2001:db8::1", False), ("", False)],
)  # fmt: skip
def test_what_loopback_is(ip: str, loopback: bool) -> None:
    assert pop3_server._is_loopback(ip) is loopback


# Hostile clients


async def test_garbage_long_lines_and_silence_before_a_good_session(mailboxes: MemoryMailboxes) -> None:
    async with serving(mailboxes) as role:
        garbage = await all_answers(role, bytes(range(256)) * 200 + b"\r\n" * 30)
        assert garbage.startswith(b"+OK")
        assert garbage.count(b"-ERR") == 20
        long_line = await all_answers(role, b"USER " + b"a" * 200_000 + b"\r\n" + LOG_IN + b"QUIT\r\n")
        assert b"-ERR line too long\r\n+OK\r\n+OK 2 messages" in long_line


async def test_a_silent_client_is_logged_out_however_it_drips(mailboxes: MemoryMailboxes) -> None:
    async with serving(mailboxes, idle="200ms") as role:
        reader, writer = await log_in(role)
        writer.write(b"DELE 1\r\n")
        await reader.readline()

        async def drip() -> None:
            while True:
                writer.write(b"N")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert await asyncio.wait_for(reader.read(), 10) == b""
        dripping.cancel()
        writer.close()
        await until(lambda: not mailboxes.reserved)
        assert len(await mailboxes.messages(OWNER)) == 2


async def test_a_client_that_never_reads_holds_a_slice_and_is_cut_off(tmp_path: Path) -> None:
    boxes = Maildir(tmp_path, "mx.example.test")
    await boxes.keep(OWNER, DeliveryId("A-0"), b"x" * 70 + b"\r\n" + b"y" * 30_000_000 + b"\r\n")
    before = metric("eilpost_pop3_sessions_total", end="slow")
    async with serving(boxes, write_timeout=timedelta(seconds=0.3)) as role:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", role.port))
        await loop.sock_sendall(client, LOG_IN + b"RETR 1\r\n" * 10)
        buffered = 0
        async with asyncio.timeout(10):
            while metric("eilpost_pop3_sessions_total", end="slow") == before:
                for connection in role._connections.values():
                    buffered = max(buffered, connection._writer.transport.get_write_buffer_size())
                await asyncio.sleep(0.005)
        assert 0 < buffered <= 2 * pop3_server.SLICE_OCTETS + 100
        async with boxes.reserve(OWNER):
            client.close()


async def test_too_many_connections_are_turned_away(mailboxes: MemoryMailboxes) -> None:
    async with serving(mailboxes, max_connections=2) as role:
        held = [await dial(role) for _ in range(2)]
        for reader, _writer in held:
            await reader.readline()
        assert (await all_answers(role, b"")).startswith(b"-ERR [SYS/TEMP] too many connections")
        held[0][1].write(b"QUIT\r\n")
        await held[0][0].read()
        await until(lambda: len(role._connections) < 2)
        assert (await all_answers(role, b"QUIT\r\n")).startswith(b"+OK eilpost")
        for _reader, writer in held:
            writer.close()


async def test_one_client_cannot_hold_all_connections_without_a_log_in(
    mailboxes: MemoryMailboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(mailboxes) as role:
        reader, writer = await log_in(role)  # who has logged in does not count
        monkeypatch.setattr(pop3_server, "_is_loopback", lambda _ip: False)
        monkeypatch.setattr(pop3_server, "MAX_STRANGERS_PER_CLIENT", 3)
        held = [await dial(role) for _ in range(3)]
        for stranger, _writer in held:
            assert (await stranger.readline()).startswith(b"+OK")
        assert (await all_answers(role, b"")).startswith(b"-ERR [SYS/TEMP] too many connections")
        writer.write(b"NOOP\r\n")
        assert await reader.readline() == b"+OK\r\n"
        for _reader, other in [*held, (reader, writer)]:
            other.close()


# Starting and stopping


async def test_a_port_in_use_names_the_role(mailboxes: MemoryMailboxes) -> None:
    async with serving(mailboxes) as role:
        settings = MailstoreSettings(pop3=f"127.0.0.1:{role.port}")
        second = Pop3(settings=settings, node=NodeSettings(), mailboxes=mailboxes, directory=a_directory())
        with pytest.raises(ServiceError, match=rf"^mailstore\.pop3: cannot listen on 127\.0\.0\.1:{role.port}: "):
            await second.run(lambda: None, asyncio.Event())


@pytest.mark.parametrize("bad", ["nonsense", "127.0.0.1", "127.0.0.1:99999"])
async def test_an_address_that_is_none_names_the_key(mailboxes: MemoryMailboxes, bad: str) -> None:
    role = Pop3(settings=MailstoreSettings(pop3=bad), node=NodeSettings(), mailboxes=mailboxes, directory=a_directory())
    with pytest.raises(ServiceError, match=r"mailstore\.pop3"):
        await role.run(lambda: None, asyncio.Event())


async def test_an_empty_address_is_not_served(mailboxes: MemoryMailboxes) -> None:
    role = Pop3(settings=MailstoreSettings(pop3=""), node=NodeSettings(), mailboxes=mailboxes, directory=a_directory())
    stop = asyncio.Event()
    await asyncio.wait_for(role.run(stop.set, stop), 5)


async def test_stopping_ends_idle_sessions_at_once_and_lets_a_transfer_finish(mailboxes: MemoryMailboxes) -> None:
    await mailboxes.keep(OWNER, DeliveryId("C-0"), b"line\r\n" * 2_000_000)
    settings = MailstoreSettings(pop3="127.0.0.1:0")
    role = Pop3(settings=settings, node=NodeSettings(), mailboxes=mailboxes, directory=a_directory())
    ready, stop = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(role.run(ready.set, stop))
    await ready.wait()
    idle_reader, idle_writer = await dial(role)
    await idle_reader.readline()
    reader, writer = await log_in(role)
    writer.write(b"RETR 3\r\nSTAT\r\n")
    await reader.readline()
    stop.set()
    assert await asyncio.wait_for(idle_reader.read(), 5) == b""
    rest = await asyncio.wait_for(reader.read(), 20)
    assert len(rest) == 12_000_000 + 3
    assert rest.endswith(b"line\r\n.\r\n")  # and no answer to STAT
    await asyncio.wait_for(running, 10)
    with pytest.raises(OSError, match="onnect"):
        await dial(role)
    idle_writer.close()
    writer.close()
