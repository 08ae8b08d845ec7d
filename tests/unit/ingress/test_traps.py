"""The traps of FIELD.md ("aiosmtpd 1.4.6"), one test each, and what clients do that go away."""

from __future__ import annotations

import ast
import asyncio
import inspect
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP

from ingress.session import SmtpSession
from mail.log import Down
from mail.service import ServiceError
from mail.settings import NodeSettings
from mail.spool import SpoolUnavailable
from tests.support.ingressing import Client, Running, running


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def test_what_we_override_is_still_there() -> None:
    """We replace these by name; a new aiosmtpd that renames one would silently bring its own back."""
    for name in ("_handle_client", "_reset_timeout", "_timeout_cb", "eof_received", "connection_lost", "push"):
        assert name in vars(SMTP), name
        assert name in vars(SmtpSession), name


async def test_a_connection_inspects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("getfqdn was called"))
    async with running() as world:
        client = await world.connect()
        await client.reply()
        (session,) = world.ingress._sessions
        assert dir(session) == []
        assert session._smtp_methods == {}


async def test_an_exception_is_a_generic_451_and_a_clean_slate() -> None:
    async with running() as world:
        client = await world.connect()
        await client.begin()
        world.log.error = ValueError("secret\r\n250 2.0.0 injected")
        assert await client.say("Subject: x\r\n\r\n.") == "451 4.3.0 Local error, try again later"
        assert await client.say("RCPT TO:<bob@example.test>") == "503 5.5.1 MAIL is needed first"
        world.log.error = None
        assert (await client.say("MAIL FROM:<>")).startswith("250")
        assert world.ingress._meter.used_bytes == 0


@pytest.mark.parametrize("goodbye", ["half-close", "close", "reset"])
async def test_a_client_that_goes_during_the_append_does_not_undo_it(goodbye: str) -> None:
    async with running() as world:
        client = await world.connect()
        await client.begin()
        world.log.gate.clear()
        client.send(b"Subject: x\r\n\r\nbody\r\n.\r\n")
        await asyncio.wait_for(world.log.waiting.wait(), 10)
        if goodbye == "half-close":
            client.writer.write_eof()
        elif goodbye == "close":
            client.writer.close()
        else:
            client.writer.transport.abort()
        await asyncio.sleep(0.05)
        world.log.gate.set()
        await until(lambda: world.log.accepted)
        if goodbye == "half-close":
            assert (await client.rest()).startswith(b"250 2.0.0 Ok: queued as ")
        await until(lambda: not world.ingress._sessions)
        assert world.body() == b"Subject: x\r\n\r\nbody\r\n"
        assert world.ingress._meter.used_bytes == 0


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"EH",
        b"EHLO x\r\nMAIL FROM:<>\r\n",
        b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n",
        b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nSubject: x\r\n\r\nhalf\r\n.",
    ],
)
@pytest.mark.parametrize("abort", [False, True])
async def test_a_client_that_goes_before_the_dot_leaves_nothing(said: bytes, abort: bool) -> None:
    async with running() as world:
        client = await world.connect()
        client.send(said)
        await asyncio.sleep(0.02)
        if abort:
            client.writer.transport.abort()
        else:
            client.writer.close()
        await until(lambda: not world.ingress._sessions)
        assert world.log.accepted == []
        assert world.ingress._meter.used_bytes == 0
        assert world.ingress._door.crowd.total == 0


async def test_all_at_once_and_a_half_close() -> None:
    """`printf ... | nc -N`: every command in one packet, then no more."""
    async with running() as world:
        client = await world.connect()
        client.send(
            b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nSubject: 1\r\n\r\n.\r\n"
            b"MAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nSubject: 2\r\n\r\n.\r\nQUIT\r\n"
        )
        client.writer.write_eof()
        assert (await client.rest()).endswith(b"221 2.0.0 Bye\r\n")
        assert [world.body(number) for number in range(2)] == [b"Subject: 1\r\n\r\n", b"Subject: 2\r\n\r\n"]


async def test_the_timer_is_per_part_of_data() -> None:
    async with running(data_timeout="60s") as world:
        client = await world.connect()
        await client.begin()
        (session,) = world.ingress._sessions
        for _ in range(3):
            before = session._deadline
            client.send(b"slow line\r\n")
            await until(lambda before=before: session._deadline > before)
        session._deadline = session.loop.time()  # silence from here on
        session._timeout_cb()
        assert await client.reply() == "421 4.4.2 Timed out"


