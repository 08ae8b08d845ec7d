"""Strict parsers for SMTP commands: verbs, paths and ESMTP parameters. Pure.

A parser returns a value, or the Reply that refuses the line; a new extension is a field and a `case` here. Accepted
although not in the grammar, because Internet hosts send it and it is unambiguous: blanks after "FROM:" and "TO:" and at
the end of a line, and extra text after EHLO. Source: RFC 5321 sections 4.1.1 and 4.1.2, RFC 1870, RFC 6152, RFC 6531.
"""

from __future__ import annotations

import re

from msgspec import Struct

from ingress import replies
from mail.address import Address, AddressError, parse_domain
from mail.envelope import Body
from mail.reply import Reply

VERBS = frozenset(("DATA", "EHLO", "EXPN", "HELO", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET", "VRFY"))
# RFC 5321 section 4.2.4: known but not offered commands get 502, unknown ones 500.
NOT_OFFERED = frozenset(("AUTH", "BDAT", "BURL", "ETRN", "SAML", "SEND", "SOML", "STARTTLS", "TURN"))
# HTTP methods: an attacker made a browser connect to this port (Postfix: smtpd_forbidden_commands).
FORBIDDEN_COMMANDS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
# RFC 2920 section 3.1: the client waits for the reply to these.
LAST_IN_GROUP = frozenset(("DATA", "EHLO", "EXPN", "HELO", "NOOP", "VRFY"))
WITHOUT_ARGUMENT = frozenset(("DATA", "QUIT", "RSET"))
NON_MAIL_COMMANDS = frozenset(("EHLO", "HELO", "HELP", "NOOP", "RSET", "VRFY", "EXPN"))

LINE_MAX = 512  # RFC 5321 section 4.5.3.1.4, CRLF included
# Octets added by each extension: RFC 1870 section 3 (26), RFC 6152 section 2 (17), RFC 6531 section 3.1 item 9 (10).
LINE_MAX_OF = {"MAIL": LINE_MAX + 26 + 17 + 10, "VRFY": LINE_MAX + 10, "EXPN": LINE_MAX + 10}
LONGEST_LINE = max(LINE_MAX_OF.values())

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_VERB_MAX = 16
_HELLO_NAME = re.compile(r"[!-~]{1,255}\Z")
# Possessive quantifiers prevent backtracking.
_PATH = re.compile(r'<((?:[^<>"\\]|"(?:[^"\\]|\\.)*+")*+)>(.*)\Z')
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-]*\Z")
_VALUE = re.compile(r"[!-<>-~\u0080-\U0010ffff]+\Z")  # esmtp-value; RFC 6531 section 3.3 adds UTF-8
_SIZE = re.compile(r"[0-9]{1,20}\Z")  # RFC 1870 section 5


class MailFrom(Struct, frozen=True):
    """MAIL. `reverse_path` is None for `<>`; `size` is None when the client gave none."""

    reverse_path: Address | None
    size: int | None = None
    body: Body = Body.SEVEN_BIT
    smtputf8: bool = False


class RcptTo(Struct, frozen=True):
    """RCPT. `forward_path` is None for `<Postmaster>` without a domain (RFC 5321 section 4.1.1.3)."""

    forward_path: Address | None


def parse_command(line: bytes) -> tuple[str, str] | Reply:
    """Parse a line without its CRLF: the verb in upper case, and the argument without surrounding blanks."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return replies.BAD_CHARACTERS
    if not (text.isascii() and text.isprintable()) and _CONTROL.search(text):
        return replies.BAD_CHARACTERS
    verb, _, argument = text.partition(" ")
    if not (verb.isascii() and verb.isalpha() and len(verb) <= _VERB_MAX):
        return replies.UNKNOWN_COMMAND
    verb = verb.upper()
    if len(line) + 2 > LINE_MAX_OF.get(verb, LINE_MAX):
        return replies.LINE_TOO_LONG
    return verb, argument.strip(" ")  # RFC 5321 section 4.1.1: tolerate trailing blanks


def parse_hello(argument: str) -> str | Reply:
    """Parse the argument of EHLO or HELO; a valid domain or address literal is normalised.

    Any visible ASCII word is accepted: RFC 5321 section 4.1.4 forbids refusing mail because the name is wrong.
    """
    name = argument.partition(" ")[0]
    if not _HELLO_NAME.match(name):
        return replies.HELLO_SYNTAX
    try:
        return parse_domain(name)
    except AddressError:
        return name


def parse_mail(argument: str, *, extended: bool) -> MailFrom | Reply:
    """Parse the argument of MAIL. `extended`: the client sent EHLO."""
    parts = _split_path(argument, "FROM:")
    if parts is None:
        return replies.MAIL_SYNTAX
    path, parameter_text = parts
    size: int | None = None
    body = Body.SEVEN_BIT
    smtputf8 = False
    parameters = _parse_parameters(parameter_text, extended=extended)
    if isinstance(parameters, Reply):
        return parameters
    for keyword, value in parameters.items():
        match keyword:
            case "SIZE":
                if value is None or not _SIZE.match(value):
                    return replies.PARAMETER_SYNTAX
                size = int(value)
            case "BODY":
                # RFC 6152 section 2. BINARYMIME needs CHUNKING, which is not offered (RFC 3030 section 3).
                if value is None or value.upper() not in ("7BIT", "8BITMIME"):
                    return replies.PARAMETER_SYNTAX
                body = Body(value.upper())
            case "SMTPUTF8":
                if value is not None:  # RFC 6531 section 3.4
                    return replies.PARAMETER_SYNTAX
                smtputf8 = True
            case _:
                return replies.PARAMETER_UNKNOWN
    if not path:
        return MailFrom(None, size, body, smtputf8)
    address = _parse_path(path, utf8=smtputf8, refusal=replies.BAD_SENDER_SYNTAX)
    return address if isinstance(address, Reply) else MailFrom(address, size, body, smtputf8)


def parse_rcpt(argument: str, *, extended: bool, utf8: bool) -> RcptTo | Reply:
    """Parse the argument of RCPT. `utf8`: MAIL had SMTPUTF8."""
    parts = _split_path(argument, "TO:")
    if parts is None:
        return replies.RCPT_SYNTAX
    path, parameter_text = parts
    if parameter_text:
        parameters = _parse_parameters(parameter_text, extended=extended)
        # No RCPT parameter is supported.
        return parameters if isinstance(parameters, Reply) else replies.PARAMETER_UNKNOWN
    if path.lower() == "postmaster":
        return RcptTo(None)
    address = _parse_path(path, utf8=utf8, refusal=replies.BAD_RECIPIENT_SYNTAX)
    return address if isinstance(address, Reply) else RcptTo(address)


def parse_vrfy(argument: str) -> Address | str | Reply:
    """Parse the argument of VRFY: an address, with or without brackets, or a user name as string (section 3.5.1)."""
    text, _, parameter = argument.partition(" ")
    utf8 = parameter.strip().upper() == "SMTPUTF8"  # RFC 6531 section 3.7.4
    if not text or (parameter and not utf8):
        return replies.VRFY_SYNTAX
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    if "@" not in text:
        return text
    return _parse_path(text, utf8=utf8, refusal=replies.VRFY_SYNTAX)


def _split_path(argument: str, keyword: str) -> tuple[str, str] | None:
    """Split an argument into the text in angle brackets and the text after them."""
    length = len(keyword)
    if argument[:length].upper() != keyword:
        return None
    match = _PATH.match(argument[length:].lstrip(" "))
    if match is None:
        return None
    path, parameter_text = match.groups()
    return None if parameter_text and not parameter_text.startswith(" ") else (path, parameter_text)


def _parse_path(path: str, *, utf8: bool, refusal: Reply) -> Address | Reply:
    if path.startswith("@"):
        # RFC 5321 section 4.1.2, A-d-l: a source route is checked and ignored (appendix F.2).
        route, colon, path = path.partition(":")
        try:
            for hop in route.split(","):
                if not hop.startswith("@") or not colon:
                    return refusal
                parse_domain(hop[1:], utf8=utf8)
        except AddressError:
            return refusal
    try:
        return Address.parse(path, utf8=utf8)
    except AddressError:
        if not utf8 and not path.isascii():
            return replies.NEEDS_SMTPUTF8
        return refusal


def _parse_parameters(text: str, *, extended: bool) -> dict[str, str | None] | Reply:
    """Keywords in upper case; values keep their case, as ENVID and ORCPT need."""
    if not text.strip(" "):
        return {}
    if not extended:
        return replies.PARAMETER_NEEDS_EHLO
    parameters: dict[str, str | None] = {}
    for word in text.split(" "):
        if not word:
            continue
        keyword, equals, value = word.partition("=")
        keyword = keyword.upper()
        if not _KEYWORD.match(keyword) or (equals and not _VALUE.match(value)):
            return replies.PARAMETER_SYNTAX
        if keyword in parameters:
            return replies.PARAMETER_REPEATED
        parameters[keyword] = value if equals else None
    return parameters
