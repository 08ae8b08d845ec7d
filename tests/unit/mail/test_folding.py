"""Tests of the folding of header fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.folding import fold


@pytest.mark.parametrize(
    ("line", "folded"),
    [
        (b"Sub: short", b"Sub: short"),
        (b"Subject: ten ten1", b"Subject:\r\n ten ten1"),
        (b"Refs: <a@b> <c@d>", b"Refs:\r\n <a@b>\r\n <c@d>"),
        (b"X: a\tlong\ttail", b"X: a\tlong\r\n\ttail"),
        (b"X:abcdefghijklmn", b"X:abcdefgh\r\n ijklmn"),
        (b"           blanks first", b"          \r\n  blanks\r\n first"),
        ("X:ü漢漢漢ü".encode(), "X:ü漢漢\r\n 漢ü".encode()),
    ],
)
def test_line_is_folded_before_blanks(line: bytes, folded: bytes) -> None:
    assert fold(line, 10) == folded


@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=300))
def test_folded_lines_are_short_and_hold_the_same_text(text: str) -> None:
    line = text.encode()
    lines = fold(line, 20).split(b"\r\n")
    assert all(len(each) <= 20 for each in lines)
    assert all(each.startswith((b" ", b"\t")) for each in lines[1:])
    assert b"".join(lines).replace(b" ", b"") == line.replace(b" ", b"")
    for each in lines:
        each.decode()  # no character is split