async def test_a_sender_of_a_byte_now_and_then_does_not_stay_for_ever() -> None:
    async with running(data_timeout="60s") as world:
        client = await world.connect()
        await client.begin()
        (session,) = world.ingress._sessions
        session._content_began -= 601.0  # ten times the time-out ago
        client.send(b"x")
        assert await client.reply() == "421 4.4.2 Timed out"
        assert world.log.accepted == []


async def test_a_connection_error_of_the_log_is_not_the_clients() -> None:
    async with running() as world:
        client = await world.connect()
        await client.begin()
        world.log.error = ConnectionResetError("broker")
        assert (await client.say(".")).startswith("451 4.3.0")
        assert (await client.say("NOOP")).startswith("250")


@pytest.mark.parametrize("in_data", [False, True])
async def test_silence_is_421(in_data: bool) -> None:
    async with running(data_timeout="100ms", command_timeout="30s" if in_data else "100ms") as world:
        client = await world.connect()
        if in_data:
            await client.begin()
            client.send(b"half a line")
        else:
            await client.reply()
        assert await client.reply() == "421 4.4.2 Timed out"
        assert await client.rest() == b""
        assert world.log.accepted == []


async def test_bytes_without_a_line_end_do_not_move_the_command_timer() -> None:
    async with running() as world:
        client = await world.connect()
        await client.reply()
        await client.say("NOOP")
        (session,) = world.ingress._sessions
        before = session._deadline
        for octets in (b"NO", b"OP" * 2000):
            client.send(octets)
            await client.writer.drain()
        await until(lambda: session.intake._overlong)
        assert session._deadline == before
        assert await client.say("") == "500 5.5.2 Line too long"
        assert session._deadline > before


async def test_oversize_lines_are_refused_and_the_session_goes_on() -> None:
    async with running() as world:
        client = await world.connect()
        await client.reply()
        for line in ("NOOP " + "x" * 506, "NOOP " + "x" * 5000, "x" * 500_000):
            assert await client.say(line) == "500 5.5.2 Line too long", len(line)
        assert await client.say("NOOP " + "x" * 505) == "250 2.0.0 Ok"
        assert (await client.say("EHLO x")).endswith("SMTPUTF8")
        local = "a" * 64
        long_mail = (
            f"MAIL FROM:<@{'r' * 60}.{'r' * 60}.{'r' * 60}.test:{local}@catch.test> SIZE=1000 BODY=8BITMIME SMTPUTF8"
        )
        assert len(long_mail) < 565
        assert (await client.say(long_mail)).startswith("250")


async def test_long_lines_in_content_are_taken() -> None:
    async with running() as world:
        client = await world.connect()
        await client.begin()
        content = b"Subject: x\r\n\r\n" + b"y" * 300_000 + b"\r\n"
        client.send(content + b".\r\n")
        assert (await client.reply()).startswith("250")
        assert world.body() == content
        assert len(world.spool.kept) == 1  # more than spool.inline_max


