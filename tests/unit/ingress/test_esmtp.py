"""Command parsers: accepted and refused syntax."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress import replies
from ingress.esmtp import MailFrom, RcptTo, parse_command, parse_hello, parse_mail, parse_rcpt, parse_vrfy
from mail.address import Address
from mail.envelope import Body
from mail.reply import Reply

BOB = Address("bob", "example.test")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"noop", ("NOOP", "")),
        (b"Mail FROM:<>  ", ("MAIL", "FROM:<>")),
        (b"EHLO  x", ("EHLO", "x")),
        (b"", replies.UNKNOWN_COMMAND),
        (b" NOOP", replies.UNKNOWN_COMMAND),
        (b"NOOP\tx", replies.BAD_CHARACTERS),
        (b"N\xc3\xb6\xc3\xb6P", replies.UNKNOWN_COMMAND),
        (b"NOOP \xff", replies.BAD_CHARACTERS),
        (b"HELO " + b"x" * 506, replies.LINE_TOO_LONG),
    ],
)
def test_commands(line: bytes, command: tuple[str, str] | Reply) -> None:
    assert parse_command(line) == command


@pytest.mark.parametrize(
    ("argument", "parsed"),
    [
        ("FROM:<>", MailFrom(None)),
        ("from: <bob@example.test>", MailFrom(BOB)),
        ("FROM:<bob@EXAMPLE.test>  SIZE=12  ", MailFrom(BOB, size=12)),
        ("FROM:<bob@example.test> body=8bitmime SIZE=0", MailFrom(BOB, size=0, body=Body.EIGHT_BIT)),
        ("FROM:<@a.test,@b.test:bob@example.test>", MailFrom(BOB)),
        ('FROM:<"a>b \\" c"@example.test>', MailFrom(Address('a>b " c', "example.test"))),
        ("FROM:<böb@example.test> SMTPUTF8", MailFrom(Address("böb", "example.test"), smtputf8=True)),
        ("FROM:<böb@example.test>", replies.NEEDS_SMTPUTF8),
        ("FROM:<bob>", replies.BAD_SENDER_SYNTAX),
        ("FROM:<bob@example..test>", replies.BAD_SENDER_SYNTAX),
        ("FROM:<bob@192.0.2.1>", replies.BAD_SENDER_SYNTAX),
        ("FROM:<bob@[192.0.2.1]>", MailFrom(Address("bob", "[192.0.2.1]"))),
        ("FROM:<@:bob@example.test>", replies.BAD_SENDER_SYNTAX),
        ("FROM:<@a.test bob@example.test>", replies.BAD_SENDER_SYNTAX),
        ("FROM:<@a.test,b.test:bob@example.test>", replies.BAD_SENDER_SYNTAX),
        ("FROM:<<bob@example.test>>", replies.MAIL_SYNTAX),
        ("FROM:<bob@example.test", replies.MAIL_SYNTAX),
        ("FROM: bob@example.test", replies.MAIL_SYNTAX),
        ("TO:<bob@example.test>", replies.MAIL_SYNTAX),
        ("FROM:<> SIZE=", replies.PARAMETER_SYNTAX),
        ("FROM:<> =1", replies.PARAMETER_SYNTAX),
        ("FROM:<> SIZE=1=1", replies.PARAMETER_SYNTAX),
        ("FROM:<> SIZE=" + "9" * 21, replies.PARAMETER_SYNTAX),
        ("FROM:<> BODY", replies.PARAMETER_SYNTAX),
        ("FROM:<> SMTPUTF8 SmtpUtf8", replies.PARAMETER_REPEATED),
        ("FROM:<> AUTH=<>", replies.PARAMETER_UNKNOWN),
    ],
)
def test_mail(argument: str, parsed: MailFrom | Reply) -> None:
    assert parse_mail(argument, extended=True) == parsed


def test_parameters_need_ehlo() -> None:
    assert parse_mail("FROM:<> SIZE=1", extended=False) == replies.PARAMETER_NEEDS_EHLO
    assert parse_mail("FROM:<>  ", extended=False) == MailFrom(None)


@pytest.mark.parametrize(
    ("argument", "parsed"),
    [
        ("TO:<bob@example.test>", RcptTo(BOB)),
        ("TO:<pOSTmaster>", RcptTo(None)),
        ("TO:<@a.test:bob@example.test>", RcptTo(BOB)),
        ("TO:<>", replies.BAD_RECIPIENT_SYNTAX),
        ("TO:<root>", replies.BAD_RECIPIENT_SYNTAX),
        ("TO:<bob@example.test> ORCPT=rfc822;x", replies.PARAMETER_UNKNOWN),
        ("TO:<b\u202eb@example.test>", replies.NEEDS_SMTPUTF8),
    ],
)
def test_rcpt(argument: str, parsed: RcptTo | Reply) -> None:
    assert parse_rcpt(argument, extended=True, utf8=False) == parsed


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("Client.TEST", "client.test"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:db8:0::1]", "[IPv6:2001:db8::1]"),
        ("192.0.2.1", "192.0.2.1"),
        ("a_b more", "a_b"),
        ("", replies.HELLO_SYNTAX),
        ("ü.test", replies.HELLO_SYNTAX),
        ("x" * 256, replies.HELLO_SYNTAX),
    ],
)
def test_hello(argument: str, name: str | Reply) -> None:
    assert parse_hello(argument) == name


def test_vrfy() -> None:
    assert parse_vrfy("bob") == "bob"
    assert parse_vrfy("<bob@example.test>") == BOB
    assert parse_vrfy("böb@example.test SMTPUTF8") == Address("böb", "example.test")
    assert parse_vrfy("a b") == parse_vrfy("") == replies.VRFY_SYNTAX


@given(st.binary(max_size=80))
def test_no_command_line_raises(line: bytes) -> None:
    command = parse_command(line)
    if not isinstance(command, Reply):
        parse_hello(command[1])
        parse_vrfy(command[1])
    for prefix in (b"MAIL FROM:<", b"MAIL FROM:<> ", b"RCPT TO:<"):
        command = parse_command(prefix + line)
        if not isinstance(command, Reply):
            mail = parse_mail(command[1], extended=True)
            rcpt = parse_rcpt(command[1], extended=True, utf8=True)
            for address in (getattr(mail, "reverse_path", None), getattr(rcpt, "forward_path", None)):
                if address is not None:  # a parsed address is parseable again and equal
                    assert Address.parse(str(address), utf8=True) == address


def test_path_parser_does_not_backtrack() -> None:
    assert parse_mail("FROM:<" + '"a' * 30_000, extended=True) == replies.MAIL_SYNTAX
    assert parse_mail("FROM:<" + "a" * 60_000, extended=True) == replies.MAIL_SYNTAX
