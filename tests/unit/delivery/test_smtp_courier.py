"""Tests of the SMTP courier against a scripted server with faults at every command."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from delivery.client_session import ClientSession
from delivery.connection import Connection
from delivery.peer import PeerKey
from delivery.timeouts import Timeouts
from mail.outcome import Deferred, Failed
from tests.support.builders.delivery import CONTENT, delivery, relay
from tests.support.clients.couriers import SHORT_TIMEOUTS, courier, outcome_names
from tests.support.servers.listener import listening, settle, streams
from tests.support.servers.ports import wait_until
from tests.support.servers.scripted_remote import Drop, ScriptedRemote, Stall, Then, Wait


async def test_messages_share_a_connection() -> None:
    async with ScriptedRemote() as remote:
        async with courier() as smtp:
            for _ in range(3):
                outcomes = await smtp.deliver(delivery(relay(remote.port), "a@r.test", "b@r.test"), CONTENT)
                assert outcome_names(outcomes) == ["Delivered", "Delivered"]
        assert len(remote.sessions) == 1
        assert remote.commands[-1] == "QUIT"
        assert [message.content for message in remote.messages] == [CONTENT] * 3
        assert remote.messages[0].rcpts == ["TO:<a@r.test>", "TO:<b@r.test>"]


async def test_large_message_is_unchanged() -> None:
    content = b"Subject: large\r\n\r\n" + b".dots and dots\r\n" * 300_000
    async with ScriptedRemote() as remote, courier() as smtp:
        assert outcome_names(await smtp.deliver(delivery(relay(remote.port), content=content), content)) == [
            "Delivered"
        ]
        assert remote.messages[0].content == content


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",)])
async def test_lmtp(extensions: tuple[str, ...]) -> None:
    script = {"RCPT": ["250 ok", "550 5.1.1 no", "250 ok"], "DOT": ["250 2.0.0 a", "452 4.2.2 full"]}
    async with ScriptedRemote(script, lmtp=True, extensions=extensions) as remote, courier() as smtp:
        own_delivery = delivery(relay(remote.port, lmtp=True), "a@r.test", "b@r.test", "c@r.test")
        assert outcome_names(await smtp.deliver(own_delivery, CONTENT)) == ["Delivered", "Failed", "Deferred"]
        assert remote.messages[0].rcpts == ["TO:<a@r.test>"]
        assert remote.commands[0] == "LHLO us.test"


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",)])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "DOT"])
@pytest.mark.parametrize(
    ("answer", "kind"), [("451 4.3.0 later", Deferred), ("554 5.7.1 never", Failed), ("421 4.3.2 closing", Deferred)]
)
async def test_outcome_of_a_refusal_at_each_verb(
    verb: str, answer: str, kind: type[Deferred | Failed], extensions: tuple[str, ...]
) -> None:
    script: dict[str, Any] = {verb: [answer, "354 go" if verb == "DATA" else "250 2.0.0 ok"]}
    if verb == "MAIL" and extensions:
        script |= {"RCPT": ["503 5.5.1 x", "250 ok"], "DATA": ["503 5.5.1 x", "354 go"]}
    async with ScriptedRemote(script, extensions=extensions) as remote, courier() as smtp:
        (outcome,) = await smtp.deliver(delivery(relay(remote.port)), CONTENT)
        assert isinstance(outcome, kind)
        assert str(outcome.reply) == answer
        assert outcome.remote == f"[127.0.0.1]:{remote.port}"
        # the next message is delivered
        assert outcome_names(await smtp.deliver(delivery(relay(remote.port)), CONTENT)) == ["Delivered"]
        assert len(remote.messages) == 1


@pytest.mark.parametrize("verb", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT"])
@pytest.mark.parametrize("trouble", [Drop(), Drop(reset=True), Stall(), "rubbish", Then("250-half", Drop())])
async def test_fault_at_each_verb_defers(verb: str, trouble: Any) -> None:
    async with ScriptedRemote({verb: [trouble]}) as remote, courier(timeouts=SHORT_TIMEOUTS) as smtp:
        (outcome,) = await asyncio.wait_for(smtp.deliver(delivery(relay(remote.port)), CONTENT), 5)
        assert isinstance(outcome, Deferred)
        assert outcome.remote is None
        assert f"[127.0.0.1]:{remote.port}" in outcome.reply.text
        assert ("get it twice" in outcome.reply.text) is (verb == "DOT")


async def test_too_many_recipients_take_several_transactions() -> None:
    script = {"RCPT": ["250 ok", "250 ok", "452 4.5.3 too many", "452 4.5.3 too many", "250 ok"]}
    async with ScriptedRemote(script) as remote, courier() as smtp:
        names = [f"{name}@r.test" for name in "abcd"]
        assert outcome_names(await smtp.deliver(delivery(relay(remote.port), *names), CONTENT)) == ["Delivered"] * 4
        assert [len(message.rcpts) for message in remote.messages] == [2, 2]


async def test_first_transaction_is_reported_if_the_second_fails() -> None:
    async with ScriptedRemote({"RCPT": ["250 ok", "452 4.5.3 too many", Stall()]}) as remote, courier() as smtp:
        task = asyncio.create_task(smtp.deliver(delivery(relay(remote.port), "a@r.test", "b@r.test"), CONTENT))
        await remote.wait_messages(1)
        await wait_until(lambda: len([command for command in remote.commands if command.startswith("RCPT")]) == 3)
        task.cancel()
        assert outcome_names(await task) == ["Delivered", "Deferred"]
        assert len(remote.messages) == 1


async def test_a_reused_connection_lost_past_the_dot_is_not_repeated() -> None:
    async with ScriptedRemote({"DOT": ["250 ok", Drop(), "250 ok"]}) as remote, courier() as smtp:
        await smtp.deliver(delivery(relay(remote.port)), CONTENT)
        (outcome,) = await smtp.deliver(delivery(relay(remote.port)), CONTENT)
        assert isinstance(outcome, Deferred)
        assert "get it twice" in outcome.reply.text
        assert len(remote.sessions) == 1


async def test_cancellation_aborts_before_the_final_dot_only() -> None:
    go = asyncio.Event()
    async with ScriptedRemote({"RCPT": [Stall(), "250 ok"], "DOT": [Wait(go, "250 ok")]}) as remote, courier() as smtp:
        before = asyncio.create_task(smtp.deliver(delivery(relay(remote.port)), CONTENT))
        await remote.wait_command("RCPT")
        before.cancel()
        with pytest.raises(asyncio.CancelledError):
            await before

        after = asyncio.create_task(smtp.deliver(delivery(relay(remote.port)), CONTENT))
        await remote.wait_command("DOT")
        after.cancel()
        await settle()
        assert not after.done()
        go.set()
        assert outcome_names(await after) == ["Delivered"]

        go.clear()
        for session in remote.sessions:
            session.commands.clear()
        given_up = asyncio.create_task(smtp.deliver(delivery(relay(remote.port)), CONTENT))
        await remote.wait_command("DOT")
        for _ in range(2):
            given_up.cancel()
            await settle()
        with pytest.raises(asyncio.CancelledError):
            await given_up


async def test_reply_received_during_cancellation_counts() -> None:
    class Transport(asyncio.Transport):
        def write(self, data: object) -> None:
            pass

        def writelines(self, list_of_data: object) -> None:
            pass

        def get_write_buffer_size(self) -> int:
            return 0

        def is_closing(self) -> bool:
            return False

    connection = Connection(
        PeerKey("mx:r.test", "us.test"),
        ClientSession("us.test", "mx.r.test"),
        Timeouts(),
        lambda _: None,
        asyncio.get_running_loop(),
    )
    connection.connection_made(Transport())
    connection.data_received(b"220 mx.r.test\r\n")
    connection.data_received(b"250-mx.r.test\r\n250 PIPELINING\r\n")
    own_delivery = delivery(relay(1))
    transaction = asyncio.create_task(connection.transact(own_delivery.message.envelope, CONTENT))
    await asyncio.sleep(0)
    connection.data_received(b"250 ok\r\n250 ok\r\n354 send the message\r\n")
    connection.data_received(b"250 taken\r\n")
    transaction.cancel()  # before the task runs again
    assert outcome_names((await transaction).outcomes) == ["Delivered"]


async def test_reply_sent_byte_by_byte_times_out() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"220-")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

    async with listening(streams(drip)) as port, courier(timeouts=SHORT_TIMEOUTS) as smtp:
        own_delivery = delivery(relay(port))
        (outcome,) = await asyncio.wait_for(smtp.deliver(own_delivery, CONTENT), 5)
        assert isinstance(outcome, Deferred)
        assert "timed out" in outcome.reply.text


async def test_server_that_stops_reading_times_out() -> None:
    """The deadline of a block (RFC 5321 section 4.5.3.2.5)."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(b"250 hi\r\n")
        for answer in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            await reader.readline()
            writer.write(answer)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()
        writer.close()

    over = asyncio.Event()
    content = b"x" * 76 + b"\r\n"
    content *= 300_000
    async with listening(streams(serve)) as port, courier(timeouts=SHORT_TIMEOUTS) as smtp:
        (outcome,) = await asyncio.wait_for(smtp.deliver(delivery(relay(port), content=content), content), 10)
        assert isinstance(outcome, Deferred)
        assert "timed out" in outcome.reply.text
        over.set()