async def test_replies_to_pipelined_commands_leave_in_one_write() -> None:
    async with running() as world:
        client = await world.connect()
        await client.reply()
        client.send(b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nRCPT TO:<x@example.test>\r\nNOOP\r\n")
        first = await client.reader.read(65536)
        assert first.endswith(b"550 5.1.1 <x@example.test>: no such user here\r\n250 2.0.0 Ok\r\n")


async def test_too_large_is_drained_and_the_session_goes_on() -> None:
    async with running(max_size="100KiB") as world:
        client = await world.connect()
        await client.begin()
        for _ in range(40):
            client.send(b"x" * 9_998 + b"\r\n")
        assert await client.say(".") == "552 5.3.4 Message is too large"
        assert (await client.say("MAIL FROM:<>")).startswith("250")
        assert world.log.accepted == []


@pytest.mark.parametrize(("octets", "code"), [(307_200, "250"), (307_201, "552")])
async def test_the_size_limit_counts_what_is_stored(octets: int, code: str) -> None:
    async with running(max_size="300KiB") as world:
        client = await world.connect()
        await client.begin()
        content = b"Subject: x\r\n\r\n" + b".\r\n" * 99_900  # 399.6 kB on the wire
        content += b"y" * (octets - len(content) - 2) + b"\r\n"
        assert len(content) == octets
        client.send(content.replace(b"\r\n.", b"\r\n..") + b".\r\n")  # dots on the wire do not count
        assert (await client.reply()).startswith(code)
        assert [world.body(number) for number in range(len(world.log.accepted))] == [content] * (code == "250")


async def test_dns_is_asked_for_strangers_domains_only() -> None:
    async with running() as world:
        client = await world.connect()
        await client.reply()
        await client.say("HELO x")
        for sender in ("", "alice@example.test", "x@catch.test", "x@relayed.test", "x@[192.0.2.1]", "x@good.test"):
            assert (await client.say(f"MAIL FROM:<{sender}>")).startswith("250"), sender
            await client.say("RSET")
        assert set(world.resolver.asked) == {"good.test"}


async def test_content_beyond_the_cap_of_all_sessions_is_452() -> None:
    async with running(bytes_in_flight="64KiB") as world:
        first, second = await world.connect(), await world.connect()
        await first.begin()
        await second.begin()
        first.send(b"x" * 40_000 + b"\r\n")
        await until(lambda: world.ingress._meter.used_bytes >= 40_000)
        second.send(b"x" * 40_000 + b"\r\n")
        assert await second.say(".") == "452 4.3.1 Insufficient system storage, try again later"
        assert (await first.say(".")).startswith("250")
        assert world.ingress._meter.used_bytes == 0


async def test_the_spool_out_of_order_is_our_fault() -> None:
    async with running() as world:
        world.spool.error = SpoolUnavailable("disk full")
        client = await world.connect()
        await client.begin()
        client.send(b"x" * 300_000 + b"\r\n")
        assert (await client.say(".")).startswith("451 4.3.0 Local error")
        assert world.log.accepted == []


async def test_the_log_going_down_is_421_at_mail() -> None:
    async with running() as world:
        client = await world.connect()
        await client.reply()
        await client.say("HELO x")
        world.log.now = Down("test")
        assert (await client.say("MAIL FROM:<>")).startswith("421 4.3.2")
        assert await client.rest() == b""


async def test_connection_limits() -> None:
    async with running(max_connections=2) as world:
        kept = [await world.connect() for _ in range(2)]
        assert [(await one.reply())[:3] for one in kept] == ["220", "220"]
        assert (await (await world.connect()).reply()).startswith("421 4.7.0")
        await kept[0].say("QUIT")
        await until(lambda: world.ingress._door.crowd.total == 1)
        assert (await (await world.connect()).reply()).startswith("220")
    async with running(max_connections_per_client=1, relay_networks=[]) as world:
        assert (await (await world.connect()).reply()).startswith("220")
        assert (await (await world.connect()).reply()).startswith("421 4.7.0")


async def test_too_many_recipients_is_452_and_the_rest_is_taken() -> None:
    async with running(max_recipients=100) as world:
        client = await world.connect()
        await client.reply()
        await client.say("EHLO x")
        await client.say("MAIL FROM:<>")
        answers = [(await client.say(f"RCPT TO:<u{number}@catch.test>"))[:9] for number in range(101)]
        assert answers == ["250 2.1.5"] * 100 + ["452 4.5.3"]
        assert (await client.say("RCPT TO:<u1@catch.test>")).startswith("250")  # already among them
        await client.say("DATA")
        assert (await client.say(".")).startswith("250")
        assert len(world.log.accepted[0].message.envelope.recipients) == 100


async def test_a_loop_is_554() -> None:
    async with running(max_hops=3) as world:
        client = await world.connect()
        for hops, code in ((3, "250 2.0.0"), (4, "554 5.4.6")):
            if hops == 3:
                await client.begin()
            else:
                for command in ("MAIL FROM:<>", "RCPT TO:<bob@example.test>", "DATA"):
                    await client.say(command)
            client.send(b"ReCeived: from x\r\n\tby y\r\n" * hops + b"\r\nReceived: in the body\r\n.\r\n")
            assert (await client.reply()).startswith(code)


async def test_draining_says_421_to_the_idle_and_finishes_the_busy() -> None:
    world = Running(node=NodeSettings(hostname="mx.example.test", drain="20s"))
    await world.start()
    idle, busy = await world.connect(), await world.connect()
    await idle.reply()
    await busy.begin()
    world.stop.set()
    assert await idle.reply() == "421 4.3.2 Shutting down, try again later"
    assert await idle.rest() == b""
    assert (await busy.say("Subject: x\r\n\r\n.")).startswith("250 ")
    assert await busy.reply() == "421 4.3.2 Shutting down, try again later"
    await world.close()
    assert len(world.log.accepted) == 1


async def test_draining_leaves_a_moment_for_the_quit_that_is_on_its_way() -> None:
    """Python's smtplib takes a 421 in place of the 221 for a failure, and its caller sends again what had its 250."""
    world = Running(node=NodeSettings(hostname="mx.example.test", drain="20s"))
    await world.start()
    done, busy = await world.connect(), await world.connect()
    await done.begin()
    assert (await done.say("Subject: x\r\n\r\n.")).startswith("250 ")
    await busy.begin()
    world.stop.set()
    await asyncio.sleep(0.1)
    assert (await done.say("QUIT")).startswith("221 ")
    await asyncio.sleep(0.7)
    assert (await busy.say("Subject: x\r\n\r\n.")).startswith("250 ")
    assert (await busy.say("QUIT")).startswith("221 ")
    await world.close()


async def test_draining_cuts_who_never_ends() -> None:
    world = Running(node=NodeSettings(hostname="mx.example.test", drain="100ms"))
    await world.start()
    client = await world.connect()
    await client.begin()
    client.send(b"Subject: x\r\n")
    await asyncio.wait_for(world.close(), 10)
    assert await client.rest() == b"421 4.3.2 Shutting down, try again later\r\n"
    assert world.log.accepted == []
    assert world.ingress._sessions == set()


_MANY = 30_000


async def _deaf(world: Running) -> tuple[Client, SmtpSession]:
    """A client in a transaction that sends more than we hold and does not read, and its session, stopped by that."""
    client = await world.connect()
    await client.reply()
    await client.say("EHLO client.test")
    await client.say("MAIL FROM:<alice@example.test>")
    (session,) = world.ingress._sessions
    assert session._pipe is not None
    session._pipe.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.writer.transport.pause_reading()
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(_MANY // 1000):
        client.send(b"RCPT TO:<bob@example.test>\r\n" * 1000)
    await until(lambda: session._pipe is not None and session._pipe.get_write_buffer_size())
    await until(lambda: session._reading_is_paused)
    return client, session


async def test_a_client_that_reads_late_gets_every_reply() -> None:
    """Asyncio's own `_paused` speaks of writing: a name of ours like it would stop the session for ever."""
    async with running() as world:
        client, session = await _deaf(world)
        for _ in range(50):
            await asyncio.sleep(0.002)
            assert session.intake.surplus < 1_000_000
            assert session._pipe is not None
            assert session._pipe.get_write_buffer_size() < 200_000
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        session._pipe.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.writer.transport.resume_reading()
        for _ in range(_MANY):
            assert await client.reader.readline() == b"250 2.1.5 Recipient ok\r\n"
        assert await client.say("QUIT") == "221 2.0.0 Bye"


async def test_a_client_that_never_reads_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.session._LINGER_SECONDS", 0.1)
    async with running(command_timeout="300ms") as world:
        client, _session = await _deaf(world)
        await until(lambda: not world.ingress._sessions)
        client.writer.transport.abort()


def test_no_attribute_of_ours_is_one_of_asyncios() -> None:
    source = ast.parse(Path(inspect.getfile(SmtpSession)).read_text())
    ours = {
        node.attr
        for node in ast.walk(source)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    loop = asyncio.new_event_loop()
    theirs = set(vars(SMTP(object(), hostname="mx.example.test", loop=loop)))
    loop.close()
    assert ours & theirs == {"transport", "_timeout_handle"}  # which are theirs, and mean the same


async def test_many_pipelined_commands_leave_others_their_turn() -> None:
    async with running() as world:
        client, other = await world.connect(), await world.connect()
        for each in (client, other):
            await each.reply()
            await each.say("EHLO client.test")
        await client.say("MAIL FROM:<alice@example.test>")
        (session,) = (one for one in world.ingress._sessions if one._talk._mail is not None)
        session.data_received(b"RCPT TO:<bob@example.test>\r\n" * 2000)
        assert (await other.say("NOOP")).startswith("250 ")
        assert session.intake.surplus > 0


async def test_a_port_in_use_is_one_line() -> None:
    async with running() as world:
        host, port = world.ingress.listening[0]
        with pytest.raises(ServiceError, match=r"ingress\.mx"):
            await Running(mx=f"{host}:{port}").start()


def test_a_wrong_network_is_one_line() -> None:
    with pytest.raises(ServiceError, match=r"ingress\.relay_networks.*10\.0\.0\.1/8"):
        Running(relay_networks=["10.0.0.1/8"])
