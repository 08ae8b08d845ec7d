"""SMTP smuggling: whatever stands for an end of data elsewhere, here it is one message or none, never two."""

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
async def test_one_message_and_nothing_ambiguous_is_stored(false_end: bytes, in_one_packet: bool) -> None:
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
        heard = (await client.read_to_end()).decode()
        assert len(server.log.accepted) == 1, heard
        assert heard.count("250 2.0.0 Ok: queued as") == 1
        assert heard.endswith("221 2.0.0 Bye\r\n")
        assert LONE.search(server.content()) is None
        assert b"Subject: smuggled" in server.content()


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\r\n", b"\n\r"], ids=repr)
async def test_a_command_does_not_end_in_anything_but_crlf(line_end: bytes) -> None:
    """Neither of two commands that only a lenient server sees is obeyed."""
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


def fed(wire: bytes, cuts: list[int], limit: int = 1 << 20) -> Framer:
    intake = Framer(100)
    intake.begin_data(limit)
    at = 0
    for cut in [*sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]:
        intake.feed(wire[at:cut])
        at = cut
    return intake


@given(WIRE, st.lists(st.integers(0, 1000), max_size=8))
def test_content_ends_at_the_first_crlf_dot_crlf_however_it_is_cut(wire: bytes, cuts: list[int]) -> None:
    end = (b"\r\n" + wire).find(b"\r\n.\r\n")
    intake = fed(wire, cuts)
    assert intake.data_is_complete == (end >= 0)
    if end >= 0:
        assert intake.take_data(b"P") == b"P" + wire[:end]
        assert intake.pipelined_bytes == len(wire) - end - 3  # not a byte is lost behind the dot


@given(WIRE, st.lists(st.integers(0, 1000), max_size=8), st.integers(0, 10))
def test_dropped_content_ends_where_kept_content_does(wire: bytes, cuts: list[int], limit: int) -> None:
    kept, dropped = fed(wire, cuts), fed(wire, cuts, limit)
    assert kept.data_is_complete == dropped.data_is_complete
    assert dropped.data_held_bytes <= limit + 4  # four bytes may belong to the end
    if kept.data_is_complete:
        assert dropped.data_is_discarded == (kept.data_held_bytes > limit)
        kept.skip_data()
        dropped.skip_data()
        assert kept.pipelined_bytes == dropped.pipelined_bytes
        assert kept.next_line() == dropped.next_line()


@given(WIRE)
def test_clean_content_has_only_crlf_and_keeps_what_was_well_formed(wire: bytes) -> None:
    stored = normalize(b"Trace: x\r\n" + wire)
    assert LONE.search(stored) is None
    if LONE.search(wire) is None:
        lines = wire.split(b"\r\n")
        assert stored == b"Trace: x\r\n" + b"\r\n".join(line.removeprefix(b".") for line in lines)


@given(st.lists(st.sampled_from([b"NOOP\r\n", b"X\n", b"\r\n", b"y" * 60, b"\r", b"\n"]), max_size=20))
def test_lines_are_the_same_byte_by_byte(parts: list[bytes]) -> None:
    wire = b"".join(parts)

    def lines(pieces: list[bytes]) -> list[bytes | Malformed]:
        intake, found = Framer(100), []
        for piece in pieces:
            intake.feed(piece)
            while (line := intake.next_line()) is not None:
                found.append(line)
        return found

    whole = lines([wire])
    assert lines([bytes((octet,)) for octet in wire]) == whole
    assert len(whole) == wire.count(b"\n")
    assert all(isinstance(line, Malformed) or b"\n" not in line for line in whole)
