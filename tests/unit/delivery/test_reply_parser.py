"""Tests of the reply parser and of EHLO capabilities."""

from __future__ import annotations

import pytest

from delivery.capabilities import Capabilities
from delivery.reply_parser import LINE_BYTES_MAX, LINES_MAX, MalformedReply, ReplyParser


def test_long_lines_and_many_lines_are_refused() -> None:
    with pytest.raises(MalformedReply):
        ReplyParser().feed(b"250 " + b"x" * (LINE_BYTES_MAX + 1))
    with pytest.raises(MalformedReply):
        ReplyParser().feed(b"250-x\r\n" * (LINES_MAX + 1))


def test_replies_are_sanitised() -> None:
    answer = ReplyParser().feed("550-5.1.1 no\x00\x1b[31m\r\n550 5.1.1 \u0085such\u2028user\r\n".encode())[0]
    reply = answer.to_reply()
    assert reply.enhanced == "5.1.1"
    assert reply.text == "no [31m\nsuch user"
    # digits of other scripts are plain text
    strange = ReplyParser().feed("550 5.\u0661.1 x\r\n".encode())[0].to_reply()
    assert (strange.enhanced, strange.text) == ("", "5.\u0661.1 x")
    # RFC 2034 section 4: a class that contradicts the code is no enhanced code, and stays visible
    contradiction = ReplyParser().feed(b"550-4.1.1 x\r\n550-5.7.1 y\r\n550 5.7.1 z\r\n")[0].to_reply()
    assert str(contradiction) == "550 5.7.1 4.1.1 x y z"
    assert str(ReplyParser().feed(b"550 4.1.1 x\r\n")[0].to_reply()) == "550 4.1.1 x"


def test_capabilities() -> None:
    lines = [b"remote.test PIPELINING", b"size=5", b"8bitmime", b"AUTH=LOGIN PLAIN", b"\xff\xfe", b""]
    offered = Capabilities.parse(lines)
    assert not offered.pipelining  # the first line is a greeting
    assert offered.max_size == 5
    assert offered.eight_bit_mime
    assert offered.keywords["AUTH"] == "LOGIN PLAIN"
    assert Capabilities.parse([b"x", b"SIZE 0"]).max_size is None
    assert Capabilities.parse([b"x", b"SIZE lots"]).max_size is None
