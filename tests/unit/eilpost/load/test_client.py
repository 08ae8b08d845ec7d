"""The client limits the number of unread replies."""

from __future__ import annotations

import asyncio

import pytest

from eilpost.load.client import Client, ConnectionLost


@pytest.mark.parametrize(
    "reply", [b"250 ok\r\n", b"220 x\r\n", b"250 " + b"x" * 3000 + b"\r\n"], ids=["ok", "x", "long"]
)
async def test_connection_is_closed_after_too_many_unread_replies(reply: bytes) -> None:
    sent = 0
    is_over = asyncio.Event()

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while sent < 50_000_000:
                writer.write(reply * 100)
                sent += 100 * len(reply)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()
        is_over.set()

    async with await asyncio.start_server(flood, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
        await asyncio.wait_for(is_over.wait(), 20)
        assert sent < 50_000_000
        with pytest.raises(ConnectionLost, match="unexpected replies"):
            await client.reply()


async def test_unread_replies_of_one_transaction_are_kept() -> None:
    client = Client()
    client.data_received(b"250 2.1.5 Ok\r\n" * 102)
    assert [(await client.reply()).code for _ in range(102)] == [250] * 102


async def test_read_replies_do_not_count_towards_the_limit() -> None:
    client = Client()
    for _ in range(1000):
        client.data_received(b"250 " + b"x" * 3000 + b"\r\n")
        assert (await client.reply()).code == 250
