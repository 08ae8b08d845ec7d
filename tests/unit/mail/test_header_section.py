"""Header section of a message."""

from __future__ import annotations

from mail.header_section import header_section, without_field


def test_header_section_ends_before_the_first_empty_line() -> None:
    assert header_section(b"A: b\r\nC: d\r\n\r\nbody", 100) == b"A: b\r\nC: d\r\n"
    assert header_section(b"A: b\r\nno end", 100) == b"A: b\r\nno end"


def test_content_without_header_has_an_empty_header_section() -> None:
    assert header_section(b"\r\nbody", 100) == b""


def test_long_header_section_is_cut_off() -> None:
    assert header_section(b"A: " + b"x" * 100, 10) == b"A: " + b"x" * 7


def test_fields_of_a_name_are_removed() -> None:
    content = (
        b"Received: x\r\nReturn-Path: <a@example.test>\r\nA: b\r\n"
        b"RETURN-path :\r\n\t<b@example.test>\r\n folded\r\nX-Return-Path: c\r\n"
        b"\r\nReturn-Path: in the body\r\n"
    )
    assert without_field(content, b"return-path") == (
        b"Received: x\r\nA: b\r\nX-Return-Path: c\r\n\r\nReturn-Path: in the body\r\n"
    )
    assert without_field(content, b"bcc") is content


def test_removal_of_a_field_keeps_content_without_a_body() -> None:
    assert without_field(b"Return-Path: <>\r\nA: b", b"return-path") == b"A: b"
    assert without_field(b"\r\nReturn-Path: <>\r\n", b"return-path") == b"\r\nReturn-Path: <>\r\n"
