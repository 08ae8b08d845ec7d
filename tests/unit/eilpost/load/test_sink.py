"""The sink receives messages in any chunks, within limits."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from eilpost.load import sink as module
from eilpost.load.sink import Sink
from tests.support.servers.ports import wait_until


class Destinations:
    def __init__(self) -> None:
        self.messages: list[tuple[str, list[str], bytes]] = []

    def recipient(self, address: str) -> bytes | None:
        return b"550 5.1.1 No\r\n" if address.startswith("no") else None

    def message(self, sender: str, recipients: list[str], content: bytes) -> bytes | None:
        self.messages.append((sender, list(recipients), content))
        return b"451 4.3.0 Full\r\n" if b"full" in content else None


async def talk(sent: bytes, chunk: int) -> tuple[list[bytes], list[tuple[str, list[str], bytes]]]:
    """All replies to `sent`, written in chunks of this size, and the received messages."""
    destinations = Destinations()
    async with Sink(destinations) as sink:
        reader, writer = await asyncio.open_connection("127.0.0.1", sink.port)
        for start in range(0, len(sent), chunk):
            writer.write(sent[start : start + chunk])
            await asyncio.sleep(0)
        replies = (await asyncio.wait_for(reader.read(), 10)).splitlines()
        writer.close()
    return [line for line in replies if line[3:4] != b"-"], destinations.messages


def transaction(content: bytes, recipients: str = "a@x.test") -> bytes:
    names = "".join(f"RCPT TO:<{name}>\r\n" for name in recipients.split())
    return f"MAIL FROM:<s@load.test>\r\n{names}DATA\r\n".encode() + content + b".\r\n"


CONTENTS = [b"", b"x\r\n", b"..\r\n", b"\r\n.\n\r\n", b"a\r\n..\r\nb\r\n", b"\r\n\r\n", b"x" * 70_000 + b"\r\n"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000, 1 << 20])
async def test_messages_are_received_in_any_chunks(chunk: int) -> None:
    contents = [content for content in CONTENTS if chunk > 100 or len(content) < 1000]
    sent = b"EHLO x\r\n" + b"".join(transaction(content) for content in contents) + b"QUIT\r\n"
    replies, messages = await talk(sent, chunk)
    assert messages == [("s@load.test", ["a@x.test"], content) for content in contents]
    assert [line[:3] for line in replies] == [b"220", b"250", *[b"250", b"250", b"354", b"250"] * len(contents), b"221"]


async def test_replies_are_in_the_order_of_the_commands() -> None:
    sent = (
        b"EHLO x\r\nDATA\r\n"
        + b"MAIL FROM:<>\r\nRCPT TO:<no@x.test>\r\nDATA\r\nRSET\r\nVRFY x\r\nNOOP\r\n"
        + transaction(b"full\r\n", "no@x.test a@x.test b@x.test")
        + b"DATA\r\nQUIT\r\n"
    )
    replies, messages = await talk(sent, 1 << 20)
    codes = [int(line[:3]) for line in replies]
    assert codes == [220, 250, 554, 250, 550, 554, 250, 502, 250, 250, 550, 250, 250, 354, 451, 554, 221]
    assert messages == [("s@load.test", ["a@x.test", "b@x.test"], b"full\r\n")]


async def test_too_long_command_line_closes_the_session() -> None:
    replies, _ = await talk(b"x" * 10_000, 1 << 20)
    assert replies[-1].startswith(b"500")


async def test_recipients_of_a_transaction_are_limited() -> None:
    names = " ".join(f"r{number}@x.test" for number in range(1002))
    replies, messages = await talk(transaction(b"x\r\n", names) + transaction(b"y\r\n") + b"QUIT\r\n", 1 << 20)
    codes = [line[:3] for line in replies]
    assert codes == [b"220", *[b"250"] * 1001, b"452", b"452", b"354", *[b"250"] * 3, b"354", b"250", b"221"]
    assert [len(recipients) for _, recipients, _ in messages] == [1000, 1]


async def test_commands_are_not_read_while_replies_are_unread() -> None:
    """Its replies used to fill the memory."""
    count = 100_000
    async with Sink(Destinations()) as sink:
        reader, writer = await asyncio.open_connection("127.0.0.1", sink.port, limit=1024)
        writer.write(b"EHLO x\r\n" * count + transaction(b"x\r\n") + b"QUIT\r\n")
        most = 0
        for _ in range(100):
            await asyncio.sleep(0.01)
            [session] = sink.open
            most = max(most, session.transport.get_write_buffer_size())
        assert 0 < most < 1 << 20
        lines = 0
        while data := await asyncio.wait_for(reader.read(65536), 10):  # and all replies come when they are read
            lines += data.count(b"\n")
        writer.close()
    assert lines == 1 + 6 * count + 4 + 1


async def test_sink_connections_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CONNECTIONS", 1)
    async with Sink(Destinations()) as sink:
        _, first = await asyncio.open_connection("127.0.0.1", sink.port)
        reader, second = await asyncio.open_connection("127.0.0.1", sink.port)
        assert (await reader.readline()).startswith(b"421")
        first.close()
        second.close()


async def test_buffered_incomplete_messages_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session with the most data is closed, and the others continue."""
    monkeypatch.setattr(module, "_MAX_BUFFERED_BYTES", 300_000)
    async with Sink(Destinations()) as sink, asyncio.timeout(10):
        large, small = [await asyncio.open_connection("127.0.0.1", sink.port) for _ in range(2)]
        half = transaction(b"x" * 250_000)[:-3]
        large[1].write(half)
        await wait_until(lambda: sink.buffered_bytes >= 250_000)
        small[1].write(transaction(b"x" * 100_000)[:-3])
        with contextlib.suppress(ConnectionError):
            await large[0].read()
        small[1].write(b"\r\n.\r\nQUIT\r\n")
        replies = (await small[0].read()).splitlines()
        assert replies[-2:] == [b"250 2.0.0 Message accepted", b"221 2.0.0 Bye"]
        for _, writer in (large, small):
            writer.close()
    assert sink.buffered_bytes == 0


async def test_restarted_sink_uses_the_same_port() -> None:
    sink = Sink(Destinations())
    await sink.start()
    port = sink.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert (await reader.readline()).startswith(b"220")
    await sink.stop()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()
    await sink.start()
    assert sink.port == port
    await sink.stop()
