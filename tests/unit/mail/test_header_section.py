"""Header section of a message."""

from __future__ import annotations

from mail.header_section import header_section


def test_header_section_ends_before_the_first_empty_line() -> None:
    assert header_section(b"A: b\r\nC: d\r\n\r\nbody", 100) == b"A: b\r\nC: d\r\n"
    assert header_section(b"A: b\r\nno end", 100) == b"A: b\r\nno end"


def test_content_without_header_has_an_empty_header_section() -> None:
    assert header_section(b"\r\nbody", 100) == b""


def test_long_header_section_is_cut_off() -> None:
    assert header_section(b"A: " + b"x" * 100, 10) == b"A: " + b"x" * 7