async def test_refusal_while_the_content_is_sent_is_the_outcome() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        for answer in (b"250 hi\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            await reader.readline()
            writer.write(answer)
        await reader.readexactly(200_000)
        writer.write(b"554 5.7.1 listed\r\n")
        writer.close()

    content = (b"x" * 76 + b"\r\n") * 54_000
    async with listening(streams(serve)) as port, courier() as smtp:
        (outcome,) = await smtp.deliver(delivery(relay(port), content=content), content)
        assert isinstance(outcome, Failed)
        assert str(outcome.reply) == "554 5.7.1 listed"


async def test_slow_but_steady_reader_does_not_time_out() -> None:
    """Each slice that is sent renews the deadline (RFC 5321 section 4.5.3.2.5)."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        for answer in (b"250 hi\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            await reader.readline()
            writer.write(answer)
        taken = 0
        while taken < len(content):
            part = await reader.read(65536)
            if taken // 1_000_000 != (taken + len(part)) // 1_000_000:
                await asyncio.sleep(0.05)
            taken += len(part)
        writer.write(b"250 ok\r\n")
        await reader.readline()
        writer.close()

    content = b"x" * 76 + b"\r\n"
    content *= 400_000
    deadlines = Timeouts(block_seconds=0.5)
    async with listening(streams(serve)) as port, courier(timeouts=deadlines) as smtp:
        own_delivery = delivery(relay(port), content=content)
        assert outcome_names(await asyncio.wait_for(smtp.deliver(own_delivery, content), 30)) == ["Delivered"]


async def test_delivery_to_aiosmtpd() -> None:
    """Oracle: the server of aiosmtpd."""
    got: list[tuple[str | None, list[str], bytes]] = []

    class Handler:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
            got.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
            return "250 2.0.0 ok"

    def make() -> asyncio.Protocol:
        return SMTP(Handler(), hostname="stock.test", enable_SMTPUTF8=True)

    content = "Subject: grüße\r\n\r\n..\r\n.a\r\n".encode()
    async with listening(make) as port, courier() as smtp:
        own_delivery = delivery(relay(port), "jürgen@r.test", "b@r.test", content=content)
        assert outcome_names(await smtp.deliver(own_delivery, content)) == ["Delivered", "Delivered"]
    assert got == [("sender@example.test", ["jürgen@r.test", "b@r.test"], content)]
