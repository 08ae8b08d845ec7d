"""SMTP smuggling: a false end of data never splits one message into two."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.content import normalize
from ingress.framer import Framer, Malformed
from tests.support.servers.ingress import running_ingress

CORPUS = [
    b"\n.\n",
    b"\r.\r",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\r.\n",
    b"\n.\r",
    b"\r\n\r.\r\n",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n..\r\n",
    b"\r\n. \r\n",
    b"\r\n\x00.\r\n",
    b"\r\n.\x00\r\n",
    b"\n\n.\n\n",
    b"\r\n.\n\r",
    b"\n.\n\r\n",
]
SMUGGLED = b"MAIL FROM:<alice@example.test>\r\nRCPT TO:<alice@example.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nevil"
LONE = re.compile(rb"(?<!\r)\n|\r(?!\n)")


@pytest.mark.parametrize("false_end", CORPUS, ids=repr)
@pytest.mark.parametrize("in_one_packet", [True, False])
async def test_false_end_of_data_stores_one_normalised_message(false_end: bytes, in_one_packet: bool) -> None:
    async with running_ingress() as server:
        client = await server.connect()
        await client.start_data()
        wire = b"Subject: outer\r\n\r\nbody" + false_end + SMUGGLED + b"\r\n.\r\nQUIT\r\n"
        if in_one_packet:
            client.send(wire)
        else:
            for octet in wire:
                client.send(bytes((octet,)))
                await client.writer.drain()
        received = (await client.read_to_end()).decode()
        assert len(server.log.accepted) == 1, received
        assert received.count("250 2.0.0 Ok: queued as") == 1
        assert received.endswith("221 2.0.0 Bye\r\n")
        assert LONE.search(server.content()) is None
        assert b"Subject: smuggled" in server.content()


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\r\n", b"\n\r"], ids=repr)
async def test_commands_end_in_crlf_only(line_end: bytes) -> None:
    """Two commands that only a lenient parser separates are not executed."""
    async with running_ingress() as server:
        client = await server.connect()
        await client.read_reply()
        await client.command("EHLO x")
        client.send(b"MAIL FROM:<>" + line_end + b"RCPT TO:<bob@example.test>" + line_end + b"\r\n")
        assert (await client.read_reply()).startswith("50")
        client.send(b"\r\nQUIT\r\n")
        assert b"250 2.1" not in await client.read_to_end()


PIECES = st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\r\n.\r\n", b"a", b" ", b"..", b"\x00"])
WIRE = st.lists(PIECES, max_size=30).map(b"".join)


def framer_with(wire: bytes, cuts: list[int], limit: int = 1 << 20) -> Framer:
    framer = Framer(100)
    framer.begin_data(limit)
    at = 0
    for cut in [*sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]:
        framer.feed(wire[at:cut])
        at = cut
    return framer


@given(WIRE, st.lists(st.integers(0, 1000), max_size=8))
def test_data_ends_at_the_first_crlf_dot_crlf_for_any_packets(wire: bytes, cuts: list[int]) -> None:
    end = (b"\r\n" + wire).find(b"\r\n.\r\n")
    framer = framer_with(wire, cuts)
    assert framer.data_is_complete == (end >= 0)
    if end >= 0:
        assert framer.take_data() == wire[:end]
        assert framer.pipelined_bytes == len(wire) - end - 3  # nothing after the final dot is lost


@given(WIRE, st.lists(st.integers(0, 1000), max_size=8), st.integers(0, 10))
def test_discarded_data_ends_where_held_data_does(wire: bytes, cuts: list[int], limit: int) -> None:
    held, discarded = framer_with(wire, cuts), framer_with(wire, cuts, limit)
    assert held.data_is_complete == discarded.data_is_complete
    assert discarded.data_held_bytes <= limit + 4  # four octets may belong to the terminator
    if held.data_is_complete:
        assert discarded.data_is_discarded == (held.data_held_bytes > limit)
        held.skip_data()
        discarded.skip_data()
        assert held.pipelined_bytes == discarded.pipelined_bytes
        assert held.next_line() == discarded.next_line()


@given(WIRE)
def test_normalised_content_has_only_crlf_and_keeps_valid_lines(wire: bytes) -> None:
    stored = normalize(b"Trace: x\r\n" + wire)
    assert LONE.search(stored) is None
    if LONE.search(wire) is None:
        lines = wire.split(b"\r\n")
        assert stored == b"Trace: x\r\n" + b"\r\n".join(line.removeprefix(b".") for line in lines)


@given(st.lists(st.sampled_from([b"NOOP\r\n", b"X\n", b"\r\n", b"y" * 60, b"\r", b"\n"]), max_size=20))
def test_command_lines_are_the_same_octet_by_octet(parts: list[bytes]) -> None:
    wire = b"".join(parts)

    def lines(pieces: list[bytes]) -> list[bytes | Malformed]:
        framer, lines_read = Framer(100), []
        for piece in pieces:
            framer.feed(piece)
            while (line := framer.next_line()) is not None:
                lines_read.append(line)
        return lines_read

    whole = lines([wire])
    assert lines([bytes((octet,)) for octet in wire]) == whole
    assert len(whole) == wire.count(b"\n")
    assert all(isinstance(line, Malformed) or b"\n" not in line for line in whole)
